import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cache.errors import DataError
from cache.nuscenes.frame import Camera
from cache.nuscenes.frames import Frames
from student.config.student import ImageConfig
from student.data.image_augment import image_matrix, warp_image
from student.data.images import read_image


@pytest.fixture
def camera(made_frames: Frames) -> Camera:
    return made_frames[0].cameras[1]


def drawn(camera: Camera, tmp_path: Path, height: int, width: int) -> Camera:
    """A JPEG of smooth waves and hard-edged blocks, that is one like nuScenes' at 900 x 1600."""
    v, u = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(u / a) * np.cos(v / b) for a, b in ((40, 25), (17, 90), (130, 31))]
    pixels = np.stack(waves, axis=-1)
    pixels[(u // 200 + v // 150) % 3 == 0] = (20, 200, 90)
    path = tmp_path / "drawn.jpg"
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=92)
    return replace(camera, path=path, size=(height, width))


def test_a_reduced_image_keeps_its_geometry(camera: Camera) -> None:
    full, identity = read_image(camera, scale=1.0)
    half, to_original = read_image(camera, scale=0.5)
    np.testing.assert_allclose(identity, np.eye(3))
    assert half.shape == (72, 128, 3)
    np.testing.assert_allclose(to_original @ (0, 0, 1), (0.5, 0.5, 1))
    blocks = full.reshape(72, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.abs(blocks - half).mean() < 2


def test_nuscenes_images_are_decoded_at_half_their_size(camera: Camera, tmp_path: Path) -> None:
    pixels, to_original = read_image(drawn(camera, tmp_path, 900, 1600), scale=704 / 1600)
    assert pixels.shape == (450, 800, 3)
    np.testing.assert_array_equal(to_original, [[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])


def test_no_pixel_is_enlarged(camera: Camera, tmp_path: Path) -> None:
    assert read_image(drawn(camera, tmp_path, 900, 1600), scale=0.51)[0].shape == (900, 1600, 3)


def test_an_odd_size_is_halved_exactly(camera: Camera, tmp_path: Path) -> None:
    """801 columns stand for 1601, and are still 2 pixels apart."""
    pixels, to_original = read_image(drawn(camera, tmp_path, 901, 1601), scale=0.44)
    assert pixels.shape == (451, 801, 3)
    np.testing.assert_array_equal(to_original, [[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])


def test_reduced_decoding_agrees_with_full_decoding_and_resizing(camera: Camera, tmp_path: Path) -> None:
    """The network's input of evaluation: areas of the full image, averaged, against the half-size one, warped."""
    source = drawn(camera, tmp_path, 900, 1600)
    config = ImageConfig(size=(256, 704))
    matrix = image_matrix(config, source.size, rng=None)
    half, to_original = read_image(source, scale=0.44)
    full, _ = read_image(source, scale=1.0)
    resized = cv2.resize(full, (704, 396), interpolation=cv2.INTER_AREA)[-256:]
    difference = np.abs(warp_image(half, matrix @ to_original, config.size).astype(float) - resized)
    assert difference.mean() < 1.0
    # Half a pixel of the input off, and it is several times as much.
    shifted = warp_image(half, np.array([[1, 0, 0.5], [0, 1, 0], [0, 0, 1]]) @ matrix @ to_original, config.size)
    assert np.abs(shifted.astype(float) - resized).mean() > 2 * difference.mean()


def broken(camera: Camera, tmp_path: Path, content: bytes) -> Camera:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    return replace(camera, path=path)


def test_a_truncated_image_is_refused(camera: Camera, tmp_path: Path) -> None:
    whole = camera.path.read_bytes()
    with pytest.raises(DataError, match=r"a camera image is corrupt \(.*image.jpg\); got .*truncated"):
        read_image(broken(camera, tmp_path, whole[: len(whole) // 2]), 0.5)


def test_a_file_that_is_no_image_is_refused(camera: Camera, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a camera image is corrupt"):
        read_image(broken(camera, tmp_path, b"not a picture"), 0.5)


def test_a_missing_image_is_named(camera: Camera, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a camera image is missing \(.*gone.jpg\)"):
        read_image(replace(camera, path=tmp_path / "gone.jpg"), 0.5)


def test_an_image_of_another_size_is_refused(camera: Camera, tmp_path: Path) -> None:
    shutil.copy(camera.path, tmp_path / "image.jpg")
    with pytest.raises(DataError, match=r"got 256 x 144; expected 128 x 72"):
        read_image(replace(camera, path=tmp_path / "image.jpg", size=(72, 128)), 0.5)


def test_sixteen_bits_are_refused(camera: Camera, tmp_path: Path) -> None:
    """Pillow would cut them off at 255, which is white."""
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((144, 256), 20_000, dtype=np.uint16)).save(path)
    with pytest.raises(DataError, match=r"more than 8 bits a pixel and colour .*got PNG, mode I;16; expected 8 bits"):
        read_image(replace(camera, path=path), scale=1.0)


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_a_file_that_claims_many_pixels_is_not_decoded(camera: Camera, tmp_path: Path, side: int) -> None:
    """A PNG of a few bytes: its header alone."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(100))
    path = tmp_path / "image.png"
    packed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    with pytest.raises(DataError, match=r"another size than sample_data\.json says"):
        read_image(replace(camera, path=path), scale=1.0)
