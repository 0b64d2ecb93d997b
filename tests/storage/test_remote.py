"""A remote file arrives whole and undamaged, or an error says why not."""

import hashlib
import io
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from ernie_vilg.storage.locations import is_remote, shown
from ernie_vilg.storage.remote import (
    ContentDiffersError,
    RemoteError,
    RemoteFolder,
    TransferLimits,
    copy_blocks,
)
from tests.data.shard_server import STALL_SECONDS, ShardServer, trust

CONTENT = bytes(range(256)) * 17  # 4,352 bytes: 5 blocks, the last one shorter
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NUM_BLOCKS = 5
LIMITS = TransferLimits(max_attempts=4, block_bytes=1000, block_seconds=20, wait_seconds=0.01)
PATH = "/bucket/shards/a.tar"


@pytest.fixture
def web(servers: tuple[ShardServer, ShardServer], monkeypatch: pytest.MonkeyPatch) -> ShardServer:
    trust(monkeypatch, *servers)
    for server in servers:
        server.files = {PATH: CONTENT}
        server.faults.clear()
        server.requests.clear()
        server.queries.clear()
    return servers[0]


@pytest.fixture(params=["https", "s3"])
def place(
    request: pytest.FixtureRequest, web: ShardServer, servers: tuple[ShardServer, ShardServer]
) -> tuple[ShardServer, str]:
    """A server that holds the file, and the folder's location in it."""
    if request.param == "https":
        return web, f"{web.address}/bucket/shards"
    return servers[1], "s3://bucket/shards"


def copied(location: str, limits: TransferLimits = LIMITS) -> bytes:
    target = io.BytesIO()
    file = RemoteFolder(location, limits).file("a.tar")
    copy_blocks(file, target, num_bytes=len(CONTENT), sha256=SHA256, limits=limits)
    return target.getvalue()


@pytest.mark.parametrize("block_bytes", [1000, 4352, 5000])
def test_a_file_of_unknown_size_is_read_in_blocks(
    place: tuple[ShardServer, str], block_bytes: int
) -> None:
    server, location = place
    server.fail(PATH, "503")
    folder = RemoteFolder(
        location.removesuffix("/shards"), replace(LIMITS, block_bytes=block_bytes)
    )

    blocks = list(folder.inner("shards").blocks("a.tar"))

    assert b"".join(blocks) == CONTENT
    assert max(map(len, blocks)) <= block_bytes


def test_a_file_that_is_not_there_has_no_blocks(place: tuple[ShardServer, str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"b\.tar does not exist"):
        list(RemoteFolder(place[1], LIMITS).blocks("b.tar"))


@pytest.mark.parametrize(
    "location", ["s3://bucket/shards", "gs://bucket", "https://host:80/shards?token=x"]
)
def test_these_are_remote(location: str) -> None:
    assert is_remote(location)


@pytest.mark.parametrize("location", ["shards", "/data/shards", "../shards", "./pipe:x", "a/b:c"])
def test_these_are_local(location: str) -> None:
    assert not is_remote(location)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("pipe:cat shards.tar", "begins with pipe: is not read"),
        ("http://host/shards", "begins with http: is not read"),
        ("ftp://host/shards", "begins with ftp: is not read"),
        ("file:///shards", "begins with file: is not read"),
        ("simplecache::s3://bucket", "begins with simplecache: is not read"),
        ("S3://bucket", "begins with S3: is not read"),
        ("https:///shards", "begins with https: is not read"),
        ("s3://bucket/shards\ntouch x", "control character"),
        ("/shards\n", "control character"),
        ("s3://bucket/../shards", "has '..' in its path"),
        ("https://host/a/%2e%2e/b", "has '..' in its path"),
        ("s3://bucket/shards?versionId=1", "followed by '?' or '#'"),
        ("https://host/shards#x", "followed by '?' or '#'"),
    ],
)
def test_these_are_refused(location: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?").replace("..", r"\.\.")):
        is_remote(location)


def test_a_url_is_shown_without_secrets() -> None:
    url = "https://user:password@host:80/shards?signature=secret"

    assert shown(url) == "https://host:80/shards"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b.tar", "../a.tar"])
def test_a_file_name_stays_in_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="is not a file of https://host/shards"):
        RemoteFolder("https://host/shards").file(name)


def test_a_file_arrives_in_blocks(place: tuple[ShardServer, str]) -> None:
    server, location = place

    assert copied(location) == CONTENT
    assert server.requests[PATH] == NUM_BLOCKS


def test_google_cloud_storage_is_read(web: ShardServer) -> None:
    pytest.importorskip("gcsfs", reason="needs pip install 'ernie-vilg[remote]'")

    assert copied("gs://bucket/shards") == CONTENT


@pytest.mark.parametrize("fault", ["503", "500", "429", "reset", "cut", "short", "flip"])
def test_a_fault_that_passes_costs_one_attempt(place: tuple[ShardServer, str], fault: str) -> None:
    server, location = place
    server.fail(PATH, "", "", fault)

    assert copied(location) == CONTENT
    # A wrong byte is found at the end, so the whole file is requested again.
    assert server.requests[PATH] == (2 * NUM_BLOCKS if fault == "flip" else NUM_BLOCKS + 1)


def test_a_stalled_answer_is_a_fault_that_passes(place: tuple[ShardServer, str]) -> None:
    server, location = place
    server.fail(PATH, "", "stall")
    started = time.monotonic()

    assert copied(location, replace(LIMITS, block_seconds=1)) == CONTENT
    assert time.monotonic() - started < STALL_SECONDS / 2
    assert server.requests[PATH] == NUM_BLOCKS + 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("503", r"a\.tar was given up after 4 attempts: HTTP 503 Service Unavailable"),
        ("reset", r"a\.tar was given up after 4 attempts: "),
    ],
)
def test_a_fault_that_stays_ends_the_transfer(
    place: tuple[ShardServer, str], fault: str, message: str
) -> None:
    server, location = place
    server.fail(PATH, f"{fault}*")

    with pytest.raises(RemoteError, match=message):
        copied(location)

    # aiohttp itself retries once after a lost connection.
    own = 2 if fault == "reset" else 1
    assert server.requests[PATH] <= own * LIMITS.max_attempts


@pytest.mark.parametrize(
    ("fault", "reason", "message"),
    [
        ("flip", "sha256", "given up after 4 attempts: its SHA-256 is [0-9a-f]{64}, not"),
        ("short", "size", "given up after 4 attempts: it ends at byte 2176, before 3000"),
    ],
)
def test_another_content_is_told_from_a_lost_connection(
    place: tuple[ShardServer, str], fault: str, reason: str, message: str
) -> None:
    server, location = place
    server.fail(PATH, f"{fault}*")

    with pytest.raises(ContentDiffersError, match=message) as caught:
        copied(location)

    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("404", FileNotFoundError, r"shards/a\.tar does not exist"),
        ("403", RemoteError, r"a\.tar cannot be read: HTTP 403 Forbidden\. Another attempt"),
    ],
)
def test_an_answer_that_is_final_is_asked_for_once(
    place: tuple[ShardServer, str], fault: str, error: type[Exception], message: str
) -> None:
    server, location = place
    server.fail(PATH, f"{fault}*")

    with pytest.raises(error, match=message):
        copied(location)

    assert server.requests[PATH] == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no_range", "must honour requests for a range of bytes"),
        ("redirect", "redirects to http://, which is not encrypted"),
        ("redirect_by_uri", "redirects without saying where"),
        ("gzip", r"answers compressed \(gzip\) where the plain file was asked for"),
        ("endless", "answers with more than the 1000 bytes that were asked for"),
    ],
)
def test_a_server_that_will_not_do_is_refused(web: ShardServer, fault: str, message: str) -> None:
    web.fail(PATH, f"{fault}*")

    with pytest.raises(RemoteError, match=message):
        copied(f"{web.address}/bucket/shards")

    assert web.requests[PATH] == 1


def test_an_endless_answer_is_not_read_on(web: ShardServer) -> None:
    web.fail(PATH, "endless*")
    web.endless_bytes = 0

    with pytest.raises(RemoteError):
        copied(f"{web.address}/bucket/shards")

    # Bytes in the sockets' buffers are still sent.
    assert web.endless_bytes < 50 << 20


@pytest.mark.parametrize("fault", ["redirect", "redirect_by_uri"])
def test_no_redirect_leads_to_plain_http(
    web: ShardServer, servers: tuple[ShardServer, ShardServer], fault: str
) -> None:
    store = servers[1]
    web.elsewhere = f"{store.address}{PATH}"
    web.fail(PATH, f"{fault}*")

    with pytest.raises(RemoteError):
        copied(f"{web.address}/bucket/shards")

    assert store.requests[PATH] == 0


def test_a_redirect_to_https_is_followed(web: ShardServer) -> None:
    web.files["/other/a.tar"] = CONTENT
    web.elsewhere = f"{web.address}/other/a.tar"
    web.fail(PATH, "redirect*")

    assert copied(f"{web.address}/bucket/shards") == CONTENT


def test_redirects_in_a_circle_are_called_so(web: ShardServer) -> None:
    web.fail(PATH, "circle*")

    with pytest.raises(RemoteError, match="redirects more than 10 times, in a circle perhaps"):
        copied(f"{web.address}/bucket/shards")


def test_a_garbled_answer_is_called_so(web: ShardServer) -> None:
    web.fail(PATH, "garbled*")

    with pytest.raises(RemoteError, match="given up after 4 attempts: an answer that is not HTTP"):
        copied(f"{web.address}/bucket/shards")


def test_a_small_file_is_read_up_to_its_limit(place: tuple[ShardServer, str]) -> None:
    folder = RemoteFolder(place[1], LIMITS)

    assert folder.read("a.tar", most_bytes=len(CONTENT)) == CONTENT
    with pytest.raises(RemoteError, match="has more than 4,351 bytes, the most that is read"):
        folder.read("a.tar", most_bytes=len(CONTENT) - 1)


def test_an_untrusted_certificate_is_refused(
    web: ShardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")

    with pytest.raises(RemoteError, match="certificate verify failed"):
        copied(f"{web.address}/bucket/shards")

    assert web.requests[PATH] == 0


def test_secrets_go_to_the_server_and_into_no_message(
    web: ShardServer, caplog: pytest.LogCaptureFixture
) -> None:
    location = f"{web.address.replace('://', '://user:password@')}/bucket/shards?signature=secret"
    web.fail(PATH, "503", "reset", "404*")

    with caplog.at_level(logging.DEBUG, "ernie_vilg"), pytest.raises(FileNotFoundError) as caught:
        copied(location)

    assert web.queries == {"signature=secret"}
    assert "attempt 1 of 4 failed (HTTP 503 Service Unavailable)" in caplog.text
    shown_texts = caplog.text + str(caught.getrepr(style="short"))
    assert "password" not in shown_texts.replace(location, "")
    assert "signature" not in shown_texts.replace(location, "")


class _TalkativeSource:
    """A file whose library puts the whole URL into its errors."""

    name = "https://host/a.tar"

    def read(self, start: int, end: int, timeout_seconds: float) -> bytes:
        raise OSError("no answer from 'https://user:password@host/a.tar?signature=secret' today")


def test_a_library_that_tells_secrets_is_not_quoted() -> None:
    with pytest.raises(RemoteError) as caught:
        copy_blocks(
            _TalkativeSource(),
            io.BytesIO(),
            num_bytes=1,
            sha256=SHA256,
            limits=replace(LIMITS, max_attempts=1),
        )

    assert str(caught.value).endswith("OSError: no answer from 'https://host/a.tar' today")


def test_a_missing_library_is_named() -> None:
    program = (
        "import sys; sys.modules['gcsfs'] = None\n"
        "from ernie_vilg.storage.remote import RemoteFolder\n"
        "RemoteFolder('gs://bucket/shards')"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ
    )

    assert done.returncode == 1
    assert "pip install 'ernie-vilg[remote]'" in done.stderr
