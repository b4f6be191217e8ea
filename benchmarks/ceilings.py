"""What the device can do, measured in the process whose work is held against it, and what it is."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_vp.federated.precision import Precision, products

SIDE = {"cpu": 4096}  # of the square matrices; elsewhere 8192
COPIED = {"cpu": 2**28}  # bytes; elsewhere 2^31


def seconds(work: Callable[[], Any]) -> float:
    """Time until the arrays of a call are there."""
    begun = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - begun


def best(work: Callable[[], Any], repeats: int = 5) -> float:
    """The shortest of some times, after a first call that compiles."""
    seconds(work)
    return min(seconds(work) for _ in range(repeats))


def matmul_gflops(precision: Precision = "float32") -> float:
    """Rate of the best of five products of two large square matrices on all cores."""
    size = SIDE.get(jax.default_backend(), 8192)
    x = jnp.ones((size, size), jnp.float32)
    with products(precision):
        product = jax.jit(jnp.matmul)
        return 2e-9 * size**3 / best(lambda: product(x, x))


def copy_gbytes() -> float:
    """Rate of the best of five passes that read and write a large array."""
    x = jnp.zeros(COPIED.get(jax.default_backend(), 2**31) // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return 2e-9 * x.nbytes / best(partial(add, x))


def device() -> dict[str, Any]:
    """What the figures were measured on."""
    import jaxlib

    first = jax.devices()[0]
    model = first.device_kind
    cpuinfo = Path("/proc/cpuinfo")
    if first.platform == "cpu" and cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    return {
        "platform": first.platform,
        "model": model,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }
