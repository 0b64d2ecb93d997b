"""Odd pictures are converted by rule, unusable ones refused with a reason, and none stops a run."""

import io
import struct
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.batches.pictures import decode_picture
from ernie_vilg.data.sequence.sample_reader import DecodedSamples, SampleReader
from ernie_vilg.data.shards.damage import DamageAccount, DamagedSampleError, DamageLimits
from tests.data.image_shards import images_of, write_image_shards

SIZE = 32
RED, WHITE = [255, 0, 0], [255, 255, 255]
SIDEWAYS = 6
"""EXIF orientation of a picture that is to be turned a quarter clockwise for viewing."""


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def left_half_red() -> Image.Image:
    image = Image.new("RGB", (SIZE, SIZE), "white")
    image.paste((255, 0, 0), (0, 0, SIZE // 2, SIZE))
    return image


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = SIDEWAYS
    return exif


def turned_by_xmp() -> PngInfo:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", f'<rdf:Description tiff:Orientation="{SIDEWAYS}"/>')
    return info


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.full((SIZE, SIZE), 0x12FF, np.uint16))


def chunk(name: bytes, content: bytes, *, error: int = 0) -> bytes:
    """Return a chunk of a PNG, its checksum off by an error."""
    checksum = struct.pack(">I", zlib.crc32(name + content) ^ error)
    return struct.pack(">I", len(content)) + name + content + checksum


def with_chunk(picture: bytes, *chunks: bytes) -> bytes:
    """Return a PNG with chunks after its header."""
    end_of_header = 8 + 25
    return picture[:end_of_header] + b"".join(chunks) + picture[end_of_header:]


def sixteen_bits_with_a_transparent_colour(colour_type: int, colour: tuple[int, ...]) -> bytes:
    """Return a PNG of 16 bits, the left half 0xFF01 and the right half of a transparent colour."""
    opaque = (0xFF01, *(0,) * (len(colour) - 1))
    line = b"\0" + b"".join(
        struct.pack(f">{len(colour)}H", *(opaque if column < SIZE // 2 else colour))
        for column in range(SIZE)
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, 16, colour_type, 0, 0, 0))
        + chunk(b"tRNS", struct.pack(f">{len(colour)}H", *colour))
        + chunk(b"IDAT", zlib.compress(line * SIZE))
        + chunk(b"IEND", b"")
    )


def odd_exif(orientation: int) -> bytes:
    """Return EXIF whose orientation is sound and whose maker is a fraction, not a text."""
    entries = [
        struct.pack("<HHII", 0x010F, 5, 1, 38),
        struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0),
    ]
    table = struct.pack("<H", 2) + b"".join(entries) + bytes(4)
    return b"II*\0\x08\0\0\0" + table + struct.pack("<II", 1, 3)


LARGE_TEXT = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(4 << 20)))
SIDEWAYS_EXIF = chunk(b"eXIf", turned().tobytes()[6:])
RED_PNG = encoded(left_half_red(), "PNG")


def claiming(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds no pixels."""

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


CONVERTED = {
    "plain": (encoded(left_half_red(), "PNG"), RED, WHITE),
    "jpeg": (encoded(left_half_red(), "JPEG", quality=100, subsampling=0), RED, WHITE),
    "webp": (encoded(left_half_red(), "WEBP", lossless=True), RED, WHITE),
    "cmyk": (
        encoded(Image.new("CMYK", (SIZE, SIZE)), "JPEG"),
        WHITE,
        WHITE,
    ),
    "grey": (encoded(Image.new("L", (SIZE, SIZE), 7), "PNG"), [7, 7, 7], [7, 7, 7]),
    "one bit": (encoded(Image.new("1", (SIZE, SIZE), 1), "PNG"), WHITE, WHITE),
    "palette": (encoded(left_half_red().convert("P"), "PNG"), RED, WHITE),
    "sixteen bits": (encoded(sixteen_bits(), "PNG"), [0x12] * 3, [0x12] * 3),
    "transparent": (encoded(Image.new("RGBA", (SIZE, SIZE)), "PNG"), WHITE, WHITE),
    "a transparent colour": (
        encoded(left_half_red(), "PNG", transparency=(255, 0, 0)),
        WHITE,
        WHITE,
    ),
    "sixteen bits of grey with a transparent colour": (
        sixteen_bits_with_a_transparent_colour(0, (0x00FF,)),
        WHITE,
        WHITE,
    ),
    "sixteen bits with a transparent colour": (
        sixteen_bits_with_a_transparent_colour(2, (0x0012, 0x1234, 0)),
        RED,
        WHITE,
    ),
    "a comment of 4 MB": (with_chunk(RED_PNG, LARGE_TEXT), RED, WHITE),
    "exif of nothing": (with_chunk(RED_PNG, chunk(b"eXIf", b"garbage")), RED, WHITE),
    "a text of a wrong checksum": (
        with_chunk(RED_PNG, chunk(b"tEXt", b"a\0b", error=1)),
        RED,
        WHITE,
    ),
    "a density of one byte": (with_chunk(RED_PNG, chunk(b"pHYs", b"a")), RED, WHITE),
    "animated png": (
        encoded(left_half_red(), "PNG", save_all=True, append_images=[noise()]),
        RED,
        WHITE,
    ),
    "animated webp": (
        encoded(left_half_red(), "WEBP", lossless=True, save_all=True, append_images=[noise()]),
        RED,
        WHITE,
    ),
}
"""Colours of the left half and of the right half."""

TURNED = {
    "exif in jpeg": encoded(left_half_red(), "JPEG", quality=100, subsampling=0, exif=turned()),
    "exif in png": encoded(left_half_red(), "PNG", exif=turned()),
    "exif in webp": encoded(left_half_red(), "WEBP", lossless=True, exif=turned()),
    "xmp in png": encoded(left_half_red(), "PNG", pnginfo=turned_by_xmp()),
    "exif beside a comment of 4 MB": with_chunk(RED_PNG, LARGE_TEXT, SIDEWAYS_EXIF),
    "xmp beside a wrong checksum": with_chunk(
        encoded(left_half_red(), "PNG", pnginfo=turned_by_xmp()),
        chunk(b"tEXt", b"a\0b", error=1),
    ),
    "exif with a maker of an odd type": with_chunk(RED_PNG, chunk(b"eXIf", odd_exif(SIDEWAYS))),
}

REFUSED = {
    "half a jpeg": (half(encoded(noise(), "JPEG")), "unreadable_image"),
    "half a png": (half(encoded(noise(), "PNG")), "unreadable_image"),
    "half a webp": (half(encoded(noise(), "WEBP")), "unreadable_image"),
    "garbage": (np.random.default_rng(1).bytes(4096), "unreadable_image"),
    "garbage behind a signature": (b"\xff\xd8\xff\xe0" + bytes(4096), "unreadable_image"),
    "a transparent colour of a wrong checksum": (
        with_chunk(RED_PNG, chunk(b"tRNS", bytes(6), error=1)),
        "unreadable_image",
    ),
    "a web page": (b"<!DOCTYPE html><html>404</html>", "unreadable_image"),
    "no bytes": (b"", "unreadable_image"),
    "a gif": (encoded(noise(), "GIF"), "unreadable_image"),
    "a tiff": (encoded(noise(), "TIFF"), "unreadable_image"),
    "another size": (encoded(Image.new("RGB", (SIZE, SIZE + 1)), "PNG"), "image_size"),
    "a size that Pillow warns of": (claiming(13_300, 13_300), "image_size"),
    "a size that Pillow refuses": (claiming(60_000, 60_000), "image_size"),
}


def decoded(content: bytes) -> np.ndarray:
    picture = decode_picture({"__key__": b"a", "jpg": content}, SIZE)
    assert (picture.shape, picture.dtype) == ((3, SIZE, SIZE), np.uint8)
    return picture.astype(int)


@pytest.mark.parametrize("name", CONVERTED)
def test_odd_pictures_are_converted(name: str) -> None:
    content, left, right = CONVERTED[name]

    picture = decoded(content)

    for column, expected in ((4, left), (SIZE - 4, right)):
        assert np.abs(picture[:, 9, column] - expected).max() <= 2, column  # JPEG's rounding


@pytest.mark.parametrize("name", TURNED)
def test_pictures_stand_upright(name: str) -> None:
    picture = decoded(TURNED[name])

    assert np.abs(picture[:, 4, 9] - RED).max() <= 2  # above
    assert np.abs(picture[:, SIZE - 4, 9] - WHITE).max() <= 2  # below


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_pictures_are_refused_with_a_reason(name: str) -> None:
    content, reason = REFUSED[name]

    with pytest.raises(
        DamagedSampleError, match=r"sample 'a' has .*: build the image sh"
    ) as caught:
        decoded(content)

    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        pytest.param(encoded(left_half_red(), "GIF"), "a GIF", id="gif"),
        pytest.param(encoded(left_half_red(), "BMP"), "a BMP", id="bmp"),
        pytest.param(encoded(left_half_red(), "TIFF"), "a TIFF", id="tiff"),
        pytest.param(b"\0\0\0\x1cftypavif", "an AVIF", id="avif"),
        pytest.param(b"\0\0\0\x1cftypheic", "a HEIC or another", id="heic"),
        pytest.param(b"\n<!doctype html>", "HTML, SVG or other XML", id="page of an error"),
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"abc", "no picture of a known format, and begins with the bytes 61 62 63",
                     id="text"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_named_alike_in_every_run(content: bytes, kind: str) -> None:
    with pytest.raises(DamagedSampleError) as caught:
        decoded(content)

    assert f"(it is {kind}" in str(caught.value)
    assert "object at 0x" not in str(caught.value)


def test_every_pixel_is_where_it_was() -> None:
    image = noise()

    picture = decoded(encoded(image, "PNG"))

    assert np.array_equal(picture, np.asarray(image).transpose(2, 0, 1))


def test_damaged_metadata_is_no_damage() -> None:
    # Pillow warns of it, which is an error in tests.
    content = encoded(left_half_red(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0")

    assert np.abs(decoded(content)[:, 9, 4] - RED).max() <= 5


def test_sample_without_a_picture_is_named() -> None:
    with pytest.raises(DamagedSampleError, match="sample 'a' has none of png, jpg") as caught:
        decode_picture({"__key__": b"a", "txt": b"x"}, SIZE)

    assert caught.value.reason == "no_image"


def test_no_flipped_byte_makes_anything_but_a_picture_or_a_refusal() -> None:
    random = np.random.default_rng(2)
    originals = [content for content, *_ in CONVERTED.values()] + [*TURNED.values()]
    outcomes = set()
    for _ in range(600):
        content = bytearray(originals[random.integers(len(originals))])
        for place in random.integers(0, len(content), 3):
            content[place] = random.integers(256)
        try:
            decoded(bytes(content))
        except DamagedSampleError as error:
            outcomes.add(error.reason)
        else:
            outcomes.add("picture")

    assert outcomes == {"picture", "unreadable_image", "image_size"}


def read_all(folder: Path, count: int) -> DecodedSamples[Tensor]:
    """Write all odd pictures to a shard, and read as many positions, skipping damage."""
    usable = [content for content, *_ in CONVERTED.values()] + [*TURNED.values()]
    files = [*usable, *(content for content, _ in REFUSED.values())]
    manifest = write_image_shards(folder, [files], image_size=SIZE, extension="jpg")
    loader = LoaderConfig(num_workers=0, damage="skip")
    with closing(SampleReader(images_of(folder, manifest, loader=loader))) as reader:
        return reader.read(np.arange(count))


def test_of_a_shard_the_unusable_pictures_are_counted_by_reason(tmp_path: Path) -> None:
    num_usable = len(CONVERTED) + len(TURNED)
    rows = read_all(tmp_path, num_usable + len(REFUSED))

    account = DamageAccount(DamageLimits(max_consecutive=100, max_samples=100))
    account.add(rows.findings, rows.origins.is_damaged)
    assert account.reasons == {"unreadable_image": 10, "image_size": 3}
    assert sorted(finding.key for finding in rows.findings) == [
        f"{index:06d}" for index in range(num_usable, num_usable + len(REFUSED))
    ]
    assert int(rows.origins.is_damaged.sum()) == len(REFUSED)
    assert int(rows.origins.index.max()) < num_usable  # others stand in their places


def test_what_replaces_unusable_pictures_is_the_same_in_every_run(tmp_path: Path) -> None:
    first, second = (read_all(tmp_path / name, 80) for name in ("first", "second"))

    assert first.origins.is_damaged.any()
    assert np.array_equal(first.origins.index, second.origins.index)
    assert first.content.equal(second.content)
