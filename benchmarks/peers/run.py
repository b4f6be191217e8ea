"""Peers on the same work as ours, in interleaved passes, with paired ratios.

    python benchmarks/peers/run.py                                     # the whole table and its figure
    python benchmarks/peers/run.py --clients 16 --out /tmp/peers.json  # a quick look

Every peer has its own environment, made on first use from `requirements/` in the user's cache; one that does
not install or run is skipped with the reason. Each runs in the faster of its modes (one process with a thread
a core, or a process a core), found by a round of a few clients at a workload's first size. All start from
equal weights and see equal batches in equal order: the global loss must agree to 1e-4 after the first round,
and for the MLP after the fifth. The GRU at this rate is chaotic within its first round; there the losses must
agree to twice what ours moves by when its start is nudged by 1e-7, where that is more. A pass is one round of
each in turn; the ratio of a pair is taken within a pass, and its median is reported. A cell (workload and
number of clients) that the results hold is not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from runners import PEERS, Runner, Skipped, peak_mb, start_ours, start_peer
from table import draw, lines

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from ceilings import device

from fedjax_vp.environment import prepare_jax

WORKLOADS, CLIENTS = ("vp-gru", "vp-mlp"), (64, 256, 1024, 4096)
COMPARED = {"vp-gru": (1,), "vp-mlp": (1, 5)}  # rounds after which losses must agree; the GRU's are chaotic
TOLERANCE = 1e-4
NUDGES = (1e-7, -1e-7, 3e-7, -3e-7)  # about the rounding of a float32
ENOUGH_S = 60.0  # a runner whose rounds have taken so long sits out the later passes
STEPS = 8  # of a client's round

Cell = dict[str, Any]


def measure(cell: Cell, peers: list[str], passes: int, modes: dict[str, str], say: Any) -> None:
    """Fills a cell: starts ours and every peer that can run, and compares them."""
    with tempfile.TemporaryDirectory() as name:
        folder, runners = Path(name), {}
        try:
            say("starting ours")
            runners["ours"] = start_ours(cell["workload"], cell["clients"], folder)
            runners["ours"].ask("round")  # compiles
            for peer in peers:
                say(f"starting {peer}")
                try:
                    known = (modes[peer],) if peer in modes else PEERS[peer].modes
                    runners[peer] = start_peer(peer, cell["workload"], folder, known)
                except Skipped as reason:
                    cell["skipped"][peer] = str(reason)
            compare(cell, runners, passes, say)
        finally:
            for runner in runners.values():
                runner.close()


def compare(cell: Cell, runners: dict[str, Runner], passes: int, say: Any) -> None:
    """Seconds of each pass, losses after the compared rounds, and ratios to ours, by runner."""
    compared = COMPARED[cell["workload"]]
    rows: dict[str, Any] = {
        name: {"mode": runner.mode, "versions": runner.versions, "seconds": [], "losses": {}}
        for name, runner in runners.items()
    }
    for number in range(1, max(passes, *compared) + 1):
        for name, runner in list(runners.items()):
            row = rows[name]
            if sum(row["seconds"]) > ENOUGH_S:
                continue
            say(f"pass {number}, {name}")
            try:
                if number == 1 or len(compared) == 1:
                    runner.ask("reset")
                row["seconds"].append(runner.ask("round")["seconds"])
                if number in compared:
                    row["losses"][str(number)] = runner.ask("loss")["loss"]
            except Skipped as reason:
                if name == "ours":
                    raise
                runners.pop(name).close()
                rows.pop(name)
                cell["skipped"][name] = str(reason)
    cell["spread"] = spread(runners["ours"]) if len(compared) == 1 and len(rows) > 1 else 0.0
    for name, row in rows.items():
        row["peak_rss_mb"] = peak_mb(runners[name].process.pid)
    cell["runners"] = judged(rows, cell["clients"], max(TOLERANCE, 2 * cell["spread"]))


def spread(ours: Runner) -> float:
    """Range of the loss after the first round over starts that differ by the rounding of a float32."""
    losses = []
    for nudge in (0.0, *NUDGES):
        ours.ask(f"reset {nudge}")
        ours.ask("round")
        losses.append(ours.ask("loss")["loss"])
    return max(losses) - min(losses)


def judged(rows: dict[str, Any], clients: int, tolerance: float) -> dict[str, Any]:
    """Adds the rate, the ratio to ours, and whether it was the same work."""
    ours = rows["ours"]
    for row in rows.values():
        pairs = zip(row["seconds"], ours["seconds"], strict=False)
        row["times_ours"] = statistics.median(theirs / mine for theirs, mine in pairs)
        row["client_steps_per_second"] = STEPS * clients / statistics.median(row["seconds"])
        row["same_work"] = all(abs(x - ours["losses"][n]) < tolerance for n, x in row["losses"].items())
    return rows


def run(results: dict[str, Any], options: argparse.Namespace, console: Console) -> None:
    """Every cell that is missing; the results are written after each."""
    wanted = [(w, n) for w in options.workload for n in options.clients]
    known = {(cell["workload"], cell["clients"]): cell for cell in results["cells"]}
    columns = (TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task("", total=len(wanted))
        for workload, clients in wanted:
            peers = [name for name in options.peers if clients <= PEERS[name].most]
            cell = known.get((workload, clients))
            if cell is None or not {*cell["runners"], *cell["skipped"]}.issuperset(peers):
                cell = {"workload": workload, "clients": clients, "runners": {}, "skipped": {}}

                def say(news: str, cell: Cell = cell) -> None:
                    text = f"{cell['workload']}, {cell['clients']} clients: {news}"
                    bars.update(bar, description=text)
                    if not console.is_terminal:
                        console.print(text, highlight=False, soft_wrap=True)

                modes = {
                    name: row["mode"]
                    for other in known.values()
                    if other["workload"] == workload
                    for name, row in other["runners"].items()
                }
                measure(cell, peers, options.passes, modes, say)
                known[workload, clients] = cell
                results["cells"] = list(known.values())
                options.out.write_text(json.dumps(results, indent=1) + "\n")
            for line in lines(cell):
                console.print(line, highlight=False, soft_wrap=True)
            bars.advance(bar)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=WORKLOADS)
    parser.add_argument("--clients", nargs="+", type=int, default=CLIENTS, metavar="N")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peers.json"))
    options = parser.parse_args()
    prepare_jax()
    machine = device()
    results = (
        json.loads(options.out.read_text()) if options.out.exists() else {"machine": machine, "cells": []}
    )
    if results["machine"] != machine:
        parser.error(f"{options.out} was measured on another machine or JAX; choose another --out")
    try:
        run(results, options, Console(stderr=True))
    except Skipped as reason:
        sys.exit(f"our own runner failed: {reason}")
    draw(results["cells"], options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
