"""The target of the fuzzer on the wire: a web server whose answers are damaged."""

import hashlib
import io
import os
import random
import socket
import ssl
import tempfile
import threading
from pathlib import Path

from ernie_vilg.storage.remote import RemoteFolder, TransferLimits, copy_blocks
from ernie_vilg.storage.shard_manifest import read_manifest_at
from tests.data.shard_server import make_certificate
from tests.fuzz.data_targets import token_shards
from tests.fuzz.mutate_bytes import mutate_bytes
from tests.fuzz.target import Files, Outcome, Target, require

_CONTENT = bytes(range(256)) * 8
_LIMITS = TransferLimits(
    max_attempts=2, block_bytes=4096, block_seconds=2.0, wait_seconds=0.001, max_wait_seconds=0.01
)
_ENDLESS = b"@endless@"
"""Stands in an answer for bytes without an end."""


def _certificate() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return make_certificate(Path(folder)).read_bytes()


def _answer(body: bytes, status: bytes = b"200 OK", *headers: bytes) -> bytes:
    head = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def _files() -> dict[str, bytes]:
    manifest = token_shards()["manifest.json"]
    span = b"Content-Range: bytes 0-%d/%d" % (len(_CONTENT) - 1, len(_CONTENT))
    return {
        "server.pem": _certificate(),
        "manifest.answer": _answer(manifest),
        "shard.answer": _answer(_CONTENT, b"206 Partial Content", span),
    }


def _mutate_answer(rng: random.Random, content: bytes) -> bytes:
    head, _, body = content.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    choice = rng.randrange(8)
    if choice == 0:
        return mutate_bytes(rng, content)
    if choice == 1:
        body = mutate_bytes(rng, body)
    elif choice == 2:
        lines[0] = b"HTTP/1.1 " + rng.choice(
            (
                b"302 Found",
                b"301 x",
                b"500 x",
                b"404 x",
                b"416 x",
                b"100 Continue",
                b"204 x",
                b"304 x",
                b"99 x",
                b"999 x",
                b"",
                b"200",
                b"401 x",
            )
        )
        target = rng.choice(
            (
                b"http://127.0.0.1:9/x",
                b"/loop",
                b"https://127.0.0.1:9/x",
                b"",
                b"ftp://x/",
                b"file:///etc/passwd",
                b"//127.0.0.1:9",
                b"\xff",
                b"https://[",
            )
        )
        lines.append(rng.choice((b"Location: ", b"URI: ")) + target)
    elif choice == 3:
        lines[1] = b"Content-Length: " + rng.choice(
            (b"0", b"-1", b"9" * 30, b"x", b"1000000000", b"5")
        )
    elif choice == 4:
        lines.append(
            rng.choice(
                (
                    b"Transfer-Encoding: chunked",
                    b"Content-Encoding: gzip",
                    b"Content-Encoding: deflate",
                    b"Content-Encoding: br",
                    b"X: " + b"y" * 100_000,
                    b"Content-Range: bytes 5-2/1",
                    b"Set-Cookie: " + b"a" * 5000,
                    b"no colon",
                    b": x",
                    b"Connection: close",
                    b"Content-Length: 7",
                )
            )
        )
    elif choice == 5:
        del lines[1]
        body += _ENDLESS
    elif choice == 6:
        lines[1] = b"Transfer-Encoding: chunked"
        body = rng.choice(
            (
                b"5\r\nhello\r\n0\r\n\r\n",
                b"ffffffff\r\nx",
                b"-1\r\n",
                b"zz\r\n",
                b"0\r\n",
                b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n",
                b"5" * 5000,
            )
        )
    else:
        lines.insert(rng.randrange(len(lines) + 1), mutate_bytes(rng, rng.choice(lines)))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class _Server:
    """Answers each request with the same bytes, whatever was asked for."""

    def __init__(self, certificate: Path) -> None:
        self.answer = b""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self._context, self._listener = context, listener
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            plain, _ = self._listener.accept()
            threading.Thread(target=self._talk, args=(plain,), daemon=True).start()

    def _talk(self, plain: socket.socket) -> None:
        plain.settimeout(5)
        try:
            with self._context.wrap_socket(plain, server_side=True) as connection:
                if connection.recv(65536):
                    start, endless, _ = self.answer.partition(_ENDLESS)
                    connection.sendall(start)
                    for _ in range(4000 if endless else 0):  # 1 GB
                        connection.sendall(bytes(1 << 18))
        except OSError:
            pass
        finally:
            plain.close()


_servers: list[_Server] = []


def _start() -> None:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-server-"))
    (folder / "server.pem").write_bytes(REMOTE.originals["server.pem"])
    os.environ["SSL_CERT_FILE"] = str(folder / "server.pem")
    _servers.append(_Server(folder / "server.pem"))


def _read(folder: Path, files: Files) -> Outcome:
    """Read a manifest and a shard from the server, each from its own answer."""
    server = _servers[-1]
    location = f"https://127.0.0.1:{server.port}/shards"
    outcome = Outcome.VALID
    for name, content in files.items():
        assert isinstance(content, bytes)
        server.answer = content
        if name == "server.pem":
            continue
        if name == "manifest.answer":
            manifest = read_manifest_at(location, "token", _LIMITS)
            require(manifest.num_samples > 0, "no samples")
            continue
        target = io.BytesIO()
        copy_blocks(
            RemoteFolder(location, _LIMITS).file("a.tar"),
            target,
            num_bytes=len(_CONTENT),
            sha256=hashlib.sha256(_CONTENT).hexdigest(),
            limits=_LIMITS,
        )
        require(target.getvalue() == _CONTENT, "a copy differs from the shard")
    return outcome


REMOTE = Target(
    name="remote answers",
    quick=15,
    files=_files,
    mutate={".answer": _mutate_answer},
    read=_read,
    start=_start,
    specials=0,
)
TARGETS = [REMOTE]
