"""Bytes of unknown origin become opaque RGB pictures, or are refused.

Only JPEG, PNG and WebP are opened, whatever the file's name says. The size is checked before any
pixel is decoded, so that a small file cannot unfold into gigabytes. Then the EXIF orientation is
applied, transparency composited on white, the upper 8 of 16 bits taken, and the first frame of an
animation. Colour profiles are not applied: values are read as sRGB. Unreadable metadata is ignored:
a picture whose pixels decode is used.

The same rules hold for the files that shards are built from and for pictures in shards.
"""

import io
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ernie_vilg.data.shards.damage import DamagedSampleError
from ernie_vilg.data.shards.open_shards import KEY, OpenShard, Sample
from ernie_vilg.errors import InputError

READABLE_FORMATS = ("JPEG", "PNG", "WEBP")
PICTURE_MEMBERS = ("png", "jpg", "jpeg", "webp")
"""Extensions of pictures in shards; a sample's picture is its first member among them."""

Pictures = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION_CHUNKS = (
    {b"eXIf", b"iTXt", b"tEXt", b"zTXt"},
    {b"eXIf", b"iTXt"},
    {b"eXIf"},
)
"""Chunks of metadata with the orientation, kept in the second, third and fourth attempt."""
_MAX_RETRY_BYTES = 64 << 20
"""Largest file that is decoded again without its metadata."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Turns that make a picture upright, by its EXIF orientation."""

_SIGNATURES = (
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\3\4", "a zip file"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (4, b"ftypavi", "an AVIF"),
    (4, b"ftyp", "a HEIC or another ISO media file"),
)
"""Offset and first bytes of the files that people take for pictures, and their names."""


class UnreadablePictureError(InputError):
    """The file is no JPEG, PNG or WebP, or is damaged; the message describes it."""


class PictureSizeError(InputError):
    """The caller refuses the picture's size; the message has the size."""


def open_picture(file: BinaryIO, is_right_size: Callable[[int, int], bool]) -> Image.Image:
    """Decode a file as an opaque, upright image.

    Args:
        file: content of the file, seekable.
        is_right_size: gets width and height in pixels, before the EXIF orientation is applied and
            before any pixel is decoded.

    Returns:
        an RGB image.

    Raises:
        UnreadablePictureError: the file is no JPEG, PNG or WebP, or is damaged.
        PictureSizeError: `is_right_size` refuses the picture, or it has more pixels than Pillow
            opens.
    """
    try:
        return _decode(file, is_right_size)
    except UnreadablePictureError as error:
        for content in _without_metadata(file):
            try:
                return _decode(io.BytesIO(content), is_right_size)
            except UnreadablePictureError:
                continue  # the first error describes the file as it is
        raise error


def _decode(file: BinaryIO, is_right_size: Callable[[int, int], bool]) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Warnings about unused metadata, and about sizes, which are checked below.
            warnings.simplefilter("ignore")
            with Image.open(file, formats=READABLE_FORMATS) as image:
                # A wrong size is raised below: here it would be reported as damage.
                width, height = image.size
                if is_right_size(width, height):
                    _halve_transparency(image)
                    image.load()
                    return on_white(_upright(image))
    except Image.DecompressionBombError as error:
        raise PictureSizeError(f"more pixels than Pillow opens ({error})") from error
    except MemoryError:  # the size is right, so the machine lacks memory
        raise
    except UnidentifiedImageError as error:
        # Pillow's own message has the address of the file object, another one at every run.
        raise UnreadablePictureError(
            f"it is {_kind(file)}; JPEG, PNG and WebP are read: convert it"
        ) from error
    except Exception as error:  # Pillow raises errors of any kind for damaged bytes
        raise UnreadablePictureError(f"{type(error).__name__}: {error}") from error
    raise PictureSizeError(f"{width} x {height} pixels")


def _kind(file: BinaryIO) -> str:
    file.seek(0)
    start = file.read(1024)
    if not start:
        return "empty"
    for offset, signature, name in _SIGNATURES:
        if start.startswith(signature, offset):
            return name
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "HTML, SVG or other XML"
    return f"no picture of a known format, and begins with the bytes {start[:8].hex(' ')}"


def _without_metadata(file: BinaryIO) -> Iterator[bytes]:
    """Yield the content of a PNG with less and less metadata; nothing for other formats.

    Pillow refuses a PNG for a comment with a wrong checksum. It reads the metadata of JPEG and WebP
    only on request.
    """
    file.seek(0)
    if file.read(len(_PNG)) != _PNG:
        return
    content = _PNG + file.read(_MAX_RETRY_BYTES)
    if len(content) <= _MAX_RETRY_BYTES:
        for kept in _ORIENTATION_CHUNKS:
            yield _PNG + b"".join(_chunks(content, kept))


def _chunks(content: bytes, kept: Collection[bytes]) -> Iterator[bytes]:
    """Yield the chunks of a PNG that hold its pixels, and the undamaged ones of these metadata."""
    start = len(_PNG)
    while start < len(content):
        name = content[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(content[start : start + 4])
        chunk = content[start:end]
        is_critical = name[:1].isupper() or name == b"tRNS"
        if is_critical or (name in kept and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])):
            yield chunk
        start = end


def _halve_transparency(image: Image.Image) -> None:
    """Reduce the 16-bit colour that means transparent to 8 bits, as Pillow reduces the pixels."""
    colour = image.info.get("transparency")
    if isinstance(colour, tuple) and "RGB;16B" in str(getattr(image, "tile", "")):
        # Colours that differ only in the lower bytes become transparent too.
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def on_white(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB, transparency composited on white."""
    if image.mode.startswith("I"):
        # 16 bits per pixel: Pillow would clip to 255 where the upper byte is meant.
        values = np.asarray(image).astype(np.int64)
        upper_byte = (values >> 8).clip(0, 255).astype(np.uint8)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            upper_byte[values == transparent] = 255
        return Image.fromarray(upper_byte).convert("RGB")
    if not image.has_transparency_data:
        # A copy of an RGB image would cost a tenth of a picture's time.
        return image if image.mode == "RGB" else image.convert("RGB")
    with_alpha = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, with_alpha).convert("RGB")


def upright_on_white(image: Image.Image) -> Image.Image:
    """Return an opened image as `open_picture` returns one: RGB, upright, on white."""
    return on_white(_upright(image))


@dataclass(frozen=True, kw_only=True)
class EncodedPicture:
    """A sample's picture, still encoded."""

    name: str
    """Name of the sample for messages."""
    content: bytes | None
    """Bytes of the picture's file; None where the sample has no picture."""

    def decode(self, image_size: int) -> Pictures:
        """Decode the picture.

        Args:
            image_size: pixels per side that the picture must have.

        Returns:
            uint8 [3, height, width], a read-only view with the channels of a pixel side by side;
            the caller copies it to its destination.

        Raises:
            DamagedSampleError: there is no picture ("no_image"), it cannot be read
                ("unreadable_image"), or is of another size ("image_size").
        """
        return _pixels(self.open(image_size))

    def open(self, image_size: int) -> Image.Image:
        """Return an RGB image; argument and errors as `decode`."""
        if self.content is None:
            raise DamagedSampleError(
                "no_image",
                f"{self.name} has none of {', '.join(PICTURE_MEMBERS)}: build the image shards "
                "again",
            )
        size = (image_size, image_size)
        try:
            return open_picture(io.BytesIO(self.content), lambda *found: found == size)
        except PictureSizeError as error:
            raise DamagedSampleError(
                "image_size",
                f"{self.name} has {error} where the manifest says {image_size} x {image_size}: "
                "build the image shards again",
            ) from error
        except UnreadablePictureError as error:
            raise DamagedSampleError(
                "unreadable_image",
                f"{self.name} has a picture that cannot be read ({error}): build the image shards "
                "again",
            ) from error


def fetch_picture(opened: OpenShard, index: int) -> EncodedPicture:
    """Read the picture of a shard's sample, and no other member of it."""
    member = _picture_member(opened.shard.members)
    return EncodedPicture(
        name=opened.describe(index),
        content=None if member is None else opened.member(member, index),
    )


def picture_of(sample: Sample) -> EncodedPicture:
    """Return the picture among a sample's members."""
    member = _picture_member(sample)
    return EncodedPicture(
        name=f"sample {sample[KEY].decode()!r}",
        content=None if member is None else sample[member],
    )


def decode_picture(sample: Sample, image_size: int) -> Pictures:
    """Decode a sample's picture; size, result and errors as `EncodedPicture.decode`."""
    return picture_of(sample).decode(image_size)


def _picture_member(members: Collection[str]) -> str | None:
    return next((name for name in PICTURE_MEMBERS if name in members), None)


def _pixels(image: Image.Image) -> Pictures:
    # Pillow keeps RGB in four bytes per pixel; returning them is faster than packing three.
    padded = np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8)
    # [height, width, 4] to [3, height, width]
    return padded.reshape(image.height, image.width, 4).transpose(2, 0, 1)[:3]


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # unreadable EXIF costs no picture
        turn = None
    return image if turn is None else image.transpose(turn)
