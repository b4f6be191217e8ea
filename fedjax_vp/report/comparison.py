"""Methods compared over seeds, on the same test windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from fedjax_vp import metrics
from fedjax_vp.errors import UserError
from fedjax_vp.metrics import Interval
from fedjax_vp.report import tables
from fedjax_vp.report.folder import RunFolder
from fedjax_vp.report.tables import Table

_NO_MOTION_TOLERANCE = 1e-3  # relative; other windows differ by far more


class Row(NamedTuple):
    """A method over its seeds."""

    method: str
    mean: Interval  # [horizon]
    median: np.ndarray  # [horizon] mean over seeds
    p95: np.ndarray  # [horizon] mean over seeds
    difference: Interval | None  # [horizon] to the first method, over the seeds both have
    bytes_up: float | None
    bytes_down: float | None
    hurt: dict[str, Any] | None


class Comparison(NamedTuple):
    """Methods in the order given, then the baselines."""

    horizons_s: list[float]
    rows: list[Row]
    setting: str  # data set and protocol

    @property
    def error_deg(self) -> dict[str, np.ndarray]:
        """Mean over seeds, a list over horizons by method."""
        return {row.method: row.mean.mean for row in self.rows}

    @property
    def half_deg(self) -> dict[str, np.ndarray]:
        """Half of the 95 % interval over seeds, by method; NaN for a single seed."""
        return {row.method: row.mean.half for row in self.rows}


def compare(runs: Mapping[str, Sequence[RunFolder]]) -> Comparison:
    """Compare methods by runs of one or several seeds each.

    Args:
        runs: Runs of every method, each with another seed. Users are hurt relative to the first method whose
            algorithm is FedAvg, if there is one.

    Returns:
        Means over seeds, their 95 % intervals, paired differences to the first method, users hurt.

    Raises:
        UserError: The runs were not tested on the same windows, or a method has a seed twice.
    """
    by_seed = {method: _by_seed(method, folders) for method, folders in runs.items()}
    labels = list(by_seed)
    for method in labels[1:]:
        _require_same_windows(by_seed[labels[0]], by_seed[method])
    fedavg = next((m for m in labels if _any(by_seed[m]).summary["algorithm"] == metrics.REFERENCE), None)
    rows = [
        _method_row(
            method,
            by_seed[method],
            None if method == labels[0] else by_seed[labels[0]],
            None if fedavg is None or method == fedavg else by_seed[fedavg],
        )
        for method in labels
    ]
    first = _any(by_seed[labels[0]])
    setting = f"{tables.describe(first.summary['dataset'])}, {tables.describe(first.summary['protocol'])}"
    return Comparison(first.horizons_s, rows + _baseline_rows(by_seed), setting)


def to_frame(comparison: Comparison) -> pl.DataFrame:
    """Long form: one row a method and horizon; what is unknown is null."""
    records = []
    for row in comparison.rows:
        for index, horizon_s in enumerate(comparison.horizons_s):
            record = {
                "method": row.method,
                "horizon_s": horizon_s,
                "mean": float(row.mean.mean[index]),
                "median": float(row.median[index]),
                "p95": float(row.p95[index]),
                "bytes_up": row.bytes_up,
                "bytes_down": row.bytes_down,
                "hurt_share": row.hurt["share"] if row.hurt else None,
                "seeds": row.mean.repeats,
                "low": float(row.mean.low[index]),
                "high": float(row.mean.high[index]),
            }
            if row.difference:
                record |= {
                    "difference": float(row.difference.mean[index]),
                    "difference_low": float(row.difference.low[index]),
                    "difference_high": float(row.difference.high[index]),
                }
            records.append(record)
    schema = {"method": pl.String, "seeds": pl.Int64}
    columns = [
        "method", "horizon_s", "mean", "median", "p95", "bytes_up", "bytes_down", "hurt_share", "seeds",
        "low", "high", "difference", "difference_low", "difference_high",
    ]  # fmt: skip
    frame = pl.DataFrame(records, schema={name: schema.get(name, pl.Float64) for name in columns})
    return frame.with_columns(pl.col(pl.Float64).fill_nan(None))


def to_table(comparison: Comparison) -> Table:
    """One table: mean and interval of every method, below it the difference to the first."""
    first = comparison.rows[0].method
    rows: list[tuple[str, ...]] = []
    for row in comparison.rows:
        sent = (tables.size(row.bytes_up), tables.size(row.bytes_down))
        rows.append((row.method, *_cells(row.mean), *sent, _hurt_cell(row.hurt)))
        if row.difference:
            rows.append((f"  minus {first}", *_cells(row.difference, signed=True), "", "", ""))
    seeds = sorted({row.mean.repeats for row in comparison.rows if row.bytes_up is not None})
    notes = [f"mean ± half of the 95 % interval over seeds ({', '.join(map(str, seeds))} a method)"]
    if seeds == [1]:
        notes = ["one seed a method: no interval over seeds"]
    if any(row.hurt for row in comparison.rows):
        notes.append(
            "hurt: users whose mean error over 1-5 s (and over seeds) is above FedAvg's by more than 0.5°, "
            "with the 95 % interval of the share"
        )
    title = f"Mean great-circle error in degrees: {comparison.setting}"
    return Table(title, tables.header(comparison.horizons_s), tuple(rows), tuple(notes))


def _by_seed(method: str, folders: Sequence[RunFolder]) -> dict[int, RunFolder]:
    out: dict[int, RunFolder] = {}
    for folder in folders:
        seed = int(folder.summary["seed"])
        if seed in out:
            raise UserError(
                f"{folder.path} and {out[seed].path} are both {method} with seed {seed}: give each run once"
            )
        out[seed] = folder
    return out


def _any(by_seed: Mapping[int, RunFolder]) -> RunFolder:
    return next(iter(by_seed.values()))


def _require_same_windows(a: Mapping[int, RunFolder], b: Mapping[int, RunFolder]) -> None:
    """Refuse runs whose errors are not about the same test windows."""
    one, other = _any(a), _any(b)
    for key in ("horizons_s", "dataset", "protocol"):
        if one.summary[key] != other.summary[key]:
            _refuse(one, other, f"{key} {one.summary[key]} and {other.summary[key]}")
    for seed in a.keys() & b.keys():
        one, other = a[seed], b[seed]
        windows = [run.clients["windows"].sum() for run in (one, other)]
        if windows[0] != windows[1]:
            _refuse(one, other, f"{windows[0]} and {windows[1]} windows")
        motion = [run.baselines["no motion"] for run in (one, other)]
        if not np.allclose(motion[0], motion[1], rtol=_NO_MOTION_TOLERANCE):
            _refuse(one, other, "no motion has other errors there")


def _refuse(one: RunFolder, other: RunFolder, why: str) -> None:
    raise UserError(
        f"{one.path} and {other.path} were not tested on the same windows ({why}): "
        "compare runs that share data set, protocol and horizons"
    )


def _method_row(
    method: str,
    runs: Mapping[int, RunFolder],
    first: Mapping[int, RunFolder] | None,
    fedavg: Mapping[int, RunFolder] | None,
) -> Row:
    error = {seed: run.summary["error_deg"] for seed, run in runs.items()}
    difference = None
    if first is not None and (common := sorted(runs.keys() & first.keys())):
        difference = metrics.paired(
            np.array([error[seed]["mean"] for seed in common]),
            np.array([first[seed].summary["error_deg"]["mean"] for seed in common]),
        )
    return Row(
        method=method,
        mean=metrics.interval(np.array([one["mean"] for one in error.values()])),
        median=np.mean([one["median"] for one in error.values()], axis=0),
        p95=np.mean([one["p95"] for one in error.values()], axis=0),
        difference=difference,
        bytes_up=float(np.mean([run.summary["bytes_up"] for run in runs.values()])),
        bytes_down=float(np.mean([run.summary["bytes_down"] for run in runs.values()])),
        hurt=None if fedavg is None else _hurt(runs, fedavg),
    )


def _hurt(runs: Mapping[int, RunFolder], fedavg: Mapping[int, RunFolder]) -> dict[str, Any] | None:
    """Users hurt on average over the seeds both have: users are independent, a user's seeds are not."""
    common = sorted(runs.keys() & fedavg.keys())
    if not common:
        return None
    errors: list[list[np.ndarray]] = [[], []]
    names: list[str] | None = None
    for seed in common:
        for side, run in zip(errors, (runs[seed], fedavg[seed]), strict=True):
            users, by_user = run.errors_by_user()
            if names is not None and users != names:
                return None  # other test users by seed: no user to average over
            names = users
            side.append(metrics.long_term(by_user, run.horizons_s))
    return metrics.hurt(np.mean(errors[0], axis=0), np.mean(errors[1], axis=0))


def _baseline_rows(by_seed: Mapping[str, Mapping[int, RunFolder]]) -> list[Row]:
    """No motion and velocity: every method has the same, and real traces have the same at every seed."""
    runs: dict[int, RunFolder] = {}
    for folders in by_seed.values():
        for seed, run in folders.items():
            runs.setdefault(seed, run)
    rows = []
    for name in _any(runs).baselines:
        unknown = np.full(len(_any(runs).horizons_s), np.nan)
        values = np.array([run.baselines[name] for run in runs.values()])
        if np.allclose(values, values[:1], rtol=_NO_MOTION_TOLERANCE):
            values = values[:1]
        rows.append(Row(name, metrics.interval(values), unknown, unknown, None, None, None, None))
    return rows


def _cells(values: Interval, signed: bool = False) -> list[str]:
    cells = []
    for mean, half in zip(values.mean, values.half, strict=True):
        text = f"{mean:+.2f}" if signed else tables.degrees(float(mean))
        cells.append(f"{text}\n±{half:.2f}" if np.isfinite(half) else text)
    return cells


def _hurt_cell(hurt: Mapping[str, Any] | None) -> str:
    if hurt is None:
        return tables.MISSING
    low, high = hurt["interval"]
    return f"{tables.percent(hurt['share'])}\n{100 * low:.0f}–{100 * high:.0f} %"
