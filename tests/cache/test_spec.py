import pytest
from pydantic import ValidationError

from cache.errors import ConfigError, MismatchError
from cache.geometry.views import DrawnViews
from cache.spec import CacheSpec, CodecSpec, DataIdentity, PointPipeline
from tests.factories.stores import make_spec, make_tokens


@pytest.fixture
def spec() -> CacheSpec:
    return make_spec(make_tokens(3))


def test_the_fingerprint_of_a_known_spec(spec):
    assert spec.fingerprint == "24c0f6b4c93d447cb8f85d38b2abbb5571931cbf3e742bd79c82dd6378b716f2"


def test_the_fingerprint_survives_json(spec):
    assert CacheSpec.model_validate_json(spec.model_dump_json()).fingerprint == spec.fingerprint


def test_everything_that_decides_the_content_changes_the_fingerprint(spec):
    identity = spec.teacher
    others = [
        spec.model_copy(update={"teacher": identity.model_copy(update={"weights_sha256": "c" * 64})}),
        spec.model_copy(update={"teacher": identity.model_copy(update={"config_sha256": "c" * 64})}),
        spec.model_copy(update={"teacher": identity.model_copy(update={"tasks": (("car",),)})}),
        spec.model_copy(update={"points": PointPipeline(past_sweeps=0)}),
        spec.model_copy(update={"data": DataIdentity.of("v1.0-mini", ("mini_val",), make_tokens(3))}),
        spec.model_copy(update={"data": DataIdentity.of("v1.0-mini", ("mini_train",), make_tokens(3)[::-1])}),
        spec.model_copy(update={"data": DataIdentity.of("v1.0-mini", ("mini_train",), make_tokens(3), "roof")}),
        spec.model_copy(update={"canvas_grid": spec.canvas_grid.model_copy(update={"frame": "ego"})}),
        spec.model_copy(update={"layers": spec.layers[:1]}),
        spec.model_copy(update={"layers": (spec.layers[0].model_copy(update={"codec": CodecSpec(bits=7)}),)}),
        spec.model_copy(update={"head_maps": {}}),
        spec.model_copy(update={"views": ("canonical", "flip_y")}),
        spec.model_copy(update={"views": ("canonical", "drawn0"), "drawn": DrawnViews()}),
        spec.model_copy(update={"views": ("canonical", "drawn0"), "drawn": DrawnViews(seed=1)}),
    ]
    prints = {each.fingerprint for each in others}
    assert len(prints) == len(others)
    assert spec.fingerprint not in prints


def test_differences_by_hand(spec):
    wanted = {"points": {"past_sweeps": 4}, "views": ["canonical"], "heatmap_grid": {"x_range_m": (-8.0, 9.0)}}
    assert spec.differences(wanted) == [
        "points.past_sweeps: stored 9, expected 4",
        "heatmap_grid.x_range_m[1]: stored 8.0, expected 9.0",
    ]


def test_no_differences_from_itself(spec):
    assert spec.differences(spec) == []
    spec.require(spec, "here")


def test_a_key_that_the_store_lacks_differs(spec):
    assert spec.differences({"head_maps": {"rot": 2}}) == ["head_maps.rot: stored None, expected 2"]


def test_another_number_of_layers_differs_as_a_whole(spec):
    (line,) = spec.differences(spec.model_copy(update={"layers": spec.layers[:1]}))
    assert line.startswith("layers: stored [")


def test_the_refusal_lists_every_difference(spec):
    with pytest.raises(MismatchError) as caught:
        spec.require({"points": {"past_sweeps": 4}, "teacher": {"name": "large"}}, "teacher.zarr")
    message = str(caught.value)
    assert "the store is not the one expected" in message
    assert "\n  points.past_sweeps: stored 9, expected 4" in message
    assert "\n  teacher.name: stored 'small', expected 'large'" in message
    assert "teacher.zarr" in message


def test_a_layer_by_name(spec):
    assert spec.layer("backbone0").channels == 4
    with pytest.raises(MismatchError, match="got head, backbone0, backbone1; expected neck"):
        spec.layer("neck")


def test_classes_are_the_tasks_in_order(spec):
    assert spec.teacher.classes == ("car", "pedestrian", "traffic_cone")


@pytest.mark.parametrize(
    ("kind", "bits", "levels", "dtype"),
    [
        ("unsigned", 8, 255, "uint8"),
        ("unsigned", 4, 15, "uint8"),
        ("signed", 8, 127, "int8"),
        ("signed", 5, 15, "int8"),
    ],
)
def test_codes(kind, bits, levels, dtype):
    codec = CodecSpec(kind=kind, bits=bits)
    assert (codec.levels, codec.dtype) == (levels, dtype)


@pytest.mark.parametrize("values", [{"bits": 3}, {"bits": 9}, {"companding": 0}, {"companding": 1.5}, {"kind": "int4"}])
def test_codecs_out_of_range(values):
    with pytest.raises(ValidationError):
        CodecSpec(**values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_of_a_spec_are_finite(value):
    with pytest.raises(ConfigError, match="finite"):
        CodecSpec.parse({"min_sqnr_db": value}, "here")


@pytest.mark.parametrize("name", ["../../x", "/etc", "a/b", "", ".hidden", "a\x1b[2J", "x" * 101])
def test_names_of_layers_are_names_of_folders(spec, name):
    values = spec.model_dump(mode="json")
    values["layers"][0]["name"] = name
    with pytest.raises(ConfigError, match=r"layers\.0\.name"):
        CacheSpec.parse(values, "here")


@pytest.mark.parametrize("name", ["head", "head_scale"])
def test_layers_have_different_names(spec, name):
    values = spec.model_dump(mode="json")
    values["layers"][1]["name"] = name
    with pytest.raises(ConfigError, match="two layers have the same name"):
        CacheSpec.parse(values, "here")


@pytest.mark.parametrize("samples", [-1, 10**30, 0.5])
def test_numbers_of_samples_that_are_none(spec, samples):
    values = spec.model_dump(mode="json")
    values["data"]["samples"] = samples
    with pytest.raises(ConfigError, match=r"data\.samples"):
        CacheSpec.parse(values, "here")
