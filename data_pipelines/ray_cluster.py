"""A Ray cluster: one that is there, or a small one of this machine that ends with the program.

Everything that Ray starts here listens on 127.0.0.1 and wants a token, because whoever may send
Ray a task can execute code. Usage statistics are off: nothing is sent.

Source: `ray.init` and `ray._private` of Ray 2.60;
https://docs.ray.io/en/latest/ray-security/token-auth.html
"""

import logging
import os
import secrets
import signal
import socket
from pathlib import Path
from typing import Any

from ernie_vilg.errors import InputError

logger = logging.getLogger(__name__)

_EXTRA = "pip install 'ernie-vilg[ray]'"
_OBJECT_STORE_BYTES = 80 * 1024**2
"""Shared memory of Ray, about its minimum: tasks exchange paths and counts, not pictures."""
_CONNECT_SECONDS = 10.0
_HERE_ONLY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's own way to keep all its ports on 127.0.0.1, meant for systems with a firewall dialog.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Tasks that reserve no GPU see what the program sees.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Variables of Ray and all its processes, read when Ray is imported."""


def connect(address: str | None, *, num_workers: int, dashboard: bool) -> Any:
    """Return the module `ray`, connected to a cluster. A connection that is there is kept.

    Args:
        address: `auto` for the cluster that this machine belongs to, or `host:port`; null starts a
            cluster on this machine.
        num_workers: tasks at once on a cluster that is started; 0 takes every CPU.
        dashboard: whether a cluster that is started shows Ray's page.

    Raises:
        InputError: Ray is missing, there is no cluster, or it has other versions.
    """
    if address is not None and "://" in address:
        raise InputError(
            f"ray_address={address}: set auto or host:port and start the program on a node of the "
            "cluster, such as with `ray job submit`. The tasks of a ray:// program that was killed "
            "would go on writing for half a minute"
        )
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a late call must not start another cluster
    if address is None:
        os.environ.update(_HERE_ONLY)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError(f"executor=ray needs a package: {_EXTRA}") from error
    if ray.is_initialized():
        return ray
    handler = signal.getsignal(signal.SIGTERM)
    if address is None:
        _start(ray, num_workers or len(os.sched_getaffinity(0)), dashboard=dashboard)
    else:
        _join(ray, address)
    signal.signal(signal.SIGTERM, handler)  # Ray's would make the signal an ordinary exit
    return ray


def _start(ray: Any, num_cpus: int, *, dashboard: bool) -> None:
    _make_token()
    try:
        context = ray.init(
            "local",
            num_cpus=num_cpus,
            include_dashboard=dashboard,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"executor=ray: no Ray could be started on this machine ({_first_line(error)}): set "
            "executor=processes, or ray_address to a cluster that runs"
        ) from error
    if context.dashboard_url:
        logger.info(
            "Ray's page for this work: http://%s; `ray get-auth-token` prints its token",
            context.dashboard_url,
        )


def _join(ray: Any, address: str) -> None:
    try:
        if address != "auto":
            _check_port(address)
        context = ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(
            f"ray_address={address}: no cluster that this program can join "
            f"({_first_line(error)}): start the program on one of its nodes, with the same "
            "versions of Python and Ray, or set ray_address=null for one of this machine alone"
        ) from error
    if context.dashboard_url:
        logger.info("Ray's page for this cluster: http://%s", context.dashboard_url)


def _check_port(address: str) -> None:
    """Try the port, of which Ray itself would say after two minutes that nobody listens."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("it must be auto or host:port")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


def _make_token() -> None:
    """Write Ray's token if there is none; Ray's own file could be read by everyone."""
    chosen = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    path = Path.home() / ".ray" / "auth_token"
    if path.exists() or any(name in os.environ for name in chosen):
        return
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:  # another program was faster
        return
    except OSError as error:
        raise InputError(
            f"executor=ray: Ray's token cannot be written to {path} ({error.strerror}): set the "
            "variable RAY_AUTH_TOKEN to 64 random hexadecimal digits"
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] if lines else type(error).__name__
