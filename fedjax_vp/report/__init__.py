"""Tables and figures of finished runs, made from their folders alone."""

from __future__ import annotations

from fedjax_vp.report.figures import render, render_comparison
from fedjax_vp.report.folder import RunFolder, read
from fedjax_vp.report.tables import Table, run_table, show, write

__all__ = [
    "RunFolder",
    "Table",
    "read",
    "render",
    "render_comparison",
    "run_table",
    "show",
    "write",
]
