"""Seconds that JAX spends on compiling, to be told apart from those its compiled functions take."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax.monitoring

_EVENTS: tuple[str, ...] = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",  # or what it takes to read a function from the cache
)


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
