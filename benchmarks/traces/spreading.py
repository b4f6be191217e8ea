"""Cells over processes: each runs by itself, several at once, and one that fails stops no other."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from fedjax_vp import results
from traces.cells import Cell, config

_LOOK_S = 0.5
_MEMORY = 0.9  # of an accelerator, shared by all jobs


class How(NamedTuple):
    """How cells are run.

    Attributes:
        jobs: Processes at once.
        limit_s: Seconds after which none is started.
        rounds: Of every run; None for its own.
    """

    jobs: int = 1
    limit_s: float = math.inf
    rounds: int | None = None


def todo(cells: Sequence[Cell], out: Path) -> list[Cell]:
    """Cells of which some seed is not finished."""
    return [one for one in cells if not all(results.is_finished(one.folder(out, s)) for s in one.seeds)]


def spread(cells: Sequence[Cell], out: Path, how: How, console: Console) -> dict[str, str]:
    """Runs cells in processes of their own.

    Args:
        cells: What is to be run, in this order but for cells that wait for those that train for them.
        out: Folder of all runs; what a cell says goes to `logs/` there.
        how: How many at once, and how long.
        console: Told of what starts and ends, with the time left.

    Returns:
        Last words of the cells that failed, by name.
    """
    begun, waiting, failed = time.perf_counter(), list(cells), dict[str, str]()
    running: dict[subprocess.Popen[bytes], tuple[Cell, float]] = {}
    spent, total = 0.0, sum(cell.seconds for cell in cells)
    try:
        while running or (waiting and time.perf_counter() - begun < how.limit_s):
            under_way = {cell.name for cell, _ in running.values()}
            for cell in list(waiting):
                free = len(running) < how.jobs and time.perf_counter() - begun < how.limit_s
                first = cell.trained_by
                if free and not (first and (first.name in under_way or first in waiting)):
                    waiting.remove(cell)
                    running[_start(cell, out, how)] = cell, time.perf_counter()
            time.sleep(_LOOK_S)
            for process in [one for one in running if one.poll() is not None]:
                cell, since = running.pop(process)
                now, spent = time.perf_counter(), spent + cell.seconds
                if process.returncode:
                    failed[cell.name] = last_words(log_of(cell, out))
                left = (now - begun) * (total - spent) / spent
                verdict = f"FAILED: {failed[cell.name]}" if cell.name in failed else "done"
                console.print(
                    f"{cell.name}: {verdict} after {now - since:.0f} s; about {left / 60:.1f} min left",
                    highlight=False,
                    soft_wrap=True,
                )
    finally:
        for process in running:
            process.terminate()  # a run saves what it has
        for process in running:
            process.wait()
    if waiting:
        console.print(f"{len(waiting)} cells not begun within {how.limit_s:.0f} s: the same command goes on")
    return failed


def log_of(cell: Cell, out: Path) -> Path:
    """Where a cell's output goes."""
    return out / "logs" / f"{cell.name.replace('/', '-')}.log"


def last_words(path: Path) -> str:
    """The last line a cell has written."""
    lines = path.read_text("utf-8", errors="replace").strip().splitlines() if path.is_file() else []
    return lines[-1] if lines else "no word"


def _start(cell: Cell, out: Path, how: How) -> subprocess.Popen[bytes]:
    """A process that runs one cell, with its share of the cores and of an accelerator's memory."""
    environment = dict(os.environ)
    if how.jobs > 1:
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{_MEMORY / how.jobs:.3f}")
        cores = max(1, len(os.sched_getaffinity(0)) // how.jobs) if hasattr(os, "sched_getaffinity") else 1
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={cores}".strip()
    script = Path(__file__).parents[1] / "real_traces.py"
    seeds = ",".join(map(str, cell.seeds))
    command = [sys.executable, str(script), "--out", str(out), "--seeds", seeds, "--cell", cell.name]
    command += ["--rounds", str(how.rounds)] if how.rounds else []
    log_of(cell, out).parent.mkdir(parents=True, exist_ok=True)
    with log_of(cell, out).open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def run_cell(cell: Cell, out: Path, rounds: int | None = None) -> int:
    """Runs all seeds of a cell in this process; what another cell has trained is only measured.

    Returns:
        How many seeds failed.
    """
    from fedjax_vp.progress import Tally
    from fedjax_vp.sweeps import groups

    configs = [config(cell, seed) for seed in cell.seeds]
    if rounds:
        configs = [one.model_copy(update={"rounds": min(rounds, one.rounds)}) for one in configs]
    cases = [groups.Case(one, cell.folder(out, one.seed)) for one in configs]
    for case in cases:
        _take_over(cell, case.config.seed, out)
    with Tally(cell.name, {case.folder: case.config.rounds for case in cases}) as tally:
        failed = groups.run(cases, tally)
    for folder, reason in failed.items():
        print(f"{folder.name}: {reason}", file=sys.stderr)
    return len(failed)


def _take_over(cell: Cell, seed: int, out: Path) -> None:
    """Copies the checkpoints of the finished run that has trained the same models."""
    own, first = cell.folder(out, seed), cell.trained_by
    if first is None or own.exists():
        return
    folder = first.folder(out, seed)
    if results.is_finished(folder) and (folder / "checkpoints").is_dir():
        partial = own.with_name(f".{own.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder / "checkpoints", partial / "checkpoints")
        partial.replace(own)
