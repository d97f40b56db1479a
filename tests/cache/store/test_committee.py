from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import cli
from cache.dumping.run import dump
from cache.dumping.verify import verify
from cache.errors import ConfigError, MismatchError
from cache.store.committee import _nearest_rotation, average, mean_and_variance
from cache.store.reader import TeacherCache
from tests.factories.stores import SmallFrames, SmallTeacher, make_config


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three teachers' stores of the same five frames; the third's shards are of another size."""
    base = tmp_path_factory.mktemp("members")
    frames = SmallFrames(root=base / "points", count=5)
    for seed in range(3):
        config = make_config(samples_per_shard=2 if seed == 2 else 4)
        dump(config, frames, SmallTeacher(seed=seed), base / f"{seed}.zarr")
    return [base / f"{seed}.zarr" for seed in range(3)]


def test_the_mean_by_its_definition(stores: list[Path], tmp_path: Path) -> None:
    report = average(stores, tmp_path / "mean.zarr", align=False)
    members, mean = [TeacherCache(store) for store in stores], TeacherCache(tmp_path / "mean.zarr")
    assert (report.samples, report.written) == (5, 2)
    assert verify(mean.path).damage == ()
    for token in mean.tokens:
        found, each = mean[token], [member[token] for member in members]
        heatmaps = np.mean([one.heatmap.numpy().astype(float) for one in each], axis=0)
        assert np.array_equal(found.heatmap.numpy(), np.round(heatmaps))
        regs = np.mean([one.head_maps["reg"].float().numpy() for one in each], axis=0)
        np.testing.assert_allclose(found.head_maps["reg"].float().numpy(), regs, atol=2e-3)
        assert torch.equal(found.canvas_mask, each[0].canvas_mask)
        features = np.stack([one.features["head"].decode().numpy() for one in each])
        largest_step = found.features["head"].scale.max().item()
        np.testing.assert_allclose(found.features["head"].decode().numpy(), features.mean(0), atol=largest_step)
        expected = features.var(axis=0).mean(axis=1) / np.square(features).mean()
        variance = found.features["head_variance"].decode().numpy()[:, 0]
        np.testing.assert_allclose(variance, expected, rtol=2e-3, atol=1e-6)


def test_the_mean_says_of_what_it_was_made(stores: list[Path], tmp_path: Path) -> None:
    average(stores[:2], tmp_path / "mean.zarr")
    spec = TeacherCache(tmp_path / "mean.zarr").spec
    assert spec.lineage is not None
    assert spec.lineage.operation == "aligned mean"
    prints = tuple(TeacherCache(store).spec.fingerprint for store in stores[:2])
    assert tuple(source.fingerprint for source in spec.lineage.sources) == prints
    assert spec.teacher.name == "mean of 2: small"
    assert [layer.name for layer in spec.layers] == ["head", "backbone0", "head_variance", "backbone0_variance"]
    weights = [TeacherCache(store).head_weights() for store in (stores[0], tmp_path / "mean.zarr")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert average(stores[:2], tmp_path / "mean.zarr").written == 0


def test_the_rotation_between_channels_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(5, 200, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))
    theirs = rotation.T @ ours
    torch.testing.assert_close(_nearest_rotation(ours @ theirs.T), rotation.float())


def test_teachers_that_differ_by_a_rotation_have_no_variance() -> None:
    ours = torch.rand(1, 3, 4, 5)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    theirs = torch.einsum("cd,vdhw->vchw", rotation.T, ours)
    mean, variance = mean_and_variance([ours, theirs], [torch.eye(3), rotation], positive=True)
    torch.testing.assert_close(mean, ours)
    assert variance.max().item() == pytest.approx(0, abs=1e-9)
    _, apart = mean_and_variance([ours, theirs], None, positive=False)
    assert apart.min() > 0


def test_what_is_refused(stores: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "mean.zarr"
    for wrong in (stores[:1], [stores[0], stores[0]], []):
        with pytest.raises(ConfigError, match=r"a committee has two or more different teachers .--mean."):
            average(wrong, out)
    frames = SmallFrames(root=tmp_path / "points", count=3)
    dump(make_config(), frames, SmallTeacher(seed=5), tmp_path / "other.zarr")
    with pytest.raises(
        MismatchError, match=r"(?s)not alike:\n  data.samples: 5, here 3\n.*same frames, layers and views"
    ):
        average([stores[0], tmp_path / "other.zarr"], out)
    assert not out.exists()


def test_the_command(stores: list[Path], tmp_path: Path) -> None:
    run = CliRunner().invoke
    made = run(
        cli.app, ["derive", *map(str, stores[:2]), str(tmp_path / "mean.zarr"), "--mean", "--no-align", "--json"]
    )
    assert made.exit_code == 0
    assert TeacherCache(tmp_path / "mean.zarr").spec.lineage.operation == "mean"
    for arguments in ([*stores[:2], "out"], [stores[0], "out", "--mean"]):
        refused = run(cli.app, ["derive", *map(str, arguments)])
        assert refused.exit_code == 1
