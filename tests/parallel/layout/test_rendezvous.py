"""Ranks that do not find each other say where and why, in time."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import Store

from ernie_vilg.config.launch import Launch, RendezvousError
from ernie_vilg.parallel.layout import flight_record, groups
from ernie_vilg.parallel.layout.rendezvous import StoreAddress, open_shared_store
from ernie_vilg.system.ports import free_port

TIMEOUT_SECONDS = 2.0
LENIENT = 5
"""Times the timeout that a message may take on a busy machine."""


@pytest.fixture(autouse=True)
def no_attempt_is_left() -> Iterator[None]:
    """Wait for abandoned attempts: one that ends while the interpreter exits would abort it."""
    yield
    for thread in threading.enumerate():
        if thread.name == "rendezvous":
            thread.join()


@pytest.fixture
def mute_port() -> Iterator[int]:
    """Return the port of a program that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def address_of(port: int, host: str = "127.0.0.1") -> StoreAddress:
    return StoreAddress(host=host, port=port, is_kept_by_launcher=False, attempt="0")


def launch_of(rank: int, world_size: int) -> Launch:
    return Launch(rank=rank, local_rank=rank, world_size=world_size)


def refusal(rank: int, world_size: int, address: StoreAddress) -> str:
    started = time.monotonic()
    with pytest.raises(RendezvousError) as caught:
        open_shared_store(launch_of(rank, world_size), address, TIMEOUT_SECONDS)
    assert time.monotonic() - started < LENIENT * TIMEOUT_SECONDS
    return str(caught.value)


def test_all_ranks_get_one_store() -> None:
    address = address_of(free_port())

    def open_store(rank: int) -> Store:
        return open_shared_store(launch_of(rank, 3), address, 60.0)

    with ThreadPoolExecutor() as pool:
        stores = list(pool.map(open_store, range(3)))

    stores[1].set("key", "value")
    assert [store.get("key") for store in stores] == [b"value"] * 3


def test_missing_ranks_are_named() -> None:
    address = address_of(free_port())
    with ThreadPoolExecutor() as pool:
        texts: list[Future[str]] = [pool.submit(refusal, rank, 4, address) for rank in (0, 2)]

    assert "2 of 4 ranks did not join within cluster.rendezvous_timeout_seconds=2: 1, 3" in (
        texts[0].result()
    )
    assert f"reached rank 0 at MASTER_ADDR=127.0.0.1, MASTER_PORT={address.port}" in (
        texts[1].result()
    )


def test_a_port_in_use_is_named(mute_port: int) -> None:
    text = refusal(0, 2, address_of(mute_port))

    assert f"MASTER_PORT={mute_port}: another program on {socket.gethostname()} uses this" in text
    assert "--master_port" in text


def test_waiting_for_another_program_on_the_port_ends(mute_port: int) -> None:
    assert f"does not reach rank 0 at MASTER_ADDR=127.0.0.1, MASTER_PORT={mute_port}" in refusal(
        1, 2, address_of(mute_port)
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_a_wrong_address_is_named(rank: int) -> None:
    text = refusal(rank, 2, address_of(free_port(), host="no-such-host.invalid"))

    assert f"rank {rank} on {socket.gethostname()} does not reach rank 0" in text
    assert "MASTER_ADDR=no-such-host.invalid" in text


@pytest.mark.parametrize(
    ("host", "port"), [("", "29500"), ("node1", ""), ("node1", "x"), ("node1", "70000")]
)
def test_no_address_is_one_message(monkeypatch: pytest.MonkeyPatch, host: str, port: str) -> None:
    monkeypatch.setenv("MASTER_ADDR", host)
    monkeypatch.setenv("MASTER_PORT", port)

    with pytest.raises(RendezvousError, match=f"MASTER_ADDR='{host}', MASTER_PORT='{port}'"):
        groups._store_address()


def test_torchruns_agent_keeps_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29500",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "2",
    }.items():
        monkeypatch.setenv(name, value)

    assert groups._store_address() == StoreAddress(
        host="node1", port=29500, is_kept_by_launcher=True, attempt="2"
    )


def test_the_flight_recorder_writes_into_the_run_folder_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE"):
        monkeypatch.setenv(name, "")  # restored at the end
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_NCCL_TRACE_BUFFER_SIZE", "7")

    flight_record.record_collectives(tmp_path / "reports")

    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == (f"{tmp_path}/reports/collectives-rank_")
    assert "TORCH_FR_BUFFER_SIZE" not in os.environ
