"""Tables and figures of finished runs, made from their folders alone."""

from __future__ import annotations

from fedjax_vp.report.figures import render, render_comparison
from fedjax_vp.report.folder import RunFolder, read
from fedjax_vp.report.tables import Table, cost_table, of_run, run_table, show, tail_table, write

__all__ = [
    "RunFolder",
    "Table",
    "cost_table",
    "of_run",
    "read",
    "render",
    "render_comparison",
    "run_table",
    "show",
    "tail_table",
    "write",
]
