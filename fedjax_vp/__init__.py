"""Federated learning for viewport prediction in 360-degree video, as one jit-compiled round.

The public names load on first use, so that `import fedjax_vp` and the command line start at once.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULE_OF = {
    "Config": "config",
    "load_config": "config",
    "run": "experiment",
    "RunResult": "experiment",
    "UserError": "errors",
}
_SUBMODULES = ("algorithms", "data", "geometry", "models")

__all__ = [
    "Config",
    "RunResult",
    "UserError",
    "algorithms",
    "data",
    "geometry",
    "load_config",
    "models",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
