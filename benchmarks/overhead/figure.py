"""Seconds of a round's parts, and memory, over the number of clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from overhead.table import PARTS

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel a method, with a line for each part of a round and number of groups; one more for memory."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    known = [row for row in rows if "skipped" not in row]
    methods = list(dict.fromkeys(row["method"] for row in known))
    if not methods:
        return
    figure, panels = plt.subplots(
        1, len(methods) + 1, figsize=(2.6 * (len(methods) + 1), 2.9), layout="constrained", squeeze=False
    )
    for axes, method in zip(panels[0], methods, strict=False):
        _panel(axes, [row for row in known if row["method"] == method])
        axes.set_title(method)
    memory = panels[0][-1]
    for method, color in zip(methods, COLORS, strict=False):
        mine = [row for row in known if row["method"] == method]
        usual = min((row["groups"] for row in mine), key=lambda groups: abs(groups - 4))
        mine = sorted((r for r in mine if r["groups"] == usual), key=lambda row: row["clients"])
        sizes = [row["round_bytes"] / 2**20 for row in mine]
        memory.plot([row["clients"] for row in mine], sizes, marker="o", color=color, label=method)
    memory.set(xscale="log", yscale="log", xlabel="clients", ylabel="MiB of arrays", title="memory")
    memory.legend(frameon=False, fontsize=7)
    panels[0][0].set_ylabel("seconds of a round")
    panels[0][0].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=150)


def _panel(axes: Any, rows: list[dict[str, Any]]) -> None:
    for groups in sorted({row["groups"] for row in rows}):
        mine = sorted((row for row in rows if row["groups"] == groups), key=lambda row: row["clients"])
        for part, color in zip(PARTS, COLORS, strict=False):
            label = part if groups in (1, 4) else None
            seconds = [row[f"{part}_s"] or float("nan") for row in mine]  # none is not drawn
            alpha = 1.0 if groups in (1, 4) else 0.45
            look = {"marker": ".", "color": color, "alpha": alpha, "label": label}
            axes.plot([row["clients"] for row in mine], seconds, **look)
    axes.set(xscale="log", yscale="log", xlabel="clients")
