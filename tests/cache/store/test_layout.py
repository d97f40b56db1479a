from cache.store.layout import sample_arrays
from tests.factories.stores import make_spec, make_tokens


def test_names_and_shapes_of_arrays():
    arrays = sample_arrays(make_spec(make_tokens(10)))
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        "features/head": ("uint8", (6, 6, 8)),
        "features/head_scale": ("float32", (6,)),
        "features/backbone0": ("int8", (4, 12, 16)),
        "features/backbone0_scale": ("float32", (4,)),
        "features/backbone1": ("float16", (3, 6, 8)),
        "heatmap": ("uint8", (3, 6, 8)),
        "canvas_mask": ("uint8", (12, 2)),
        "boxes_reg": ("float16", (2, 2, 6, 8)),
        "boxes_vel": ("float16", (2, 2, 6, 8)),
    }
    assert arrays["features/head"].key(3) == "features/head/c.3.0.0.0.0"
    assert arrays["features/head_scale"].key(0) == "features/head_scale/c.0.0.0"
