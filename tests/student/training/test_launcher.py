import pytest

from cache.errors import ConfigError
from student.training.launcher import require_agreement

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "GROUP_WORLD_SIZE": "1"}
SLURM = {"SLURM_JOB_NAME": "train", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
LIGHTNING = {"LOCAL_RANK": "1", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "4", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("devices", "environment"),
    [
        (1, {}),
        (2, {}),
        (2, LIGHTNING),
        (2, TORCHRUN | {"WORLD_SIZE": "2"}),
        (1, SLURM | {"SLURM_NTASKS": "1"}),
        (4, SLURM | {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}),
        (2, SLURM | {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "interactive"}),
        (2, {"WORLD_SIZE": "1"}),
        (2, {"OMPI_COMM_WORLD_SIZE": "1"}),
    ],
)
def test_agreement(devices: int, environment: dict[str, str]) -> None:
    require_agreement(devices, environment)


@pytest.mark.parametrize(
    ("devices", "environment", "message"),
    [
        (
            2,
            SLURM | {"SLURM_NTASKS": "1"},
            "the launcher and the configuration start different numbers of processes (SLURM_NTASKS, training.devices); "
            "got 1 on 1 machines by SLURM, 2 by training.devices; expected the same number, on one machine. Set "
            "training.devices=1, or start the job with --nodes=1 --ntasks-per-node=2, and this command in it with "
            "srun.",
        ),
        (
            1,
            TORCHRUN | {"WORLD_SIZE": "2"},
            "the launcher and the configuration start different numbers of processes (WORLD_SIZE, training.devices); "
            "got 2 on 1 machines by torchrun, 1 by training.devices; expected the same number, on one machine. Set "
            "training.devices=2, or start torchrun with --nnodes 1 --nproc-per-node 1.",
        ),
        (1, SLURM | {"SLURM_NTASKS": "4"}, "got 4 on 1 machines by SLURM, 1 by training.devices"),
        (4, SLURM | {"SLURM_NTASKS": "4"}, "Ask for --ntasks-per-node=4 in place of --ntasks=4."),
        (
            4,
            TORCHRUN | {"WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2"},
            "expected the same number, on one machine. Start torchrun with --nnodes 1 --nproc-per-node 4.",
        ),
        (2, {"OMPI_COMM_WORLD_SIZE": "2"}, "one process, which starts the others itself. Start the command once, by"),
        (2, {"WORLD_SIZE": "2", "RANK": "1"}, "got 2 on 1 machines by WORLD_SIZE's launcher"),
        (2, {"LOCAL_RANK": "0"}, "got 1 on 1 machines by LOCAL_RANK's launcher, 2 by training.devices"),
        (1, {"RANK": ""}, "an environment variable of a launcher is no number (RANK); got ''; expected a whole number"),
        (1, SLURM | {"SLURM_NTASKS": "4(x2)"}, "is no number (SLURM_NTASKS); got '4(x2)'"),
    ],
)
def test_disagreement(devices: int, environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_agreement(devices, environment)
    assert message in str(caught.value)
