"""What clustering costs from 10^2 to 10^6 clients: seconds of training, clustering, aggregation; and memory.

    python benchmarks/clustering_overhead.py --out runs/overhead
    python benchmarks/clustering_overhead.py --kinds --out runs/kinds

Cells are ways of sharing (FedAvg, IFCA, k-means on sketches, cosines of whole updates, five layers) by
clients by groups, of `vp-mlp` with local steps of 32 windows; sessions are generated inside the round. Each
finished cell is kept: the same command goes on where it stopped. Cells that would take more than what is left
of `--budget`, by what has been measured so far, are left out and named; so is one that memory does not hold.
`--kinds` measures every grouping instead, and what a headset and the server keep at each depth.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from ceilings import device
from overhead import figure, table
from overhead.cells import KINDS, Cell, grid

from fedjax_vp.environment import prepare_jax

GUESS_S = {"cpu": (12.0, 6e-4), "gpu": (8.0, 6e-5)}  # of a first cell: fixed, and for each client


def predicted_s(cell: Cell, done: dict[str, dict[str, Any]], platform: str) -> float:
    """Seconds that a cell will take: those of the likest cell so far, grown by clients and groups."""
    fixed, each = GUESS_S.get(platform, GUESS_S["gpu"])
    known = [row for row in done.values() if "clustering_s" in row]
    like = [row for row in known if row["method"] == cell.method] or known
    if not like:
        return fixed + each * cell.clients
    near = max(like, key=lambda row: (row["clients"], -abs(row["groups"] - cell.groups)))
    growth = cell.clients / near["clients"]
    if cell.method == "exact":
        growth **= 2
    return near["cell_s"] - near["run_s"] + near["run_s"] * growth * (1 + cell.groups) / (1 + near["groups"])


def run(cells: list[Cell], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measures the cells that are not in the results yet."""
    from overhead.measuring import measure

    path, machine = options.out / "results.json", device()
    kept = json.loads(path.read_text()) if path.exists() else {"machine": machine, "cells": {}}
    done, begun = kept["cells"], time.perf_counter()
    for index, cell in enumerate(cells, 1):
        if "clustering_s" in done.get(cell.name, {}):
            continue
        spent = time.perf_counter() - begun
        ahead = predicted_s(cell, done, machine["platform"])
        told = f"[{index}/{len(cells)}] {spent:5.0f} s spent, {cell.name}: about {ahead:.0f} s"
        row: dict[str, Any] = {**cell._asdict(), "steps": options.steps, "machine": machine}
        if spent + ahead > options.budget:
            row["skipped"] = f"would take about {ahead:.0f} s of the {options.budget - spent:.0f} s left"
        else:
            print(told, file=sys.stderr, flush=True)
            cell_begun = time.perf_counter()
            try:
                row |= measure(cell, options.steps, options.client_block)
            except (MemoryError, RuntimeError) as error:
                if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                row["skipped"] = "out of memory"
            row["cell_s"] = time.perf_counter() - cell_begun
            row["run_s"] = max(row["cell_s"] - row.get("compile_s", 0.0), 0.0)
        print(table.line(row), flush=True)
        done[cell.name] = row
        path.write_text(json.dumps(kept, indent=1) + "\n")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/clustering_overhead"))
    parser.add_argument("--clients", type=int, default=1_000_000, help="of the largest cells")
    parser.add_argument("--methods", nargs="+", help="of the grid, or kinds of grouping (default: all)")
    parser.add_argument("--groups", type=int, nargs="+", help="only these numbers of groups")
    parser.add_argument("--steps", type=int, help="local steps (default: 1; 8 with --kinds)")
    parser.add_argument("--budget", type=float, default=0.0, help="seconds in all (default: 1500 on a CPU)")
    parser.add_argument("--client-block", type=int, default=0, help="clients trained side by side")
    parser.add_argument("--kinds", action="store_true", help="the cost of every grouping, and by depth")
    parser.add_argument("--json", action="store_true", help="print the results as JSON at the end")
    options = parser.parse_args()
    prepare_jax()
    options.out.mkdir(parents=True, exist_ok=True)
    cpu = device()["platform"] == "cpu"
    options.budget = options.budget or (1500.0 if cpu else 600.0)
    options.steps = options.steps or (8 if options.kinds else 1)
    options.client_block = options.client_block or (0 if cpu else 1024)
    if options.kinds:
        cells = [Cell(kind, min(options.clients, 1000), 4) for kind in (*KINDS, "hierarchy")]
        cells = [cell._replace(groups=1) if cell.method == "fedavg" else cell for cell in cells]
    else:
        cells = grid(options.clients, cpu)
    chosen = [c for c in cells if not options.methods or c.method in options.methods]
    chosen = [c for c in chosen if not options.groups or c.groups in options.groups or c.groups == 1]
    guess = sum(predicted_s(cell, {}, device()["platform"]) for cell in chosen)
    print(
        f"{len(chosen)} cells, at a guess {guess / 60:.0f} min, at most {options.budget / 60:.0f} min; "
        f"finished ones are kept in {options.out}",
        file=sys.stderr,
    )
    done = run(chosen, options)
    rows = [done[cell.name] for cell in chosen]
    text = table.markdown(rows)
    if options.kinds:
        from overhead.depths import by_depth

        text += "\n" + table.depths(by_depth(options.out))
    else:
        text += "\n" + table.exponents(rows)
        figure.draw(rows, options.out / "clustering_overhead.png")
    (options.out / "table.md").write_text(text)
    print((options.out / "results.json").read_text() if options.json else text)


if __name__ == "__main__":
    main()
