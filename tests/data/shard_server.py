"""A server of shards on this machine: the web's and S3's way of reading, and their ways of failing.

It speaks what https://, s3:// and gs:// locations need (GET and HEAD with ranges), and fails as it
is told to, request by request.
"""

import gzip
import re
import shlex
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import s3fs

STALL_SECONDS = 30
"""Duration of a stalled answer, unless the server ends before."""

ENDLESS_BYTES = 300 << 20
"""Length at which an endless answer ends after all."""

_GOOGLE = re.compile(r"/download/storage/v1/b/([^/]+)/o/(.+)")
_S3_CODES = {403: "AccessDenied", 404: "NoSuchKey", 416: "InvalidRange", 503: "SlowDown"}


class ShardServer(ThreadingHTTPServer):
    """Files by path, what goes wrong with each, and how often each was asked for."""

    daemon_threads = True

    def __init__(self, certificate: Path | None = None) -> None:
        """Listen on a free port.

        Args:
            certificate: a PEM file of certificate and key; without, answers are plain.
        """
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, deque[str]] = {}
        """Faults by path, one word for each coming request; "503*" for all of them."""
        self.requests: Counter[str] = Counter()
        self.queries: set[str] = set()
        self.elsewhere = "http://127.0.0.1:9/elsewhere"
        """Target of redirects."""
        self.endless_bytes = 0
        """Sent of endless answers."""
        self.most_at_once = 0
        """Requests being answered at the same time."""
        self._now = 0
        self._counting = threading.Lock()
        self.ended = threading.Event()
        self.certificate = certificate
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )

    @property
    def address(self) -> str:
        """Scheme, host and port."""
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.server_address[1]}"

    def fail(self, path: str, *faults: str) -> None:
        """Let the coming requests for a path fail, each in its way."""
        self.faults[path] = deque(faults)

    @contextmanager
    def answering(self, path: str, query: str) -> Iterator[None]:
        """Count a request while it is answered."""
        with self._counting:
            self.requests[path] += 1
            self.queries.add(query)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield
        finally:
            with self._counting:
                self._now -= 1

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that leaves is what some tests are about."""


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[ShardServer]:
    """Run a server while the block lasts."""
    # Clients that fsspec keeps would go on asking the server of an earlier test.
    s3fs.S3FileSystem.clear_instance_cache()
    server = ShardServer(certificate)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def trust(monkeypatch: pytest.MonkeyPatch, web: ShardServer, store: ShardServer) -> None:
    """Let this process, and those it starts, trust one server and take another for S3."""
    assert web.certificate is not None
    settings = {
        "SSL_CERT_FILE": str(web.certificate),
        "AWS_ENDPOINT_URL": store.address,
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "STORAGE_EMULATOR_HOST": store.address,
        "FSSPEC_GS_TOKEN": "anon",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def make_certificate(folder: Path) -> Path:
    """Make a certificate and key for 127.0.0.1 that nobody trusts yet."""
    path = folder / "server.pem"
    key = folder / "key.pem"
    command = shlex.split(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command, "-keyout", key, "-out", path], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer would wait 40 ms for an acknowledgement

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Answer as to GET, without the content."""
        self.do_GET()

    def do_GET(self) -> None:
        """Answer, or fail."""
        server = cast(ShardServer, self.server)
        parts = urlsplit(self.path)
        if "list-type=2" in parts.query:
            self._list(parts.path.strip("/"), parse_qs(parts.query).get("prefix", [""])[0])
            return
        path = unquote(_GOOGLE.sub(r"/\1/\2", parts.path))
        with server.answering(path, parts.query):
            self._answer(path, self._fault(path))

    def _list(self, bucket: str, prefix: str) -> None:
        """Answer S3's ListObjectsV2 with the files of one folder."""
        start = f"/{bucket}/{prefix}"
        names = [name for name in cast(ShardServer, self.server).files if name.startswith(start)]
        contents = "".join(
            f"<Contents><Key>{name.removeprefix(f'/{bucket}/')}</Key><Size>1</Size></Contents>"
            for name in names
            if "/" not in name.removeprefix(start)
        )
        body = f"<ListBucketResult><KeyCount>1</KeyCount>{contents}</ListBucketResult>"
        self._send(HTTPStatus.OK, body.encode(), ("Content-Type", "application/xml"))

    def _answer(self, path: str, fault: str) -> None:
        if fault == "reset":
            self._reset()
        elif fault in ("redirect", "redirect_by_uri"):
            header = "Location" if fault == "redirect" else "URI"
            self._send(HTTPStatus.FOUND, b"", (header, cast(ShardServer, self.server).elsewhere))
        elif fault == "circle":
            self._send(HTTPStatus.FOUND, b"", ("Location", self.path))
        elif fault == "garbled":
            self.wfile.write(b"no answer of HTTP\r\n\r\n")
            self.close_connection = True
        elif fault == "gzip":
            content = gzip.compress(bytes(64 << 20), compresslevel=1)
            self._send(HTTPStatus.OK, content, ("Content-Encoding", "gzip"))
        elif fault == "endless":
            self._send_endless()
        elif fault.isdecimal():
            self._refuse(int(fault))
        elif path not in cast(ShardServer, self.server).files:
            self._refuse(404)
        else:
            self._send_file(cast(ShardServer, self.server).files[path], fault)

    def _fault(self, path: str) -> str:
        faults = cast(ShardServer, self.server).faults.get(path)
        if not faults:
            return ""
        return faults[0][:-1] if faults[0].endswith("*") else faults.popleft()

    def _send_file(self, content: bytes, fault: str) -> None:
        if fault == "short":  # the object itself ends early
            content = content[: len(content) // 2]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status, size, header = HTTPStatus.OK, len(content), ("Accept-Ranges", "bytes")
        if asked is not None and fault != "no_range":
            start, end = int(asked[1]), int(asked[2] or size - 1) + 1
            if start >= size:
                self._refuse(416)
                return
            content = content[start:end]
            status = HTTPStatus.PARTIAL_CONTENT
            header = ("Content-Range", f"bytes {start}-{start + len(content) - 1}/{size}")
        if fault == "flip":
            content = bytes([content[0] ^ 1]) + content[1:]
        if fault == "slow":
            time.sleep(0.4)
        self._send(status, content, header, fault=fault)

    def _send(
        self, status: HTTPStatus, body: bytes, *headers: tuple[str, str], fault: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"one"')
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if fault in ("cut", "stall"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall":
                cast(ShardServer, self.server).ended.wait(STALL_SECONDS)
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(body)

    def _send_endless(self) -> None:
        server = cast(ShardServer, self.server)
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Connection", "close")
        self.end_headers()
        while server.endless_bytes < ENDLESS_BYTES:
            server.endless_bytes += self.wfile.write(bytes(1 << 16))

    def _refuse(self, status: int) -> None:
        code = _S3_CODES.get(status, "InternalError")
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
        self._send(HTTPStatus(status), body.encode(), ("Content-Type", "application/xml"))

    def _reset(self) -> None:
        # With a linger of 0 seconds, closing sends a reset.
        connection = self.connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        descriptor = connection.detach()
        socket.close(descriptor)
        self.close_connection = True
