"""Decode a camera's JPEG, no larger than needed."""

import errno

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from cache.errors import DataError
from cache.nuscenes.frame import EXCLUDE, SKIP_MISSING, Camera
from student.data.image_augment import reduced_pixels


def read_image(camera: Camera, scale: float) -> tuple[UInt8[np.ndarray, "H W 3"], Float[np.ndarray, "3 3"]]:
    """Decode an image, at 1/2, 1/4 or 1/8 of its size where the target is that much smaller.

    The JPEG decoder leaves the high frequencies out, which halves the time for 1600 x 900 -> 704 x 256 and smooths
    where sampling the full image would alias. OpenCV decodes to the same pixels a little faster, but takes a file that
    is cut short for a whole one.

    Args:
        scale: target size / original size.

    Returns:
        RGB pixels, and the matrix that takes them to the original's pixels.

    Raises:
        DataError: the file is missing, corrupt, cut short, of another size than in the tables, or has more than 8 bits.
    """
    height, width = camera.size
    try:
        with Image.open(camera.path) as image:
            if image.size != (width, height):  # before a decoder makes room for what the file claims
                raise _other_size(camera, image.size)
            if image.mode.startswith(("I", "F")):  # which `convert` cuts off at 255
                raise DataError(
                    "a camera image has more than 8 bits a pixel and colour",
                    where=camera.path,
                    got=f"{image.format}, mode {image.mode}",
                    expected="8 bits, as in nuScenes' JPEG files",
                    cure="Convert the images to 8 bits, with the brightness that a viewer would show",
                )
            image.draft("RGB", (int(scale * width), int(scale * height)))
            pixels = np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise DataError("a camera image is missing", where=camera.path, cure=SKIP_MISSING) from None
    except Image.DecompressionBombError:
        raise _other_size(camera, "more pixels than any camera has") from None
    except (OSError, SyntaxError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        raise DataError("a camera image is corrupt", where=camera.path, got=error, cure=EXCLUDE) from None
    # A block of 8 x 8 pixels becomes one of 8 / factor; an odd side is rounded up, so the sides' ratio is not exact.
    factor = round(width / pixels.shape[1])
    return pixels, reduced_pixels(factor, factor)


def _other_size(camera: Camera, got: tuple[int, int] | str) -> DataError:
    height, width = camera.size
    return DataError(
        "a camera image has another size than sample_data.json says",
        where=camera.path,
        got=got if isinstance(got, str) else f"{got[0]} x {got[1]}",
        expected=f"{width} x {height}",
        cure="Use the original images, not resized ones, or write their size into width and height",
    )


cv2.setNumThreads(0)  # Loader workers are the parallelism; OpenCV's own threads also break after a fork.
