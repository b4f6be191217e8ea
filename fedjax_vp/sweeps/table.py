"""What a sweep has found, as one table: each point in the files, means over seeds on the screen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fedjax_vp import metrics, results
from fedjax_vp.report import tables
from fedjax_vp.report.tables import Table
from fedjax_vp.sweeps.spec import Planned

_ERROR = "error_deg_"
_COPIED = ("train_loss", "bytes_up", "bytes_down", "compile_s", "wall_s", "evaluate_s")


def frame(varied: Sequence[str], points: Sequence[Planned], failed: Mapping[Path, str]) -> pl.DataFrame:
    """One row a point: its folder, what varies, `status` and `reason`, and of finished ones their summary.

    Values of a setting that are not all numbers or all text are written as JSON.
    """
    rows = []
    for point in points:
        row = {"point": point.folder.name, "status": "failed", "reason": point.refused}
        row |= {key: _plain(point.values.get(key)) for key in varied}
        if point.folder in failed:
            row["reason"] = failed[point.folder]
        elif point.config is not None:
            summary = results.read_json(point.folder / results.SUMMARY)
            error = zip(summary["horizons_s"], summary["error_deg"]["mean"], strict=True)
            row |= {"status": "done"} | {f"{_ERROR}{h}": value for h, value in error}
            row |= {key: summary.get(key) for key in _COPIED}
        rows.append(row)
    for key in varied:
        kinds = {type(row[key]) for row in rows} - {type(None)}
        if len(kinds) > 1 and not kinds <= {int, float}:
            for row in rows:
                row[key] = row[key] if isinstance(row[key], str) else json.dumps(row[key])
    columns = dict.fromkeys(["point", *varied, "status", "reason", *(key for row in rows for key in row)])
    found = pl.DataFrame([{key: row.get(key) for key in columns} for row in rows], infer_schema_length=None)
    return found.sort(list(varied), maintain_order=True, nulls_last=True)


def to_table(title: str, found: pl.DataFrame, varied: Sequence[str]) -> Table:
    """Mean error of every setting over its seeds, half of the 95 % interval, and how many runs ended."""
    settings = [key for key in varied if key != "seed"]
    errors = [name for name in found.columns if name.startswith(_ERROR)]
    rows = []
    for key, part in found.group_by(settings or pl.lit("all seeds"), maintain_order=True):
        done = part.filter(pl.col("status") == "done")
        label = ", ".join(tables.MISSING if value is None else str(value) for value in key)
        cells = [""] * len(errors)
        if len(done):
            spread = metrics.interval(done.select(errors).to_numpy())
            cells = [_cell(m, h) for m, h in zip(spread.mean, spread.half, strict=True)]
        rows.append((label, *cells, f"{len(done)} of {len(part)}"))
    heads = [f"{float(name.removeprefix(_ERROR)):g} s" for name in errors]
    failed = found.filter(pl.col("reason") != "").group_by("reason", maintain_order=True)
    notes = [f"{_names(part['point'])} failed: {reason}" for (reason,), part in failed]
    if len(found) > len(rows):
        notes.insert(0, "mean ± half of the 95 % interval over seeds")
    return Table(title, (", ".join(settings) or "seeds", *heads, "runs"), tuple(rows), tuple(notes))


def write(found: pl.DataFrame, out: Path) -> None:
    """Writes sweep.parquet and sweep.csv."""
    results.write_table(out / "sweep.parquet", found)
    found.write_csv(out / "sweep.csv")


def _names(points: pl.Series) -> str:
    more = f" and {len(points) - 1} more points" if len(points) > 1 else ""
    return f"{points[0]}{more}"


def _cell(mean: float, half: float) -> str:
    return f"{tables.degrees(float(mean))}" + (f"\n±{half:.2f}" if np.isfinite(half) else "")


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value)
