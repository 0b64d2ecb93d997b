"""Deliberate damage to tars, arrays and pictures, with checksums and lengths put right.

Damage that a checksum finds never reaches the code behind it. So headers are changed and their
checksums written anew.
"""

import io
import random
import struct
import tarfile
import zlib

import numpy as np

from tests.fuzz.mutate_bytes import INTERESTING, mutate_bytes

_BLOCK = 512
_FIELDS = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "typeflag": (156, 1),
    "linkname": (157, 100),
    "magic": (257, 8),
    "devmajor": (329, 8),
    "prefix": (345, 155),
}
_TYPES = b"01234567xgLKSVDNA\0Z "


def mutate_tar(rng: random.Random, content: bytes) -> bytes:
    """Return a tar with faults in headers, whose checksums are right, or in its bytes."""
    kind = rng.randrange(4)
    if kind == 0:
        return mutate_bytes(rng, content)
    if kind == 1:
        return _with_another_member(rng, content)
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 3))):
        _change_header(rng, changed)
    return bytes(changed)


def _headers(content: bytes) -> list[int]:
    return [
        at for at in range(0, len(content) - _BLOCK, _BLOCK) if content[at + 257 :][:5] == b"ustar"
    ]


def _change_header(rng: random.Random, content: bytearray) -> None:
    headers = _headers(content)
    if not headers:
        return
    at = rng.choice(headers)
    start, size = _FIELDS[rng.choice(list(_FIELDS))]
    number = rng.choice(INTERESTING)
    value = rng.choice(
        (
            f"{abs(number):o}".encode(),
            b"\x80" + (number % 2**64).to_bytes(size + 8, "big")[9:],
            b"\xff" * size,
            bytes(size),
            b"../../x.json",
            b"/abs.txt",
            b"0.codes.npy",
            b"a" * size,
            b"-1",
            b" 7 ",
            rng.randbytes(size),
            bytes([rng.choice(_TYPES)]),
        )
    )
    content[at + start : at + start + size] = value[:size].ljust(size, b"\0")
    content[at + 148 : at + 156] = b" " * 8
    checksum = sum(content[at : at + _BLOCK])
    content[at + 148 : at + 156] = f"{checksum:06o}\0 ".encode()


def _with_another_member(rng: random.Random, content: bytes) -> bytes:
    """Return the tar with one more member: of a long name, with PAX records, or a link."""
    buffer = io.BytesIO()
    style = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=buffer, mode="w", format=style) as archive:
        name = rng.choice(
            ("0.json", "x", "a/" * 60 + "0.txt", "\u00e9.png", "z.pkl", "0.codes.npy")
        )
        member = tarfile.TarInfo(name)
        member.type = rng.choice(
            (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
        )
        member.linkname = rng.choice(("", "/etc/passwd", "x" * 90))
        if style == tarfile.PAX_FORMAT:
            member.pax_headers = {
                rng.choice(("size", "path", "mtime", "GNU.sparse.major", "x")): rng.choice(
                    ("1", "-1", "9" * 30, "x" * 2000, "")
                )
            }
        data = rng.randbytes(rng.choice((0, 3, 600))) if member.isreg() else b""
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    added = buffer.getvalue()[: len(buffer.getvalue()) // _BLOCK * _BLOCK].rstrip(b"\0")
    added += bytes(-len(added) % _BLOCK)
    at = rng.choice([*_headers(content), len(content) - 1024])
    return content[:at] + added + content[at:]


def mutate_npy(rng: random.Random, content: bytes) -> bytes:
    """Return an .npy file with faults in its header, whose length is right, or in its bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, content)
    kind = rng.choice(
        (
            "<u2",
            ">u2",
            "<i4",
            "|O",
            "<U4",
            "<f8",
            "<u8",
            "<M8[s]",
            "|V8",
            "|b1",
            "u2",
            "<c8",
            "nonsense",
            "<i999",
            "S0",
            "|S4",
        )
    )
    shape = rng.choice(
        (
            "(2, 2)",
            "(4,)",
            "(0,)",
            "(1000000000, 1000000000)",
            "(-1,)",
            "(2, 2.0)",
            "()",
            "(True, 2)",
            "(1,)",
            "2",
            "(2, 2, 1)",
            "None",
            "('2', 2)",
            "[2, 2]",
            "(99999999999999999999,)",
            "(" * 300 + ")" * 300,
        )
    )
    order = rng.choice(("False", "False", "True", "0", "'x'", "None"))
    header = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}"
    if rng.random() < 0.2:
        header = rng.choice(
            (
                header[:-9],
                header + "x",
                f"{header} # ",
                header.replace("descr", "de"),
                "{" * 500,
                "9" * 6000,
                "[]",
                "",
                "{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (2, 2)}",
                "-" * 4000 + "1",
                "{1: 2, **{}}",
                header + "\0",
                "'" * 3,
                "f''",
            )
        )
    if rng.random() < 0.1:
        header = mutate_bytes(rng, header.encode()).decode("latin1")
    version = rng.choice((1, 1, 1, 2, 3, 0, 9))
    text = header.encode("latin1") + b" " * rng.choice((0, 7, 40)) + rng.choice((b"\n", b""))
    length = struct.pack("<H" if version == 1 else "<I", len(text) % 65536)
    data = rng.choice((content[-8:], b"", bytes(8), rng.randbytes(64)))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def odd_exif(rng: random.Random) -> bytes:
    """Return EXIF whose entries have odd types, counts and offsets."""
    order = rng.choice("<>")
    entries = b""
    tags = [0x0112, *rng.choices((0x0100, 0x011A, 0x8769, 0x8825, 0x010F, 0x9286, 0xFFFF), k=2)]
    for tag in tags:
        kind = rng.choice((3, 3, 2, 5, 7, 10, 12, 13, 0, 99))
        count = rng.choice((1, 1, 0, 2, 1000, 2**31, 2**32 - 1))
        value = rng.choice(
            (
                struct.pack(order + "HH", rng.choice((1, 3, 6, 8, 9, 0)), 0),
                rng.randbytes(4),
                struct.pack(order + "I", rng.choice((8, 0, 60))),
            )
        )
        entries += struct.pack(order + "HHI", tag, kind, count) + value
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    number = rng.choice((3, 3, 3, 0, 60000))
    exif = (
        head
        + struct.pack(order + "H", number)
        + entries
        + rng.choice((bytes(4), b"", rng.randbytes(40)))
    )
    return mutate_bytes(rng, exif) if rng.random() < 0.3 else exif


def mutate_png(rng: random.Random, content: bytes) -> bytes:
    """Return a PNG with faults in its chunks, whose CRCs are right, or in its bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, content)
    chunks = _png_chunks(content)
    at = rng.randrange(len(chunks))
    kind, data = chunks[at]
    choice = rng.randrange(6)
    if choice == 0:
        chunks[at] = kind, mutate_bytes(rng, data or b"\0")
    elif choice == 1:
        chunks.insert(at, chunks[at])
    elif choice == 2:
        del chunks[at]
    elif choice == 3:
        rng.shuffle(chunks)
    else:
        chunks.insert(max(at, 1), _odd_chunk(rng))
    return content[:8] + b"".join(
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data) ^ (rng.random() < 0.05))
        for kind, data in chunks
    )


def _odd_chunk(rng: random.Random) -> tuple[bytes, bytes]:
    bomb = zlib.compress(bytes(rng.choice((100, 4 << 20))))
    return rng.choice(
        (
            (b"eXIf", odd_exif(rng)),
            (b"zTXt", b"Comment\0\0" + bomb),
            (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
            (b"tEXt", rng.randbytes(20)),
            (b"iCCP", b"icc\0\0" + bomb),
            (b"tRNS", rng.randbytes(rng.choice((0, 1, 2, 6, 300)))),
            (b"PLTE", rng.randbytes(rng.choice((0, 1, 3, 768)))),
            (b"gAMA", rng.randbytes(3)),
            (b"acTL", struct.pack(">II", rng.choice((0, 1, 2**31)), 0)),
            (b"fcTL", rng.randbytes(26)),
            (b"cHRM", rng.randbytes(5)),
            (b"pHYs", b""),
            (b"IEND", b""),
            (b"sRGB", b""),
            (
                b"IHDR",
                struct.pack(
                    ">IIBBBBB",
                    rng.choice((0, 8, 2**31 - 1)),
                    8,
                    rng.choice((1, 2, 4, 8, 16, 7)),
                    rng.choice((0, 2, 3, 4, 6, 5)),
                    0,
                    0,
                    rng.choice((0, 1)),
                ),
            ),
            (rng.randbytes(4), rng.randbytes(9)),
        )
    )


def _png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def mutate_jpeg(rng: random.Random, content: bytes) -> bytes:
    """Return a JPEG with another EXIF segment, or with faults in its bytes."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, content)
    exif = b"Exif\0\0" + odd_exif(rng)
    size = rng.choice((len(exif) + 2, len(exif) + 2, 0, 2, 65535))
    segment = b"\xff\xe1" + struct.pack(">H", size) + exif
    odd = b"\xff" + rng.choice((b"\xe2", b"\xed", b"\xee", b"\xc4", b"\xdb", b"\xdd", b"\xc2"))
    odd += struct.pack(">H", 22) + rng.randbytes(20)
    return content[:2] + rng.choice((segment, segment, segment + segment, odd)) + content[2:]


def mutate_webp(rng: random.Random, content: bytes) -> bytes:
    """Return a WebP with an EXIF chunk of odd content, or with faults in its bytes."""
    if rng.random() < 0.5:
        return mutate_bytes(rng, content)
    exif = odd_exif(rng)
    at = content.find(b"EXIF")
    body = content[12:at] + b"EXIF" + struct.pack("<I", len(exif)) + exif + bytes(len(exif) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def npy_bytes(array: np.ndarray) -> bytes:
    """Return an array as an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
