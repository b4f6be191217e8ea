"""Viewing traces: importers, cache, splits and synthetic federations. Names load on first use."""

from __future__ import annotations

import importlib
from typing import Any

_MODULE_OF = {
    "Named": "store",
    "Table": "table",
    "TraceSet": "traces",
    "from_table": "table",
    "load": "store",
    "Split": "splits",
    "split": "splits",
}

__all__ = ["Named", "Split", "Table", "TraceSet", "from_table", "load", "split"]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
