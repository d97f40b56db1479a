"""What several rooms' tests share."""

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import pytest
import typer
from jaxtyping import install_import_hook

# Shapes and types in signatures are checked while testing; an int is accepted as a float (PEP 484).
install_import_hook(["cache", "student", "demo"], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import cli  # noqa: E402
from cache.nuscenes.frames import Frames  # noqa: E402
from demo.world.config import WorldConfig  # noqa: E402
from demo.world.make import make_world  # noqa: E402

ONE_FRAME = Path(__file__).parent.parent.parent / "shared" / "nuscenes-one-frame"


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indexes of the tests' tables do not stay in the user's cache; matplotlib's list of fonts, slow to make, does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_root() -> Path:
    """The real nuScenes key frame, which is not part of the project."""
    if not ONE_FRAME.is_dir():
        pytest.skip("the real nuScenes frame is not here (non-commercial licence: it is not part of the project)")
    return ONE_FRAME


@pytest.fixture(scope="session")
def real_frames(real_root: Path) -> Frames:
    """The real key frame as the only frame of mini_train."""
    return Frames(root=real_root, version="v1.0-mini", splits=("mini_train",))


@pytest.fixture(scope="session")
def made_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny made-up world: two frames of mini_train, two of mini_val."""
    root = tmp_path_factory.mktemp("made") / "world"
    size = WorldConfig(
        train_scenes=1, val_scenes=1, key_frames=2, past_sweeps=1, image_size=(144, 256), lidar_azimuths=360
    )
    make_world(root, size, processes=1)
    return root


@pytest.fixture(scope="session")
def made_frames(made_root: Path) -> Frames:
    """The two frames of mini_train of the made-up world."""
    return Frames(root=made_root, version="v1.0-mini", splits=("mini_train",))


@pytest.fixture(scope="session")
def parse_cli() -> Callable[[str], None]:
    """Parse a line of a shell as a call of the `cli`, and run nothing; what does not parse raises."""
    commands = typer.main.get_command(cli.app)

    def parse(line: str) -> None:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "cli"
        options = {name for option in commands.params for name in option.opts} | {"--help"}
        while arguments and arguments[0].startswith("-"):
            assert arguments[0] in options, f"unknown option {arguments[0]}"
            arguments = arguments[1:]
        if arguments:
            name, *rest = arguments
            assert name in commands.commands, f"unknown command {name}"
            if "--help" not in rest:
                commands.commands[name].make_context(name, rest)

    return parse
