"""What the figures were measured on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from batcher.bench.processes import Cores

_PACKAGES = ("batcher", "pyreqwest", "aiohttp", "uvloop", "orjson")


def machine(cores: Cores) -> dict[str, Any]:
    """Return the system, the cores used and the versions that matter; nothing that names the machine."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "client_core": cores.client,
        "server_core": cores.server,
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
