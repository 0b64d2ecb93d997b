"""A shard is a local file with the right bytes, however it had to come there."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.shards.cached_folder import open_folder
from ernie_vilg.data.shards.damage import DamagedShardError
from ernie_vilg.data.shards.open_shards import ShardFolder, open_shard
from ernie_vilg.storage.remote import TransferLimits
from ernie_vilg.storage.shard_manifest import Shard
from tests.data.shard_server import ShardServer, trust
from tests.data.token_shards import write_token_shards

SHARD_BYTES = 4096
LIMITS = TransferLimits(block_bytes=1000, block_seconds=20, wait_seconds=0.01)
PROGRAM = """
import sys
from ernie_vilg.config.loader import LoaderConfig
from ernie_vilg.data.shards.cached_folder import open_folder
from ernie_vilg.storage.shard_manifest import Shard
location, cache, file, size, sha256 = sys.argv[1:]
folder = open_folder(location, LoaderConfig(cache_dir=cache))
shard = Shard(file=file, samples=1, bytes=int(size), sha256=sha256, members=("json",))
print("ready", flush=True)
sys.stdin.readline()
print(folder.open(shard).read().hex())
"""


def content_of(index: int) -> bytes:
    return bytes([index]) * SHARD_BYTES


def shard_of(index: int) -> Shard:
    sha256 = hashlib.sha256(content_of(index)).hexdigest()
    return Shard(
        file=f"{index}.tar", samples=1, bytes=SHARD_BYTES, sha256=sha256, members=("json",)
    )


def path_of(index: int) -> str:
    return f"/shards/{index}.tar"


@pytest.fixture
def web(servers: tuple[ShardServer, ShardServer], monkeypatch: pytest.MonkeyPatch) -> ShardServer:
    trust(monkeypatch, *servers)
    for server in servers:
        server.files = {path_of(index): content_of(index) for index in range(6)}
        server.faults.clear()
        server.requests.clear()
    return servers[0]


@pytest.fixture
def open_cached(web: ShardServer, tmp_path: Path) -> Callable[..., ShardFolder]:
    def open_cached(location: str = f"{web.address}/shards", **settings: int) -> ShardFolder:
        loader = LoaderConfig(cache_dir=str(tmp_path / "cache"), **settings)
        return open_folder(location, loader, LIMITS)

    return open_cached


@contextmanager
def another_process(location: str, cache: Path, shard: Shard) -> Iterator[subprocess.Popen[str]]:
    """Run a process that is ready to open a shard, and kill it at the end of the block."""
    arguments = [location, str(cache), shard.file, str(shard.bytes), shard.sha256]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def let_open(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("open\n")
    process.stdin.flush()


def cached(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_file())


def names(*indices: int) -> list[str]:
    return sorted(f"{shard_of(index).sha256}.tar" for index in indices)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_local_shard_is_read_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "1.tar").write_bytes(content_of(1))
    folder = open_folder(str(tmp_path), LoaderConfig())

    with folder.open(shard_of(1)) as file:
        assert os.pread(file.fileno(), 10, 4090) == content_of(1)[:6]
    assert not folder.discard(shard_of(1))
    assert (tmp_path / "1.tar").exists()


@pytest.mark.parametrize("cache_dir", [None, "cache"])
def test_a_missing_local_shard_is_named(tmp_path: Path, cache_dir: str | None) -> None:
    loader = LoaderConfig(cache_dir=cache_dir and str(tmp_path / cache_dir))

    with pytest.raises(
        DamagedShardError, match=rf"{tmp_path}/1\.tar is missing: copy it"
    ) as caught:
        open_folder(str(tmp_path), loader).open(shard_of(1))

    assert caught.value.reason == "missing"


def test_a_remote_location_needs_a_cache() -> None:
    with pytest.raises(ValueError, match=r"loader\.cache_dir=null and s3://bucket is remote"):
        open_folder("s3://bucket", LoaderConfig())


def test_a_cache_is_local() -> None:
    with pytest.raises(
        ValueError, match=r"loader\.cache_dir=s3:\.\.\.: must be a file or folder of this machine"
    ):
        open_folder("shards", LoaderConfig(cache_dir="s3://bucket"))


@pytest.mark.parametrize("loader", [LoaderConfig(), LoaderConfig(cache_dir="cache")])
def test_a_command_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: LoaderConfig
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match="begins with pipe: is not read"):
        open_folder("pipe:touch canary", loader)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["https", "s3", "folder"])
def test_a_shard_is_copied_once(
    kind: str, web: ShardServer, open_cached: Callable[..., ShardFolder], tmp_path: Path
) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "1.tar").write_bytes(content_of(1))
    web.fail(path_of(1), "503", "cut")
    location = {
        "https": f"{web.address}/shards",
        "s3": "s3://shards",
        "folder": str(tmp_path / "shards"),
    }[kind]
    folder = open_cached(location)

    with folder.open(shard_of(1)) as first:
        assert first.read() == content_of(1)
        assert os.pread(first.fileno(), 10, 4090) == content_of(1)[:6]
    web.files.clear()
    (tmp_path / "shards" / "1.tar").unlink()
    with folder.open(shard_of(1)) as second:
        assert second.read() == content_of(1)
    assert cached(tmp_path / "cache") == names(1)


def test_data_sets_share_what_is_the_same(
    web: ShardServer, open_cached: Callable[..., ShardFolder]
) -> None:
    web.files["/other/1.tar"] = content_of(1)
    open_cached().open(shard_of(1)).close()

    open_cached(f"{web.address}/other").open(shard_of(1)).close()

    assert web.requests["/other/1.tar"] == 0


@pytest.mark.parametrize(
    ("fault", "reason"), [("404*", "missing"), ("flip*", "sha256"), ("short*", "size")]
)
def test_a_shard_that_is_damaged_where_it_lies_is_reported(
    web: ShardServer,
    open_cached: Callable[..., ShardFolder],
    tmp_path: Path,
    fault: str,
    reason: str,
) -> None:
    web.fail(path_of(1), fault)

    with pytest.raises(DamagedShardError, match=r"shard https://.*/shards/1\.tar") as caught:
        open_cached(max_attempts=2).open(shard_of(1))

    assert caught.value.reason == reason
    assert cached(tmp_path / "cache") == []


def test_the_shards_used_longest_ago_make_room(
    open_cached: Callable[..., ShardFolder], tmp_path: Path
) -> None:
    folder = open_cached(cache_bytes=3 * SHARD_BYTES)
    files = [folder.open(shard_of(index)) for index in (0, 1, 2, 0, 3, 4)]

    assert cached(tmp_path / "cache") == names(0, 3, 4)
    # What was removed is still good for who has it open.
    assert [file.read(1) for file in files] == [bytes([index]) for index in (0, 1, 2, 0, 3, 4)]
    for file in files:
        file.close()


def test_a_shard_larger_than_the_cache_is_refused(open_cached: Callable[..., ShardFolder]) -> None:
    with pytest.raises(OSError, match=r"0\.tar has 4096 bytes and loader\.cache_bytes=4095"):
        open_cached(cache_bytes=SHARD_BYTES - 1).open(shard_of(0))


def test_shards_being_copied_count(
    web: ShardServer, open_cached: Callable[..., ShardFolder]
) -> None:
    folder = open_cached(cache_bytes=2 * SHARD_BYTES)
    web.most_at_once = 0
    for index in range(4):
        web.fail(path_of(index), "slow")

    with ThreadPoolExecutor(4) as threads:
        for file in threads.map(lambda index: folder.open(shard_of(index)), range(4)):
            file.close()

    assert web.most_at_once == 2


def test_a_damaged_copy_is_healed(
    web: ShardServer, open_cached: Callable[..., ShardFolder], tmp_path: Path
) -> None:
    open_cached().open(shard_of(1)).close()
    copy = tmp_path / "cache" / names(1)[0]
    copy.write_bytes(b"x" + copy.read_bytes()[1:])
    folder = open_cached()

    with folder.open(shard_of(1)) as file:
        assert file.read() != content_of(1)
    assert folder.discard(shard_of(1))
    with folder.open(shard_of(1)) as file:
        assert file.read() == content_of(1)
    # Fetched and compared just now: another copy would be no better.
    assert not folder.discard(shard_of(1))


def test_two_processes_make_one_copy(web: ShardServer, tmp_path: Path) -> None:
    web.fail(path_of(1), "slow")
    arguments = (f"{web.address}/shards", tmp_path, shard_of(1))

    with another_process(*arguments) as one, another_process(*arguments) as two:
        let_open(one)
        let_open(two)
        read = [one.communicate()[0], two.communicate()[0]]

    assert read == [f"{content_of(1).hex()}\n"] * 2
    assert web.requests[path_of(1)] == 1


@pytest.mark.parametrize(
    "index", [pytest.param(1, id="the same shard"), pytest.param(2, id="another shard")]
)
def test_a_killed_process_leaves_nothing_that_is_read(
    web: ShardServer, open_cached: Callable[..., ShardFolder], tmp_path: Path, index: int
) -> None:
    cache = tmp_path / "cache"
    web.fail(path_of(1), "stall")
    with another_process(f"{web.address}/shards", cache, shard_of(1)) as process:
        let_open(process)
        wait_until(lambda: web.requests[path_of(1)] == 1)
    assert cached(cache) == [f".writing-{name}" for name in names(1)]

    # Its lock is in nobody's way, and its half shard is removed.
    with open_cached(timeout_seconds=1).open(shard_of(index)) as file:
        assert file.read() == content_of(index)
    assert cached(cache) == names(index)


def test_a_process_that_hangs_is_waited_for_so_long(
    web: ShardServer, open_cached: Callable[..., ShardFolder], tmp_path: Path
) -> None:
    web.fail(path_of(1), "stall")
    with another_process(f"{web.address}/shards", tmp_path / "cache", shard_of(1)) as process:
        let_open(process)
        wait_until(lambda: web.requests[path_of(1)] == 1)

        with pytest.raises(OSError, match=r"copying shard 1\.tar .* loader\.timeout_seconds=1"):
            open_cached(timeout_seconds=1).open(shard_of(1))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A cache folder on a disk of 64 KB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "cache"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("this container may not mount")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_copies_make_room_on_a_full_disk(
    small_disk: Path, open_cached: Callable[..., ShardFolder]
) -> None:
    (small_disk / "other").write_bytes(bytes(13 * SHARD_BYTES))
    folder = open_cached()

    for index in range(6):
        with folder.open(shard_of(index)) as file:
            assert file.read() == content_of(index)

    assert cached(small_disk) == sorted(["other", *names(3, 4, 5)])


def test_a_disk_full_of_other_things_is_named_with_its_bytes(
    small_disk: Path, open_cached: Callable[..., ShardFolder]
) -> None:
    (small_disk / "other").write_bytes(bytes(16 * SHARD_BYTES))

    message = (
        rf"loader\.cache_dir={small_disk} has 0 bytes free where shard 0\.tar needs 4096: free some"
    )
    with pytest.raises(OSError, match=message):
        open_cached().open(shard_of(0))

    assert cached(small_disk) == ["other"]


def test_an_index_comes_with_its_shard_and_a_damaged_copy_is_healed(
    web: ShardServer, open_cached: Callable[..., ShardFolder], tmp_path: Path
) -> None:
    shard = write_token_shards(tmp_path / "tokens", [3]).shards[0]
    assert shard.index is not None
    for stored in shard.files:
        content = (tmp_path / "tokens" / stored.file).read_bytes()
        web.files[f"/shards/{stored.file}"] = content

    for _ in range(2):
        web.requests.clear()
        with (opened := open_shard(open_cached(), shard)).file:
            assert [opened.key(index) for index in range(3)] == ["00000000", "00000001", "00000002"]
        copy = tmp_path / "cache" / f"{shard.index.sha256}.tar"
        copy.write_bytes(bytes(shard.index.bytes))

    # The second time only the index is asked for, whose copy was found damaged.
    assert web.requests.keys() == {f"/shards/{shard.index.file}"}


def test_a_pipe_in_the_place_of_a_shard_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.tar")

    with pytest.raises(DamagedShardError, match=r"1\.tar is no regular file"):
        open_folder(str(tmp_path), LoaderConfig()).open(shard_of(1))
