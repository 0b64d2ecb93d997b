"""Slurm's accounting for the tests: slurmdbd and a MariaDB.

Source: slurmdbd.conf(5) and sacctmgr(1).
"""

import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from ernie_vilg.system.ports import free_port

PROGRAMS = ("mariadb-install-db", "mariadbd", "slurmdbd", "sacctmgr")

_SLURMDBD = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=root
StorageLoc=slurm_accounts
"""
_CONTROLLER = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.socket
AccountingStorageEnforce=associations
"""


@dataclass(frozen=True, kw_only=True)
class Accounts:
    """Folder and ports of the accounting daemons."""

    folder: Path
    """Folder of the cluster, where munged listens."""
    port: int
    """Port of slurmdbd."""
    database_port: int
    """Port of MariaDB."""

    @property
    def configuration(self) -> str:
        """Lines of slurm.conf that make the controller use the accounting."""
        return _CONTROLLER.format(folder=self.folder, port=self.port)

    @property
    def database_command(self) -> list[str]:
        """Command of the database, which gives full access to everyone at its port."""
        return [
            "mariadbd",
            "--no-defaults",
            f"--user={psutil.Process().username()}",
            f"--datadir={self.folder / 'database'}",
            f"--socket={self.database_socket}",
            f"--pid-file={self.folder / 'database.pid'}",
            "--bind-address=127.0.0.1",
            f"--port={self.database_port}",
            "--skip-grant-tables",
        ]

    @property
    def database_socket(self) -> Path:
        """Socket of the database, which exists when it is ready."""
        return self.folder / "database.socket"

    def prepare(self) -> None:
        """Write slurmdbd's configuration, and an empty database."""
        configuration = self.folder / "slurmdbd.conf"
        configuration.touch(mode=0o600)  # slurmdbd refuses a file that others may read
        configuration.write_text(
            _SLURMDBD.format(
                folder=self.folder,
                host=socket.gethostname().split(".")[0],
                user=psutil.Process().username(),
                port=self.port,
                database_port=self.database_port,
            )
        )
        words = [
            "mariadb-install-db",
            "--no-defaults",
            "--skip-test-db",
            f"--user={psutil.Process().username()}",
            f"--datadir={self.folder / 'database'}",
        ]
        subprocess.run(words, check=True, capture_output=True)

    def is_open(self) -> bool:
        """Return whether slurmdbd answers."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def choose_accounts(folder: Path) -> Accounts:
    """Return accounting on free ports."""
    return Accounts(folder=folder, port=free_port(), database_port=free_port())
