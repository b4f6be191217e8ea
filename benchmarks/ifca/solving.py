"""Runs cells: estimates their time first, keeps what is done, and takes it up again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ifca import judgment
from ifca.settings import Cell, Experiment, cells, identity
from ifca.simulation import Grid, Outcome, Shape, Stop, ifca_round, simulate

Result = dict[str, Any]


def run(experiment: Experiment, out: Path, console: Console) -> list[Result]:
    """Results of all cells, of which those already in the folder are taken from there."""
    path = out / "cells.jsonl"
    known = read(path)
    wanted = {json.dumps(identity(experiment, cell), sort_keys=True): cell for cell in cells(experiment)}
    missing = {key: cell for key, cell in wanted.items() if key not in known}
    work = {key: operations(experiment, cell) for key, cell in missing.items()}
    console.print(
        _estimate(experiment, len(wanted), list(missing.values()), sum(work.values())), highlight=False
    )
    columns = (TextColumn("{task.description}"), BarColumn(24), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task("", total=sum(work.values()))
        for key, cell in missing.items():
            where = f"{cell.sweep.name}, m {cell.m}, n {cell.n}"
            bars.update(bar, description=where)
            known[key] = solve(experiment, cell, lambda share, key=key: bars.advance(bar, share * work[key]))
            write(path, "".join(json.dumps(result) + "\n" for result in known.values()))
            console.print(f"{where}: {known[key]['seconds']:.1f} s", highlight=False)
    return [known[key] for key in wanted]


def solve(experiment: Experiment, cell: Cell, advance: Callable[[float], None]) -> Result:
    """One cell, some data sets after others; `advance` hears the share of it that was done."""
    began = time.perf_counter()
    parts = []
    for first in range(0, experiment.data_sets, experiment.at_once):
        parts.append([np.asarray(values) for values in outcome(experiment, cell, first)])
        advance(experiment.at_once / experiment.data_sets)
    whole = [np.concatenate(part) for part in zip(*parts, strict=True)]
    return {
        "cell": identity(experiment, cell),
        "points": judgment.judge_cell(cell, experiment.d, *whole),
        "seconds": round(time.perf_counter() - began, 2),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def outcome(experiment: Experiment, cell: Cell, first: int) -> Outcome:
    """How the runs of `at_once` data sets end; one compilation serves all cells of equal (k, m, n)."""
    r, sigma = zip(*cell.points, strict=True)
    grid = Grid(jnp.array(r, float), jnp.array(sigma, float), jnp.array(cell.sweep.lr, float))
    tolerance, patience = jnp.array(experiment.tolerance, float), jnp.array(experiment.patience)
    stop = Stop(jnp.array(cell.sweep.rounds), tolerance, patience)
    sets = first + jnp.arange(experiment.at_once)
    key = jax.random.key(experiment.seed)
    return simulate(key, sets, grid, stop, shape_of(experiment, cell), experiment.at_once)


def shape_of(experiment: Experiment, cell: Cell) -> Shape:
    """Static sizes of a cell."""
    return Shape(cell.sweep.k, cell.m, cell.n, experiment.d, experiment.starts)


def operations(experiment: Experiment, cell: Cell) -> float:
    """Most floating-point operations that a cell can take: two products a round, every round."""
    models = cell.sweep.k * len(cell.points) * experiment.starts * len(cell.sweep.lr)
    return 4.0 * cell.m * cell.n * experiment.d * models * cell.sweep.rounds * experiment.data_sets


def _estimate(experiment: Experiment, total: int, missing: list[Cell], work: float) -> str:
    if not missing:
        return f"all {total} cells are known"
    rate = _rate(experiment, missing[0])
    return (
        f"{len(missing)} of {total} cells to run: at most about {work / rate / 60:.1f} min "
        f"({work / 1e12:.3g} Tflop at {rate / 1e9:.3g} Gflop/s); less where runs are still early"
    )


def _rate(experiment: Experiment, cell: Cell) -> float:
    """Floating-point operations a second of rounds on a small data set."""
    shape = shape_of(experiment, cell)._replace(m=cell.sweep.k, n=2000)
    models = len(cell.points) * experiment.starts * len(cell.sweep.lr)
    x, y = jnp.ones((shape.m * shape.n, shape.d)), jnp.ones((shape.m * shape.n, models))
    theta = jnp.ones((shape.d, models, shape.k))
    one = jax.jit(ifca_round, static_argnames="shape")
    taken = []
    for _ in range(4):  # (the first compiles)
        began = time.perf_counter()
        jax.block_until_ready(one(x, y, theta, shape=shape))
        taken.append(time.perf_counter() - began)
    return 4.0 * x.size * models * shape.k / min(taken)


def read(path: Path) -> dict[str, Result]:
    """Results of a folder by what they depend on."""
    if not path.exists():
        return {}
    results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {json.dumps(result["cell"], sort_keys=True): result for result in results}


def write(path: Path, text: str) -> None:
    """Replaces a file in one step: whenever the run is killed, the old or the new one is there, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
