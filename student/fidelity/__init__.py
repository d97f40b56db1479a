"""The fidelity study: the cached (and warped) teacher against the live one."""
