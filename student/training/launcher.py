"""What started this process, and whether it agrees with the configuration.

Lightning takes the number of processes from a launcher's environment variables, whatever training.devices and
training.nodes say, and where one device is asked for it starts one training in each process.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from cache.errors import ConfigError
from cache.store.partition import environment_number


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """A program that started several processes, or one, for this command.

    variable: says how many.
    start: what starts `{devices}` of them on each of `{nodes}` machines; empty where Lightning does not go by the
        launcher and would start `devices` more for each.
    """

    name: str
    variable: str
    processes: int
    machines: int = 1
    start: str = ""


def find_launcher(environment: Mapping[str, str]) -> Launcher | None:
    """The launcher of this process; None where the command was started by itself.

    Raises:
        ConfigError: a variable of a launcher's is no number.
    """

    def number(name: str) -> int:
        return environment_number(environment, name, 1)

    torchrun = "torchrun with --nnodes {nodes} --nproc-per-node {devices}"
    if "TORCHELASTIC_RUN_ID" in environment:
        size, machines = number("WORLD_SIZE"), number("GROUP_WORLD_SIZE")
        return Launcher(name="torchrun", variable="WORLD_SIZE", processes=size, machines=machines, start=torchrun)
    if "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        size, machines = number("SLURM_NTASKS"), number("SLURM_NNODES")
        start = "the job with --nodes={nodes} --ntasks-per-node={devices}, and this command in it with srun"
        return Launcher(name="SLURM", variable="SLURM_NTASKS", processes=size, machines=machines, start=start)
    for variable in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if variable in environment:
            return Launcher(name="MPI", variable=variable, processes=number(variable))
    if "LOCAL_RANK" in environment:  # Lightning, which started this process beside the first, sets it too.
        size = number("WORLD_SIZE")
        return Launcher(name="LOCAL_RANK's launcher", variable="WORLD_SIZE", processes=size, start=torchrun)
    if number("WORLD_SIZE") > 1:
        return Launcher(name="WORLD_SIZE's launcher", variable="WORLD_SIZE", processes=number("WORLD_SIZE"))
    return None


def is_first_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process reports for all that train together, on this node and on others."""
    ranks = ("RANK",) if "RANK" in environment else ("SLURM_PROCID", "LOCAL_RANK")
    return all(environment.get(name, "0") == "0" for name in ranks)


def require_agreement(devices: int, nodes: int = 1, environment: Mapping[str, str] = os.environ) -> None:
    """Raise unless a launcher started as many processes as the training has devices, on as many machines.

    Raises:
        ConfigError: it did not, there is none for several machines, or a variable that Lightning reads is no number.
    """
    for name in ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_LOCALID", "MASTER_PORT"):
        environment_number(environment, name, 0)
    by = find_launcher(environment)
    if by is None or (not by.start and by.processes == 1):
        _require_one_node(devices, nodes)
        return
    if not by.start:
        raise ConfigError(
            "a launcher has started several processes, of which each would start its own",
            where=f"{by.variable}, training.devices",
            got=f"{by.processes} by {by.name}, {devices} by training.devices",
            expected="one process, which starts the others itself",
            cure="Start the command once, by itself",
        )
    if (by.processes, by.machines) != (devices * nodes, nodes):
        start = by.start.format(nodes=nodes, devices=devices)
        raise ConfigError(
            "the launcher and the configuration start different numbers of processes",
            where=f"{by.variable}, training.devices, training.nodes",
            got=f"{by.processes} on {by.machines} by {by.name}, {devices * nodes} on {nodes} by the configuration",
            expected="as many processes, on as many machines",
            cure=f"Set training.devices={by.processes // by.machines} training.nodes={by.machines}, or start {start}",
        )
    tasks = environment.get("SLURM_NTASKS_PER_NODE", "")
    if by.name == "SLURM" and by.processes > 1 and tasks != str(devices):
        raise ConfigError(
            "the job does not say how many tasks a machine has",
            where="SLURM_NTASKS_PER_NODE",
            got=repr(tasks),
            expected=devices,
            cure=f"Ask for --nodes={nodes} --ntasks-per-node={devices} in place of --ntasks={by.processes}",
        )


def _require_one_node(devices: int, nodes: int) -> None:
    if nodes > 1:
        raise ConfigError(
            "a training on several machines needs a launcher",
            where="training.nodes",
            got=f"{nodes}, and neither torchrun nor srun started this command",
            cure=f"Start it on each machine with torchrun --nnodes {nodes} --nproc-per-node {devices}, or with srun in "
            f"a job with --nodes={nodes} --ntasks-per-node={devices}",
        )
