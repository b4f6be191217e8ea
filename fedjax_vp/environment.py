"""What JAX reads from the environment when it starts; set by the command line, never on import."""

from __future__ import annotations

import os
import re
from pathlib import Path

_HOST_DEVICES = "--xla_force_host_platform_device_count="


def prepare_jax() -> None:
    """Environment that JAX reads when it starts; what the user has set stays.

    A host device for each core (clients are sharded over them), and a private compilation cache.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _HOST_DEVICES not in flags:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ["XLA_FLAGS"] = f"{flags} {_HOST_DEVICES}{count}".strip()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "fedjax_vp" / "jax"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        except OSError:
            return  # a home that cannot be written costs compilation time, nothing else
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def prepare_devices(wanted: int) -> None:
    """Host devices for a config that asks for more than there are cores; in time until JAX's first array."""
    flags = os.environ.get("XLA_FLAGS", "")
    found = re.search(_HOST_DEVICES + r"(\d+)", flags)
    if found and int(found.group(1)) < wanted:
        os.environ["XLA_FLAGS"] = flags.replace(found.group(0), f"{_HOST_DEVICES}{wanted}")
