"""Conversion of picture files of unknown origin to square RGB images, and of these to bytes.

`ernie_vilg.data.batches.pictures` decides which files are read and how unusual ones become RGB.
Then the largest centred square is cropped and resized.
"""

import io
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from data_pipelines.rejections import Reason, RejectedError
from ernie_vilg.data.batches.pictures import PictureSizeError, open_picture
from ernie_vilg.errors import InputError
from ernie_vilg.storage.json_files import open_regular

JPEG_QUALITY = 95
EXTENSIONS = {"png": "png", "jpeg": "jpg"}
"""Extension of a sample's picture by the image format."""
NUM_ENLARGED = "enlarged_pictures"
"""Name in the manifest's settings of the number of pictures smaller than `image_size`."""

_PNG = b"\x89PNG\r\n\x1a\n"


def image_settings(*, image_size: int, image_format: str) -> dict[str, Any]:
    """Return the settings of images that the manifest records."""
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
        max_pixels: largest width times height that is decoded.

    Returns:
        an RGB image of the file's size.

    Raises:
        RejectedError: the file cannot be read, is not a JPEG, PNG or WebP, is damaged, or has too
            many pixels.
    """
    try:
        with open_regular(path) as file:
            return _decode(file, path.name, max_pixels)
    except (OSError, InputError) as error:
        raise RejectedError(Reason.UNREADABLE_IMAGE, f"{path.name!r} ({error})") from error


def decode_image(content: bytes, name: str, *, max_pixels: int) -> Image.Image:
    """Decode the content of a file as an opaque image that stands upright.

    Args:
        content: the file's content.
        name: its name, for messages.
        max_pixels: largest width times height that is decoded.

    Returns:
        an RGB image of the file's size.

    Raises:
        RejectedError: it is not a JPEG, PNG or WebP, is damaged, or has too many pixels.
    """
    return _decode(io.BytesIO(content), name, max_pixels)


def _decode(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    try:
        return open_picture(file, lambda width, height: width * height <= max_pixels)
    except PictureSizeError as error:
        raise RejectedError(
            Reason.IMAGE_TOO_LARGE, f"{name!r} has {error}, at most {max_pixels} in all"
        ) from error
    except InputError as error:
        raise RejectedError(Reason.UNREADABLE_IMAGE, f"{name!r} ({error})") from error


def is_animated(content: bytes) -> bool:
    """Return whether a file is an animated PNG or WebP.

    Source: the acTL chunk of APNG precedes the pixels (PNG, third edition, section 11.3.5); bit 1
    of the flags in WebP's extended header (RFC 9649, section 2.7).
    """
    if content.startswith(_PNG):
        return b"acTL" in content[: content.find(b"IDAT")]
    is_extended_webp = content[:4] == b"RIFF" and content[8:16] == b"WEBPVP8X"
    return is_extended_webp and len(content) > 20 and bool(content[20] & 2)


def crop_and_resize(image: Image.Image, image_size: int) -> Image.Image:
    """Return the image's largest centred square at another size.

    One step crops and resizes, so that a strip of 100,000 x 1 pixels never becomes a huge image in
    between.

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
