"""Whether this machine has a login for W&B, found without W&B and without the network."""

import netrc
import os
from collections.abc import Mapping
from urllib.parse import urlsplit


def has_login(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether a key is in the environment, or in the netrc file for the server."""
    if environment.get("WANDB_API_KEY"):
        return True
    server = urlsplit(environment.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(environment.get("NETRC")).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False
