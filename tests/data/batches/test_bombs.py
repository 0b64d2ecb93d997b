"""Small files that would unfold into gigabytes are refused before anything is allocated."""

import io
import json
import lzma
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.bomb_process import PICTURE_SIZE

ROOT = Path(__file__).parents[3]
MAX_GROWTH_BYTES = 200 << 20
WARNED = 13_300
"""Pixels a side at which Pillow only warns."""
ACCEPTED = 9_400
"""Pixels a side at which Pillow does not even warn."""


def png_bomb(size: int) -> bytes:
    """Return a whole PNG, one bit per pixel and all of them zero."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", size, size, 1, 0, 0, 0, 0)
    lines = zlib.compress(bytes(size * (1 + (size + 7) // 8)))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    )


def text_bomb() -> bytes:
    """Return a PNG of the right size with a compressed comment of 256 MB in it."""
    picture = encoded("PNG")
    content = b"Comment\0\0" + zlib.compress(bytes(256 << 20), level=1)
    checksum = struct.pack(">I", zlib.crc32(b"zTXt" + content))
    end_of_header = 8 + 25
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content + checksum
    return picture[:end_of_header] + chunk + picture[end_of_header:]


def encoded(image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (PICTURE_SIZE, PICTURE_SIZE)).save(buffer, image_format)
    return buffer.getvalue()


def jpeg_claiming(size: int) -> bytes:
    content = bytearray(encoded("JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", size, size)
    return bytes(content)


def webp_claiming(size: int) -> bytes:
    content = bytearray(encoded("WEBP"))
    frame = content.index(b"\x9d\x01\x2a")
    content[frame + 3 : frame + 7] = struct.pack("<HH", size, size)
    return bytes(content)


def tar_header(size: int) -> bytes:
    member = tarfile.TarInfo("000000.png")
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


def xz_bomb() -> Iterator[bytes]:
    """Yield an xz file that unfolds into a tar file with a member of 2 GB."""
    yield lzma.compress(tar_header(2 << 30), preset=0)
    zeros = lzma.compress(bytes(8 << 20), preset=0)
    yield from [zeros] * 256


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bombs")
    pictures = {
        "harmless.png": encoded("PNG"),
        "warned.png": png_bomb(WARNED),
        "accepted.png": png_bomb(ACCEPTED),
        "text.png": text_bomb(),
        "refused.jpg": jpeg_claiming(65_500),
        "accepted.jpg": jpeg_claiming(ACCEPTED),
        "accepted.webp": webp_claiming(ACCEPTED),
        "claimed.tar": tar_header(2 << 30) + bytes(10_240),
    }
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
    with (folder / "xz.tar").open("wb") as file:
        file.writelines(xz_bomb())
    with (folder / "true.tar").open("wb") as file:  # all of it there, as a hole on the disk
        file.write(tar_header(256 << 20))
        file.truncate(file.tell() + (256 << 20) + 1024)
    command = [sys.executable, "-m", "tests.data.bomb_process", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(result.stdout))


def test_bombs_are_refused(outcome: dict[str, Any]) -> None:
    assert outcome["reasons"] == {
        "harmless.png": "",
        "warned.png": "image_size",
        "accepted.png": "image_size",
        "text.png": "",  # its pixels are sound
        "refused.jpg": "image_size",
        "accepted.jpg": "image_size",
        "accepted.webp": "image_size",
        "claimed.tar": "cut",
        "xz.tar": "not_a_tar",
        "true.tar": "member_size",
    }


def test_bombs_take_no_memory(outcome: dict[str, Any]) -> None:
    assert outcome["bytes"] < MAX_GROWTH_BYTES
