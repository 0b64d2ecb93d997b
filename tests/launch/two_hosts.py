"""Two hosts on this machine: network namespaces, each with its own address and sshd.

They write to one folder only and use no keys or settings of the user. All processes in the
namespaces end with them.

Source: ip-netns(8) and sshd(8).
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

ADDRESSES = ("10.77.76.1", "10.77.76.2")
INTERFACE = "train0"
"""Network interface of each host to the other."""
_PROGRAMS = ("pdsh", "sshd", "ssh", "ssh-keygen", "ip")
_SSHD = Path("/usr/sbin/sshd")
_PRIVILEGE_SEPARATION = Path("/run/sshd")
_SECONDS = 10.0


def why_not() -> str | None:
    """Return why this machine cannot have two hosts; None if it can."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_search_path()) is None]
    if missing:
        return f"no {', '.join(missing)} here: apt-get install pdsh openssh-server iproute2"
    if os.geteuid():
        return "network namespaces are root's to make"
    return None


@dataclass(kw_only=True)
class TwoHosts:
    """Two running hosts."""

    folder: Path
    """Folder to make for keys, settings and logs."""
    servers: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, str]:
        """Names of the namespaces."""
        return f"ernie{os.getpid()}a", f"ernie{os.getpid()}b"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of `deepspeed --hostfile`."""
        options = {
            "IdentityFile": self.folder / "key",
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
        }
        words = " ".join(f"-o {name}={value}" for name, value in options.items())
        return {**os.environ, "PDSH_SSH_ARGS_APPEND": f"-F /dev/null {words}"}

    def on(self, index: int) -> list[str]:
        """Return the command that runs a command on a host."""
        return ["ip", "netns", "exec", self.names[index]]

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        try:
            self._join()
            for name in ("key", "host_key"):
                _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
            for index in range(2):
                self._start_sshd(index)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _join(self) -> None:
        first, second = self.names
        for name in self.names:
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", INTERFACE, "netns", first, "type", "veth",
             "peer", "name", INTERFACE, "netns", second)  # fmt: skip
        for name, address in zip(self.names, ADDRESSES, strict=True):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for link in (INTERFACE, "lo"):
                _run("ip", "-n", name, "link", "set", link, "up")

    def _start_sshd(self, index: int) -> None:
        _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        settings = {
            "ListenAddress": ADDRESSES[index],
            "HostKey": self.folder / "host_key",
            "AuthorizedKeysFile": self.folder / "key.pub",
            "PidFile": self.folder / f"sshd-{index}.pid",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "StrictModes": "no",
            "UsePAM": "no",
        }
        file = self.folder / f"sshd-{index}.conf"
        file.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        with (self.folder / f"sshd-{index}.log").open("wb") as log:
            words = [*self.on(index), str(_SSHD), "-D", "-e", "-f", str(file)]
            server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.servers.append(server)
        deadline = time.monotonic() + _SECONDS
        while subprocess.run([*self.on(index), "sh", "-c", f"ss -ltn | grep -q {ADDRESSES[index]}"],
                             check=False).returncode:  # fmt: skip
            assert time.monotonic() < deadline, (self.folder / f"sshd-{index}.log").read_text()
            time.sleep(0.1)

    def _end(self) -> None:
        """End all processes in the namespaces, and remove the namespaces."""
        for name in self.names:
            listed = subprocess.run(
                ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
            )
            processes = []
            for number in listed.stdout.split():
                with contextlib.suppress(psutil.NoSuchProcess):
                    processes.append(psutil.Process(int(number)))
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            psutil.wait_procs(processes, timeout=_SECONDS)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        for server in self.servers:
            server.wait()


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
