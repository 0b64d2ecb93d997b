"""A free port for the ranks of a run on this machine."""

import socket
from pathlib import Path

import pytest

from ernie_vilg.system import ports
from ernie_vilg.system.ports import free_port


def test_lies_below_the_ports_of_outgoing_connections() -> None:
    lowest_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])

    assert all(free_port() < lowest_outgoing for _ in range(50))


def test_skips_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken = free_port()
    only_two = tmp_path / "ip_local_port_range"
    only_two.write_text(f"{taken + 2}\t60999\n")
    monkeypatch.setattr(ports, "_OUTGOING_RANGE", only_two)
    monkeypatch.setattr(ports, "_LOWEST", taken)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken))
        listener.listen()

        assert {free_port() for _ in range(20)} == {taken + 1}


def test_the_error_names_the_range_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken = free_port()
    only_one = tmp_path / "ip_local_port_range"
    only_one.write_text(f"{taken + 1}\t60999\n")
    monkeypatch.setattr(ports, "_OUTGOING_RANGE", only_one)
    monkeypatch.setattr(ports, "_LOWEST", taken)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken))
        listener.listen()

        with pytest.raises(OSError, match=f"no free TCP port .* from {taken} to {taken}"):
            free_port()
