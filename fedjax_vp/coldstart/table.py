"""What a cold start has found: tables, and how soon each start is as good as the start from scratch."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from fedjax_vp import metrics
from fedjax_vp.coldstart.running import ROUNDS, SECONDS, VIEWERS
from fedjax_vp.coldstart.videos import SCRATCH
from fedjax_vp.config import Config
from fedjax_vp.report import budgets, tables
from fedjax_vp.report.budgets import Column
from fedjax_vp.report.tables import Table

REFERENCE_ROUNDS = 10  # after which the start from scratch is what the others are held against
TITLES = {
    ROUNDS: "a new video after so many rounds",
    VIEWERS: "a new video with so many viewers",
    SECONDS: "a new user after so many seconds",
}
LABELS = {
    ROUNDS: "rounds of the new video",
    VIEWERS: "viewers of the new video",
    SECONDS: "known of the session (s)",
}
SHOWN_S = (1.0, 5.0)  # horizons of the tables: the measured ones nearest to these


def shown_s(found: pl.DataFrame) -> list[float]:
    """Horizons that tables and figures show."""
    horizons = found["horizon_s"].unique().sort().to_list()
    return sorted({min(horizons, key=lambda h: abs(h - wanted)) for wanted in SHOWN_S})


def over_seeds(found: pl.DataFrame) -> pl.DataFrame:
    """Mean over seeds and half of the 95 % interval, of every start, count and horizon."""
    keys = ["known", "start", "count", "horizon_s"]
    rows = []
    for key, part in found.group_by(keys, maintain_order=True):
        spread = metrics.interval(part.select("mean").to_numpy())
        rows.append(dict(zip(keys, key, strict=True)) | {"mean": spread.mean[0], "half": spread.half[0]})
    return pl.DataFrame(rows)


def to_tables(found: pl.DataFrame, setting: str) -> list[Table]:
    """A table for each thing counted and horizon shown: starts down, counts across."""
    means, seeds = over_seeds(found), found["seed"].n_unique()
    out = []
    for known, title in TITLES.items():
        for horizon_s in shown_s(found):
            part = means.filter((pl.col("known") == known) & (pl.col("horizon_s") == horizon_s))
            counts = part["count"].unique().sort().to_list()
            rows = [
                (str(start), *(_cell(one.filter(pl.col("count") == count)) for count in counts))
                for (start,), one in part.group_by("start", maintain_order=True)
            ]
            windows = found.filter(pl.col("known") == known)["windows"][0]
            note = "one seed" if seeds == 1 else f"mean ± half of the 95 % interval over {seeds} seeds"
            name = f"Error at {horizon_s:g} s in degrees: {title}, {setting}"
            columns = ("start", *(f"{count:g}" for count in counts))
            out.append(Table(name, columns, tuple(rows), (f"{note}; {windows} windows",)))
    return [*out, _reach_table(found)]


def reach(found: pl.DataFrame) -> dict[str, list[float | None]]:
    """The least rounds measured after which each start has the error of scratch after 10, by horizon.

    None where it never has.
    """
    means = over_seeds(found).filter(pl.col("known") == ROUNDS)
    reference = reference_rounds(found)
    out: dict[str, list[float | None]] = {}
    for (start,), part in means.group_by("start", maintain_order=True):
        least = []
        for horizon_s in means["horizon_s"].unique().sort():
            at = pl.col("horizon_s") == horizon_s
            aim = means.filter(at & (pl.col("start") == SCRATCH) & (pl.col("count") == reference))["mean"][0]
            there = part.filter(at & (pl.col("mean") <= aim))["count"]
            least.append(float(there.min()) if len(there) else None)  # type: ignore[arg-type]
        out[str(start)] = least
    return out


def reference_rounds(found: pl.DataFrame) -> float:
    """10, or the nearest number of rounds that was measured."""
    counts = found.filter(pl.col("known") == ROUNDS)["count"].unique().to_list()
    return min(counts, key=lambda count: abs(count - REFERENCE_ROUNDS))


def figures(found: pl.DataFrame) -> dict[str, Figure]:
    """Figures by name: of new videos, and of new users."""
    return {
        "new_videos": budgets.over_budgets([_column(found, ROUNDS), _column(found, VIEWERS)], shown_s(found)),
        "new_users": budgets.over_budgets([_column(found, SECONDS)], shown_s(found)),
    }


def _column(found: pl.DataFrame, known: str) -> Column:
    means = over_seeds(found).filter(pl.col("known") == known)
    means = means.filter(pl.col("horizon_s").is_in(shown_s(found)))
    counts = means["count"].unique().sort().to_list()
    error, half = {}, {}
    for (start,), part in means.group_by("start", maintain_order=True):
        for into, key in ((error, "mean"), (half, "half")):
            wide = part.pivot("horizon_s", index="count", values=key).sort("count").drop("count")
            into[str(start)] = wide.to_numpy()
    return Column(LABELS[known], counts, error, half)


def summary(config: Config, found: pl.DataFrame) -> dict[str, Any]:
    """What summary.json holds: means over seeds by what is counted, start and count, lists over horizons."""
    errors: dict[str, Any] = {}
    for (known, start, count), part in over_seeds(found).group_by(
        "known", "start", "count", maintain_order=True
    ):
        by_start = errors.setdefault(str(known), {}).setdefault(str(start), {})
        by_start[f"{count:g}"] = part["mean"].to_list()
    return {
        "algorithm": config.algorithm,
        "dataset": config.dataset.kind,
        "rounds": config.rounds,
        "horizons_s": found["horizon_s"].unique().sort().to_list(),
        "seeds": found["seed"].unique().sort().to_list(),
        "error_deg": errors,
        "reference_rounds": reference_rounds(found),
        "rounds_to_reference": reach(found),
    }


def _reach_table(found: pl.DataFrame) -> Table:
    horizons = found["horizon_s"].unique().sort().to_list()
    cells = {
        start: [tables.MISSING if one is None else f"{one:g}" for one in least]
        for start, least in reach(found).items()
    }
    rows = tuple((start, *least) for start, least in cells.items())
    title = f"Rounds until the error is at most that from scratch after {reference_rounds(found):g}"
    return Table(title, ("start", *(f"{h:g} s" for h in horizons)), rows, ("of the rounds measured",))


def _cell(part: pl.DataFrame) -> str:
    if part.is_empty():
        return tables.MISSING
    mean, half = part.row(0, named=True)["mean"], part.row(0, named=True)["half"]
    return tables.degrees(mean) + (f"\n±{half:.2f}" if np.isfinite(half) else "")
