"""The comparison as lines to read and as a figure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TARGETS = {
    "vp-gru": {"torch_vmap": 3.0, "fedjax": 4.0, "flower": 12.0, "pfl": 10.0},
    "vp-mlp": {"torch_vmap": 2.3, "fedjax": 3.8, "flower": 20.0, "pfl": 5.5},
}
NAMES = {
    "ours": "fedjax_vp",
    "torch_vmap": "torch.func.vmap",
    "fedjax": "FedJAX",
    "flower": "Flower",
    "pfl": "pfl-research",
    "torch_loop": "plain PyTorch loop",
}


def lines(cell: dict[str, Any]) -> Iterator[str]:
    """A cell's runners, one a line, the skipped with their reason."""
    yield f"{cell['workload']}, {cell['clients']} clients"
    for name, row in cell["runners"].items():
        peak = f"{row['peak_rss_mb']:6.0f} MB" if row["peak_rss_mb"] else ""
        target = TARGETS[cell["workload"]].get(name)
        aim = f" (aim {target:g})" if target else ""
        ratio = f"ours {row['times_ours']:5.2f} x as fast{aim}" if name != "ours" else ""
        losses = ", ".join(f"{loss:.6f}" for loss in row["losses"].values())
        verdict = "" if row["same_work"] else "  ANOTHER LOSS: not the same work"
        yield (
            f"  {NAMES[name]:18s} {row['mode']:9s} {statistics.median(row['seconds']):8.3f} s a round "
            f"{row['client_steps_per_second']:7.0f} client steps/s {peak}  loss {losses}  {ratio}{verdict}"
        )
    for name, reason in cell["skipped"].items():
        yield f"  {NAMES[name]}: skipped: {reason}"


def draw(cells: list[dict[str, Any]], path: Path) -> None:
    """Client steps a second over the number of clients, by runner, a panel a workload."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    from fedjax_vp.report import style

    looks = style.looks(list(NAMES))
    workloads = sorted({cell["workload"] for cell in cells})
    figure, panels = plt.subplots(
        1, len(workloads), figsize=(4.2 * len(workloads), 3.6), layout="constrained", squeeze=False
    )
    for axes, workload in zip(panels[0], workloads, strict=True):
        mine = sorted((c for c in cells if c["workload"] == workload), key=lambda cell: cell["clients"])
        for name, label in NAMES.items():
            found = [(c["clients"], c["runners"][name]) for c in mine if name in c["runners"]]
            rates = [row["client_steps_per_second"] for _, row in found]
            axes.plot([clients for clients, _ in found], rates, label=label, **looks[name].line())
        axes.set(xscale="log", yscale="log", xlabel="clients", title=workload)
        axes.set_xticks([c["clients"] for c in mine], [str(c["clients"]) for c in mine])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.minorticks_off()
        axes.grid(color="#e4e4e4", linewidth=0.6)
    panels[0, 0].set_ylabel("client steps a second")
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)
