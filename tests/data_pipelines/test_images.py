"""Picture files are accepted or rejected, and become upright opaque squares."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.images import crop_and_resize, image_bytes, load_image
from data_pipelines.rejections import Reason, RejectedError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(path: Path, image: Image.Image, image_format: str, **options: object) -> Path:
    image.save(path, image_format, **options)
    return path


def reason_of(path: Path, *, max_pixels: int = 1_000_000) -> Reason:
    with pytest.raises(RejectedError) as caught:
        load_image(path, max_pixels=max_pixels)
    return caught.value.reason


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds no pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize(
    ("mode", "pixel"),
    [
        pytest.param("RGBA", (0, 0, 255, 0), id="fully transparent, whatever its colour"),
        pytest.param("LA", (0, 0), id="grey with alpha"),
    ],
)
def test_transparency_becomes_white(tmp_path: Path, mode: str, pixel: tuple[int, ...]) -> None:
    path = saved(tmp_path / "image.png", Image.new(mode, (2, 2), pixel), "PNG")

    assert load_image(path, max_pixels=4).getpixel((0, 0)) == WHITE


def test_half_transparent_red_becomes_pink(tmp_path: Path) -> None:
    path = saved(tmp_path / "image.png", Image.new("RGBA", (1, 1), (255, 0, 0, 128)), "PNG")

    # 255 * 127 / 255 = 127 of the white shows.
    assert load_image(path, max_pixels=4).getpixel((0, 0)) == (255, 127, 127)


def test_a_transparent_palette_entry_becomes_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    path = saved(tmp_path / "image.png", image, "PNG", transparency=1)

    loaded = load_image(path, max_pixels=4)

    assert [loaded.getpixel((0, 0)), loaded.getpixel((1, 0))] == [RED, WHITE]


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), WHITE)
    image.paste(RED, (0, 0, 10, 10))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated clockwise by a quarter for viewing
    path = saved(tmp_path / "image.jpg", image, "JPEG", exif=exif, quality=95)

    upright = np.asarray(load_image(path, max_pixels=1000)).astype(int)

    assert upright.shape == (20, 10, 3)
    assert upright[2, 5, 1] < 30  # red above
    assert upright[17, 5, 1] > 225  # white below


def test_sixteen_bits_are_read_by_their_upper_byte(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0x1234, 0xFFFF]], dtype=np.uint16))
    path = saved(tmp_path / "image.png", image, "PNG")

    loaded = load_image(path, max_pixels=10)

    assert [loaded.getpixel((0, 0)), loaded.getpixel((1, 0))] == [(0x12,) * 3, (255,) * 3]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    image_format = "JPEG" if mode == "CMYK" else "PNG"
    path = saved(tmp_path / "image", Image.new("RGB", (4, 4), WHITE).convert(mode), image_format)

    loaded = load_image(path, max_pixels=100)

    assert (loaded.mode, loaded.getpixel((1, 1))) == ("RGB", WHITE)


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), WHITE)]
    path = tmp_path / "image.webp"
    frames[0].save(path, "WEBP", save_all=True, append_images=frames[1:], lossless=True)

    assert load_image(path, max_pixels=100).getpixel((0, 0)) == RED


@pytest.mark.parametrize("image_format", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused_whatever_their_name(tmp_path: Path, image_format: str) -> None:
    path = saved(tmp_path / "image.png", Image.new("RGB", (4, 4)), image_format)

    assert reason_of(path) == Reason.UNREADABLE_IMAGE


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="no bytes"),
        pytest.param(b"<html>404</html>", id="a web page"),
        pytest.param(png_header(4, 4), id="a PNG without pixels"),
        pytest.param(b"\x89PNG\r\n\x1a\n", id="the signature of a PNG alone"),
        pytest.param(b"RIFF\xff\xff\xff\xffWEBPVP8L", id="a WebP cut in its header"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)

    assert reason_of(path) == Reason.UNREADABLE_IMAGE


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, link_to_nothing, lambda path: None])
def test_what_is_no_file_is_refused_without_waiting(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "picture.png")

    assert reason_of(tmp_path / "picture.png") is Reason.UNREADABLE_IMAGE


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_a_file_cut_in_half_is_refused(tmp_path: Path, image_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path / "image", Image.fromarray(noise), image_format)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])

    assert reason_of(path) == Reason.UNREADABLE_IMAGE


@pytest.mark.parametrize(
    ("width", "height"),
    [
        pytest.param(1001, 1000, id="above our limit"),
        pytest.param(13_300, 13_300, id="where Pillow only warns"),
        pytest.param(60_000, 60_000, id="where Pillow refuses"),
    ],
)
def test_too_many_pixels_are_refused_before_decoding(
    tmp_path: Path, width: int, height: int
) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png_header(width, height))  # decoding it would fail for another reason

    assert reason_of(path) == Reason.IMAGE_TOO_LARGE


def test_as_many_pixels_as_allowed_are_accepted(tmp_path: Path) -> None:
    path = saved(tmp_path / "image.png", Image.new("RGB", (10, 10)), "PNG")

    assert load_image(path, max_pixels=100).size == (10, 10)


def test_the_centred_square_is_cut_out() -> None:
    image = Image.new("RGB", (60, 10), WHITE)
    image.paste(RED, (18, 0, 42, 10))  # the middle, and the width of the filter around it

    square = crop_and_resize(image, 5)

    assert square.size == (5, 5)
    assert square.tobytes() == Image.new("RGB", (5, 5), RED).tobytes()


def test_it_is_resizing_the_shorter_side_and_cutting_the_middle() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 44, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    resized = image.resize((22, 6), Image.Resampling.LANCZOS).crop((8, 0, 14, 6))

    difference = np.asarray(crop_and_resize(image, 6)).astype(int) - np.asarray(resized)

    assert np.abs(difference).max() <= 1  # rounding


def test_an_image_of_the_right_size_is_unchanged() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)

    assert np.array_equal(np.asarray(crop_and_resize(Image.fromarray(noise), 8)), noise)


def test_a_thin_strip_becomes_a_square() -> None:
    assert crop_and_resize(Image.new("RGB", (100_000, 1), RED), 64).getpixel((63, 63)) == RED


@pytest.mark.parametrize(("image_format", "name"), [("png", "PNG"), ("jpeg", "JPEG")])
def test_images_are_encoded(image_format: str, name: str) -> None:
    content = image_bytes(Image.new("RGB", (8, 8), WHITE), image_format)

    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.getpixel((0, 0))) == (name, WHITE)
