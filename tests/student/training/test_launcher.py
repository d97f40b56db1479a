import pytest

from cache.errors import ConfigError
from student.training.launcher import is_first_rank, require_agreement

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "GROUP_WORLD_SIZE": "1"}
SLURM = {"SLURM_JOB_NAME": "train", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
LIGHTNING = {"LOCAL_RANK": "1", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "4", "WORLD_SIZE": "2"}


TWO_NODES = {"GROUP_WORLD_SIZE": "2", "SLURM_NNODES": "2"}


@pytest.mark.parametrize(
    ("devices", "nodes", "environment"),
    [
        (1, 1, {}),
        (2, 1, {}),
        (2, 1, LIGHTNING),
        (2, 1, TORCHRUN | {"WORLD_SIZE": "2"}),
        (1, 2, TORCHRUN | TWO_NODES | {"WORLD_SIZE": "2"}),
        (1, 1, SLURM | {"SLURM_NTASKS": "1"}),
        (4, 1, SLURM | {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}),
        (2, 2, SLURM | TWO_NODES | {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2"}),
        (2, 1, SLURM | {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "interactive"}),
        (2, 1, {"WORLD_SIZE": "1"}),
        (2, 1, {"OMPI_COMM_WORLD_SIZE": "1"}),
    ],
)
def test_agreement(devices: int, nodes: int, environment: dict[str, str]) -> None:
    require_agreement(devices, nodes, environment)


DIFFERENT = (
    "the launcher and the configuration start different numbers of processes "
    "({variable}, training.devices, training.nodes); got {got} by the configuration; "
    "expected as many processes, on as many machines. {cure}."
)


@pytest.mark.parametrize(
    ("devices", "nodes", "environment", "message"),
    [
        (
            2,
            1,
            SLURM | {"SLURM_NTASKS": "1"},
            DIFFERENT.format(
                variable="SLURM_NTASKS",
                got="1 on 1 by SLURM, 2 on 1",
                cure="Set training.devices=1 training.nodes=1, or start the job with --nodes=1 --ntasks-per-node=2, "
                "and this command in it with srun",
            ),
        ),
        (
            1,
            1,
            TORCHRUN | {"WORLD_SIZE": "2"},
            DIFFERENT.format(
                variable="WORLD_SIZE",
                got="2 on 1 by torchrun, 1 on 1",
                cure="Set training.devices=2 training.nodes=1, or start torchrun with --nnodes 1 --nproc-per-node 1",
            ),
        ),
        (
            4,
            1,
            TORCHRUN | TWO_NODES | {"WORLD_SIZE": "4"},
            "Set training.devices=2 training.nodes=2, or start torchrun",
        ),
        (1, 2, TORCHRUN | {"WORLD_SIZE": "2"}, "got 2 on 1 by torchrun, 2 on 2 by the configuration"),
        (1, 1, SLURM | {"SLURM_NTASKS": "4"}, "got 4 on 1 by SLURM, 1 on 1 by the configuration"),
        (4, 1, SLURM | {"SLURM_NTASKS": "4"}, "Ask for --nodes=1 --ntasks-per-node=4 in place of --ntasks=4."),
        (2, 2, SLURM | TWO_NODES | {"SLURM_NTASKS": "4"}, "Ask for --nodes=2 --ntasks-per-node=2 in place of"),
        (
            2,
            1,
            {"OMPI_COMM_WORLD_SIZE": "2"},
            "a launcher has started several processes, of which each would start its own (OMPI_COMM_WORLD_SIZE, "
            "training.devices); got 2 by MPI, 2 by training.devices; expected one process, which starts the others "
            "itself. Start the command once, by itself.",
        ),
        (2, 1, {"WORLD_SIZE": "2", "RANK": "1"}, "got 2 by WORLD_SIZE's launcher"),
        (2, 1, {"LOCAL_RANK": "0"}, "got 1 on 1 by LOCAL_RANK's launcher, 2 on 1 by the configuration"),
        (
            4,
            2,
            {},
            "a training on several machines needs a launcher (training.nodes); got 2, and neither torchrun nor srun "
            "started this command. Start it on each machine with torchrun --nnodes 2 --nproc-per-node 4, or with srun "
            "in a job with --nodes=2 --ntasks-per-node=4.",
        ),
        (1, 1, {"RANK": ""}, "an environment variable of a launcher is no number (RANK); got ''; expected a whole num"),
        (1, 1, SLURM | {"SLURM_NTASKS": "4(x2)"}, "is no number (SLURM_NTASKS); got '4(x2)'"),
    ],
)
def test_disagreement(devices: int, nodes: int, environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_agreement(devices, nodes, environment)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("first", "environment"),
    [
        (True, {}),
        (True, TORCHRUN | {"SLURM_PROCID": "1"}),
        (False, TORCHRUN | {"RANK": "4"}),
        (True, SLURM),
        (False, SLURM | {"SLURM_PROCID": "2"}),
        (False, LIGHTNING),
    ],
)
def test_one_rank_reports_for_all(first: bool, environment: dict[str, str]) -> None:
    assert is_first_rank(environment) is first
