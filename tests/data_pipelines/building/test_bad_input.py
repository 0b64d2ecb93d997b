"""Pictures and captions of every bad kind, through the whole program: each has its reason."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.building.build import build_image_shards
from ernie_vilg.config.shards import BuildShardsConfig
from ernie_vilg.data.shards.open_shards import read_shard

GREY = Image.new("RGB", (8, 4), (120, 120, 120))


def saved(image: Image.Image, image_format: str, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **settings)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG of grey pixels, whose rows are compressed a thousandfold."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def animated(image_format: str) -> bytes:
    frames = [Image.new("RGB", (8, 4), (value,) * 3) for value in (120, 250)]
    return saved(frames[0], image_format, save_all=True, append_images=frames[1:], lossless=True)


def upside_down() -> bytes:
    """Return a JPEG of a black half above a white one, with the orientation that turns it over."""
    halves = Image.new("RGB", (16, 16), "white")
    halves.paste("black", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3
    return saved(halves, "JPEG", quality=100, exif=exif)


PICTURES = {
    "bomb.png": png_of_size(20_000, 20_000),
    "html.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
    "empty.jpg": b"",
    "cut.jpg": saved(Image.effect_noise((64, 64), 80).convert("RGB"), "JPEG")[:900],
    "moving.gif": animated("GIF"),
    "cmyk.jpg": saved(GREY.convert("CMYK"), "JPEG", quality=100),
    "deep.png": saved(Image.fromarray(np.full((4, 8), 120 << 8, np.uint16)), "PNG"),
    "moving.png": animated("PNG"),
    "moving.webp": animated("WEBP"),
    "turned.jpg": upside_down(),
}
CAPTIONS = {
    "nothing": "",
    "spaces": " \u3000\n\t",
    "invisible": "\u200b\u202e\u0000",
    "long": "长" * 3_400_000,  # 10 MB
    "control": "红\u0000色\u0007的\u001b[31m圆",
    "reversed": "红色\u202e的圆\u2066",
    "special": "</s><unk>[SEP]<|endoftext|>\u2581圆",
}


def test_every_bad_kind_has_its_reason_and_exact_counts(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "grey.png").write_bytes(saved(GREY, "PNG"))
    lines = [json.dumps({"image": name, "caption": name}) for name in PICTURES]
    lines += [json.dumps({"image": "grey.png", "caption": text}) for text in CAPTIONS.values()]
    for name, content in PICTURES.items():
        (source / name).write_bytes(content)
    text = "\n".join(lines).encode() + b'\n{"image": "grey.png", "caption": "\xff\xfe"}\n'
    (source / "captions.jsonl").write_bytes(text)

    report = build_image_shards(
        BuildShardsConfig(
            source=str(source),
            output_dir=str(tmp_path / "shards"),
            image_size=4,
            captions="separate",
            max_faulty_fraction=0.9,
        )
    )

    assert dict(report.rejected) == {
        "unreadable_image": 4,  # html.jpg, empty.jpg, cut.jpg, moving.gif
        "empty_caption": 3,
        "not_json": 2,  # the long caption's line, and the line that is not UTF-8
        "image_too_large": 1,
    }
    assert (report.counts.rows, report.counts.kept) == (18, 8)
    (shard,) = report.manifest.shards
    samples = read_shard(tmp_path / "shards", shard)
    assert [sample["txt"].decode() for sample in samples] == [
        "cmyk.jpg",
        "deep.png",
        "moving.png",
        "moving.webp",
        "turned.jpg",
        "红色的[31m圆",
        "红色的圆",
        "</s><unk>[SEP]<|endoftext|> 圆",
    ]
    pixels = [np.asarray(Image.open(io.BytesIO(sample["png"]))).astype(int) for sample in samples]
    for picture in (*pixels[:4], *pixels[5:]):
        assert abs(picture - 120).max() <= 2  # JPEG changes the values of CMYK slightly
    assert pixels[4][0].min() > 200 > 50 > pixels[4][3].max()  # upright: white is above
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards", "source"]
    listed = (tmp_path / "shards" / "rejected.jsonl").read_text().splitlines()
    assert len(listed) == 10
    assert max(map(len, listed)) < 1024
