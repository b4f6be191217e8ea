"""How JAX compiles what takes long, and the seconds it spends on it."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import jax.monitoring
from jax.sharding import Mesh

_EVENTS: tuple[str, ...] = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",  # or what it takes to read a function from the cache
)
_LEVEL = "xla_backend_optimization_level"


@cache
def _listening() -> dict[str, float]:
    spent: dict[str, float] = dict.fromkeys(_EVENTS, 0.0)

    def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event in spent:
            spent[event] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    return spent


def spent_s() -> float:
    """Seconds of lowering and compiling in this process so far, from some call on: take differences."""
    return sum(_listening().values())


def options(mesh: Mesh) -> dict[str, Any]:
    """Options of XLA for functions that run on these devices: `compiler_options` of `jax.jit`.

    On a CPU, LLVM's first level of optimization in place of its third: compilation takes up to a tenth less,
    rounds of the GRU and the transformer 5 %, those of the MLP the same (benchmarks/README.md). What the user
    has set in XLA_FLAGS stays.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return {_LEVEL: 1} if on_cpu and _LEVEL not in os.environ.get("XLA_FLAGS", "") else {}
