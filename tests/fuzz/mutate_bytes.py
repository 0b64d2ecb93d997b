"""Deliberate damage to bytes, to JSON and to what stands in a file's place."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

INTERESTING = (0, 1, -1, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1,
               2**53, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
TOKENS = (b"\x00", b"\xff" * 8, b"\n", b"\r\n", b"{", b"[", b'"', b"null", b"NaN", b"1e999",
          b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xc2\x85", b"\xed\xa0\x80", b"../", b"%s", b"\\ud800",
          b"\xe2\x80\x8b", b"-", b"9" * 40)  # fmt: skip
_MOST_BYTES = 1 << 20

Json = Any
Damage = Callable[[random.Random, bytes], bytes]


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Return the bytes with one to four faults in them."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = rng.choice(_FAULTS)(rng, content)[:_MOST_BYTES]
    return content


def _place(rng: random.Random, content: bytes) -> int:
    """Return an offset; beginnings, where headers are, come more often."""
    size = len(content)
    return rng.randrange(min(size, 600) or 1) if rng.random() < 0.4 else rng.randrange(size or 1)


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content or b"\0")
    changed[_place(rng, changed)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, content: bytes) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(INTERESTING) % 2 ** (8 * size)
    at = _place(rng, content)
    return content[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + content[at + size :]


def _truncate(rng: random.Random, content: bytes) -> bytes:
    return content[: _place(rng, content)]


def _insert(rng: random.Random, content: bytes) -> bytes:
    at = _place(rng, content)
    block = rng.choice((rng.choice(TOKENS), rng.randbytes(rng.choice((1, 7, 512))), bytes(512)))
    return content[:at] + block + content[at:]


def _delete(rng: random.Random, content: bytes) -> bytes:
    at = _place(rng, content)
    return content[:at] + content[at + rng.choice((1, 2, 8, 64, 512)) :]


def _duplicate(rng: random.Random, content: bytes) -> bytes:
    at = _place(rng, content)
    block = content[at : at + rng.choice((1, 16, 512, 4096))]
    return content[:at] + block * rng.choice((2, 2, 20)) + content[at + len(block) :]


def _blank(rng: random.Random, content: bytes) -> bytes:
    at = _place(rng, content)
    size = min(rng.choice((4, 64, 512)), len(content) - at)
    return content[:at] + rng.choice((b"\0", b"\xff")) * size + content[at + size :]


def _replace_token(rng: random.Random, content: bytes) -> bytes:
    at, token = _place(rng, content), rng.choice(TOKENS)
    return content[:at] + token + content[at + len(token) :]


_FAULTS: Sequence[Damage] = (
    _flip, _flip, _overwrite, _overwrite, _truncate, _insert, _delete, _duplicate, _blank,
    _replace_token,
)  # fmt: skip

_RAW = {
    "@digits@": "9" * 5000,
    "@deep@": "[" * 100_000 + "]" * 100_000,
    "@deep object@": '{"a":' * 5000 + "1" + "}" * 5000,
    "@huge@": "1e999",
    "@nan@": "NaN",
    "@surrogate@": '"\\ud800"',
}
"""Raw texts that json.dumps does not write, by the text that stands for each."""


def odd_value(rng: random.Random) -> Json:
    """Return a value that is of another type, size or form than is expected."""
    return rng.choice(
        (None, True, False, 0, -1, 1, 2.5, -0.0, 1e308, 10**30, 2**31, 2**63, 3 * 10**8, "", "x",
         "../../etc/passwd", "x" * 100_000, "\u2028", "\x00", "a\nb", [], {}, [[]], [None], {"": 1},
         {"a": {"b": []}}, list(range(50)), [1, 2], *_RAW)
    )  # fmt: skip


def write_json(value: Json, rng: random.Random | None = None) -> bytes:
    """Write a value as JSON, with what stands for raw text replaced by it."""
    indent = rng.choice((None, 2)) if rng is not None else None
    text = json.dumps(value, ensure_ascii=rng is None or rng.random() < 0.5, indent=indent)
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode("utf-8", "surrogatepass")


def mutate_value(rng: random.Random, value: Json) -> Json:
    """Return a JSON value with one fault in it, somewhere."""
    value = json.loads(json.dumps(value))
    holder: Json = [value]
    parent, key = holder, 0
    while isinstance(parent[key], (dict, list)) and parent[key] and rng.random() < 0.85:
        parent = parent[key]
        key = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    kind = rng.randrange(6)
    if kind == 0 and parent is not holder:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[rng.choice(("extra", "", "step", "sha256", "x" * 5000))] = odd_value(rng)
    elif kind == 2 and isinstance(parent, list):
        parent.insert(key, odd_value(rng))
    elif kind == 3 and isinstance(parent[key], (int, float)):
        parent[key] = rng.choice((parent[key] + 1, -parent[key], parent[key] * 10**9, 0, 0.5))
    elif kind == 4 and isinstance(parent[key], str):
        times = max(1, min(1000, 1_000_000 // (1 + len(parent[key]))))  # several may be in a row
        parent[key] = rng.choice((parent[key] + "x", parent[key][:-1], parent[key] * times, ""))
    else:
        parent[key] = odd_value(rng)
    return holder[0]


def mutate_json(rng: random.Random, content: bytes) -> bytes:
    """Return a JSON file with faults in its values, or in its bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, content)
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 3))):
        value = mutate_value(rng, value)
        if "@" in json.dumps(value):
            break
    written = write_json(value, rng)
    if rng.random() < 0.05:
        written = b"\xef\xbb\xbf" + written
    if rng.random() < 0.05:
        written = written.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32")))
    return written


def mutate_lines(rng: random.Random, content: bytes) -> bytes:
    """Return a file of JSON lines with a fault in one line, in its order, or in its bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, content)
    lines = content.split(b"\n")[:-1] or [b"{}"]
    at = rng.randrange(len(lines))
    kind = rng.randrange(8)
    if kind < 3:
        lines[at] = mutate_json(rng, lines[at])
    elif kind == 3:
        lines[at] = write_json(odd_value(rng))
    elif kind == 4:
        lines.insert(at, rng.choice((b"", b"  ", b"\r", b"\xef\xbb\xbf", b"#", lines[at])))
    elif kind == 5:
        lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
    elif kind == 6:
        lines[at] += rng.choice((b"\r", b" ", b"\xe2\x80\xa8", b"\xc2\x85", b"\x0b", b"\x00", b","))
    else:
        rng.shuffle(lines)
    return b"\n".join(lines) + rng.choice((b"\n", b"\n", b""))
