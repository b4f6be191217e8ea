"""What JAX reads from the environment when it starts; set by the command line, never on import."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fedjax_vp.errors import UserError

_MEETING_S = 300
_HOST_DEVICES = "--xla_force_host_platform_device_count="
_VECTORS = "--xla_cpu_prefer_vector_width="


def prepare_jax() -> None:
    """Environment that JAX reads when it starts; what the user has set stays.

    A host device for each core (clients are sharded over them), a private compilation cache, and with AVX-512
    vectors as wide as the processor's: XLA stops at 256 bits by itself, and a round of the GRU takes 4 to 9 %
    less. Without AVX-512 they would bring nothing.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = {_HOST_DEVICES: count} | ({_VECTORS: 512} if _has_avx512() else {})
    for flag, value in wanted.items():
        flags = os.environ.get("XLA_FLAGS", "")
        if flag not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {flag}{value}".strip()
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


def prepare_processes(count: int) -> None:
    """Joins the other processes of a run; in time until JAX's first array.

    They meet at JAX_COORDINATOR_ADDRESS (host:port of process 0), each with its JAX_PROCESS_ID, from 0. Where
    these are not set, JAX asks the scheduler that started them (Slurm, Open MPI, TPU pods, Kubernetes).

    Raises:
        UserError: They did not meet.
    """
    if count <= 1:
        return
    import jax

    index = os.environ.get("JAX_PROCESS_ID")
    if index is not None and not (index.isdecimal() and int(index) < count):
        raise UserError(f"JAX_PROCESS_ID is {index!r}: give a number from 0 to {count - 1}")
    try:
        jax.distributed.initialize(
            num_processes=count,
            process_id=None if index is None else int(index),
            initialization_timeout=int(os.environ.get("JAX_INITIALIZATION_TIMEOUT", _MEETING_S)),
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"engine.processes is {count}, but they did not meet ({reason}): set JAX_COORDINATOR_ADDRESS to "
            "HOST:PORT of process 0 and JAX_PROCESS_ID to each one's number (docs/devices.md)"
        ) from error


def prepare_devices(wanted: int) -> None:
    """Host devices for a config that asks for more than there are cores; in time until JAX's first array."""
    flags = os.environ.get("XLA_FLAGS", "")
    found = re.search(_HOST_DEVICES + r"(\d+)", flags)
    if found and int(found.group(1)) < wanted:
        os.environ["XLA_FLAGS"] = flags.replace(found.group(0), f"{_HOST_DEVICES}{wanted}")


def _has_avx512() -> bool:
    """Whether Linux says so of the processor."""
    try:
        return " avx512f " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
