"""Files of unknown origin to square RGB images, and those to bytes.

Only JPEG, PNG and WebP are opened, whatever a file's name says. The size is checked before
any pixel is decoded, so that a small file cannot unfold into gigabytes. Then: the EXIF
orientation is applied, transparency is composited on white, the largest centred square is
cut out and resized. Of an animation the first frame is taken. Colour profiles are not
applied: values are read as sRGB.

Source: ours.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data_pipelines.sources import Reason, RejectedError

READABLE_FORMATS = ("JPEG", "PNG", "WEBP")
JPEG_QUALITY = 95

# What Pillow raises on damaged files, beside its own two decompression bomb classes.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def image_settings(*, image_size: int, image_format: str) -> dict[str, Any]:
    """Return what the manifest records of how images were made."""
    encoding = {"jpeg_quality": JPEG_QUALITY} if image_format == "jpeg" else {}
    return {
        "image_size": image_size,
        "crop": "center",
        "resample": "lanczos",
        "background": "white",
        "image_format": image_format,
        **encoding,
    }


def load_image(path: Path, *, max_pixels: int) -> Image.Image:
    """Decode a file as an opaque image that stands upright.

    Args:
        path: the file.
        max_pixels: largest image decoded, width times height.

    Returns:
        an RGB image of the file's size.

    Raises:
        RejectedError: the file is no JPEG, PNG or WebP, is damaged, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=READABLE_FORMATS) as image:
                _check_pixels(image, max_pixels)
                image.load()
                return on_white(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise RejectedError(Reason.IMAGE_TOO_LARGE, f"{path.name!r} ({error})") from error
    except _DAMAGE as error:
        raise RejectedError(Reason.UNREADABLE_IMAGE, f"{path.name!r} ({error})") from error


def crop_and_resize(image: Image.Image, image_size: int) -> Image.Image:
    """Return the image's largest centred square at another size.

    The same as resizing the shorter side and cutting the middle, in one step: a strip of
    100,000 x 1 pixels never becomes huge on the way.

    Args:
        image: RGB, any size.
        image_size: width and height of the result, pixels.
    """
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize(
        (image_size, image_size),
        Image.Resampling.LANCZOS,
        box=(left, top, left + side, top + side),
    )


def image_bytes(image: Image.Image, image_format: str) -> bytes:
    """Encode an image as "png" or "jpeg", without metadata."""
    buffer = io.BytesIO()
    if image_format == "jpeg":
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise RejectedError(
            Reason.IMAGE_TOO_LARGE,
            f"{image.width} x {image.height} pixels, at most {max_pixels} in all",
        )


def on_white(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB, transparency composited on white."""
    if image.mode.startswith("I"):
        # 16 bits per pixel: Pillow would clip to 255 where the upper byte is meant.
        upper_byte = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(upper_byte).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    with_alpha = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, with_alpha).convert("RGB")
