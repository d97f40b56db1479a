"""Train, profile and plan students."""
