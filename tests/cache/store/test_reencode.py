"""Stores whose features were encoded again."""

from pathlib import Path

import pytest
import torch

from cache.dumping.verify import verify
from cache.errors import ConfigError, MismatchError, UnsealedError
from cache.spec import CodecSpec
from cache.store.codec import encode
from cache.store.distortion import Distortion, measure
from cache.store.reader import TeacherCache
from cache.store.reencode import reencode
from tests.factories.stores import fill, make_spec, make_store, make_tokens, open_writer

GOLDEN = Path(__file__).parent.parent.parent / "data"
COARSE = "layers.head.target_sqnr_db=26"


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three samples in shards of one."""
    layers = make_spec(make_tokens(3)).layers
    return make_store(tmp_path_factory.mktemp("small") / "teacher.zarr", count=3, size=1, layers=layers, head_maps={})


def test_features_are_encoded_again_and_all_else_stays(tmp_path: Path) -> None:
    source = TeacherCache(GOLDEN / "store-v2")
    report = reencode(source.path, tmp_path / "out", [COARSE, "layers.backbone1.kind=signed"])
    assert verify(tmp_path / "out").damage == ()
    found = TeacherCache(tmp_path / "out")
    codec = CodecSpec(target_sqnr_db=26, min_sqnr_db=23)
    assert found.spec.layer("head").codec == codec
    lost = Distortion()
    for token in source.tokens:
        ours, theirs = found[token], source[token]
        values = theirs.features["head"].decode()
        expected = encode(values, codec)
        lost = sum(measure(values, expected), start=lost)
        assert torch.equal(ours.features["head"].values, expected.values)
        assert torch.equal(ours.features["head"].scale, expected.scale)
        assert ours.features["backbone1"].values.dtype == torch.int8
        for layer in ("backbone0", "backbone2"):
            assert torch.equal(ours.features[layer].values, theirs.features[layer].values)
        assert torch.equal(ours.heatmap, theirs.heatmap)
        assert torch.equal(ours.view_matrix, theirs.view_matrix)
        assert all(torch.equal(ours.head_maps[name], maps) for name, maps in theirs.head_maps.items())
        points = zip(found.camera_points(token), source.camera_points(token), strict=True)
        assert all((one == other).all() for one, other in points)
    stored = found.attributes.codec_report
    assert stored["head"].sqnr_db == pytest.approx(lost.sqnr_db) == report.sqnr_db["head"]
    assert stored["backbone0"] == source.attributes.codec_report["backbone0"]
    assert report.sqnr_db.keys() == {"head", "backbone1"}
    assert found.attributes.teacher_file == source.attributes.teacher_file


def test_the_spec_names_what_a_store_was_derived_from(small_store: Path, tmp_path: Path) -> None:
    source = TeacherCache(small_store)
    reencode(small_store, tmp_path / "first", ["layers.head.target_sqnr_db=34"])
    reencode(tmp_path / "first", tmp_path / "second", [COARSE])
    second = TeacherCache(tmp_path / "second").spec.lineage
    assert second is not None
    (first,) = second.sources
    assert first.fingerprint == TeacherCache(tmp_path / "first").spec.fingerprint
    assert first.codecs["head"].target_sqnr_db == 34
    assert first.sqnr_db["backbone1"] == source.attributes.codec_report["backbone1"].sqnr_db
    assert first.lineage is not None
    assert first.lineage.sources[0].fingerprint == source.spec.fingerprint
    assert dict(TeacherCache(tmp_path / "second").spec.facts)["derived"] == f"encode of {first.fingerprint[:12]}"
    assert "lineage" in str(TeacherCache(tmp_path / "second").spec.differences(source.spec))
    assert source.spec.lineage is None


def test_a_derivation_goes_on_where_it_stopped(small_store: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 3
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reencode(small_store, tmp_path / "out", [COARSE], stop)
    with pytest.raises(UnsealedError):
        TeacherCache(tmp_path / "out")
    assert reencode(small_store, tmp_path / "out", [COARSE]).written == 2
    assert reencode(small_store, tmp_path / "out", [COARSE]).written == 0
    reencode(small_store, tmp_path / "whole", [COARSE])
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / name).rglob("c.*")} for name in ("out", "whole"))
    assert one == other
    with pytest.raises(MismatchError, match=r"target_sqnr_db: stored 26\.0, expected 30\.0"):
        reencode(small_store, tmp_path / "out", ["layers.head.target_sqnr_db=30"])


def test_a_store_of_version_1_becomes_one_of_version_2(tmp_path: Path) -> None:
    reencode(GOLDEN / "store-v1", tmp_path / "out", ["zstd_level=3"])
    assert verify(tmp_path / "out").format_version == 2
    old, new = TeacherCache(GOLDEN / "store-v1"), TeacherCache(tmp_path / "out")
    assert new.attributes.codec_report == old.attributes.codec_report
    for token in old.tokens:
        assert torch.equal(new[token].features["head"].values, old[token].features["head"].values)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("layers.head.target_sqnr_db=90", r"more exactly than it is stored .*got 90 dB; expected at most \d\d\.\d dB"),
        ("layers.hed.bits=6", "other layers .*hed.*cli copy --layers"),
        ("layers.head.bts=6", "did you mean 'bits'"),
        ("layers.head=3", "layers.head: Input should be a valid dictionary"),
        ("zstd_level=40", "less than or equal to 19"),
        ("layers.head.bits=8", "nothing to derive"),
        ("layers.head.bits=4", "loses more of a layer than its budget"),
    ],
)
def test_refusals(small_store: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reencode(small_store, tmp_path / "out", [override])


def test_an_unfinished_store_is_refused(tmp_path: Path) -> None:
    with open_writer(tmp_path / "unsealed") as writer:
        fill(writer, [0])
    with pytest.raises(UnsealedError):
        reencode(tmp_path / "unsealed", tmp_path / "out", [COARSE])
