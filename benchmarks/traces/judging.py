"""What the runs say: one table for each data set, and each claim held against its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_vp import metrics, report, results
from traces.cells import Cell

Methods = Mapping[str, Sequence[report.RunFolder]]

# Ratios to no motion that a global model trained on pooled traces reaches at the horizons of the tables.
_GLOBAL_RATIO = {
    "jin": (0.603, 0.717, 0.871, 0.956, 0.975, 0.979, 0.978),
    "wu": (0.568, 0.674, 0.842, 0.943, 0.974, 0.979, 0.981),
    "david": (0.447, 0.546, 0.720, 0.867, 0.937, 0.964, 0.961),
}
_FIVE_GAIN = {"jin": 0.13, "wu": 0.13, "david": 0.06}
_VIDEO_GAIN = {"jin": 0.10, "wu": 0.10}
_SINGLE = ("fedavg", "per_video", "local_only", "ifca", "cfl", "fedgroup")  # without a level above or below


class Verdict(NamedTuple):
    """A claim, the figure that it stands or falls with, and its bound."""

    table: str
    dataset: str
    claim: str
    figure: float
    bound: float
    holds: bool


def collect(cells: Sequence[Cell], out: Path) -> dict[tuple[str, str], dict[str, list[report.RunFolder]]]:
    """Finished runs by table and data set, then by method."""
    found: dict[tuple[str, str], dict[str, list[report.RunFolder]]] = {}
    for cell in cells:
        folders = [cell.folder(out, seed) for seed in cell.seeds]
        runs = [report.read(folder) for folder in folders if results.is_finished(folder)]
        if runs:
            found.setdefault((cell.table, cell.dataset), {})[cell.method] = runs
    return found


def mean(runs: Sequence[report.RunFolder]) -> np.ndarray:
    """Mean error in degrees over seeds: float64 [horizon]."""
    return np.mean([run.summary["error_deg"]["mean"] for run in runs], axis=0)


def by_user(runs: Sequence[report.RunFolder]) -> np.ndarray:
    """Error of each test user, mean over seeds: float64 [user, horizon]."""
    return np.mean([run.errors_by_user()[1] for run in runs], axis=0)


def hurt(runs: Sequence[report.RunFolder], fedavg: Sequence[report.RunFolder]) -> dict[str, Any]:
    """Users whose mean error over 1-5 s is above FedAvg's by more than half a degree."""
    horizons_s = runs[0].horizons_s
    own, other = (metrics.long_term(by_user(side), horizons_s) for side in (runs, fedavg))
    return metrics.hurt(own, other)


def table(place: tuple[str, str], methods: Methods) -> str:
    """Markdown: mean error in degrees, half its interval over seeds, its ratio to no motion in brackets."""
    first = next(iter(methods.values()))[0]
    still = np.asarray(first.summary["baselines"]["no_motion"]["mean"])
    head = [", ".join((*place, f"{first.summary['num_windows']} windows"))]
    head += [*(f"{h:g} s" for h in first.horizons_s), "hurt", "train (s)", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, values in first.baselines.items():
        cells = [f"{e:.2f} ({e / s:.3f})" for e, s in zip(values, still, strict=True)]
        lines.append("| " + " | ".join([name, *cells, "", "", ""]) + " |")
    for name, runs in methods.items():
        found = metrics.interval(np.array([run.summary["error_deg"]["mean"] for run in runs]))
        rows = zip(found.mean, found.half, still, strict=True)
        cells = [f"{e:.2f}{f' ± {h:.2f}' if h == h else ''} ({e / s:.3f})" for e, h, s in rows]
        share = ""
        if name != "fedavg" and "fedavg" in methods:
            share = f"{100 * hurt(runs, methods['fedavg'])['share']:.1f} %"
        seconds = f"{np.mean([run.summary['wall_s'] for run in runs]):.0f}"
        lines.append(
            "| " + " | ".join([name.replace("_", " "), *cells, share, seconds, str(len(runs))]) + " |"
        )
    return "\n".join(lines)


def record(methods: Methods) -> dict[str, list[dict[str, Any]]]:
    """Summaries by method, for JSON."""
    dropped = ("tiles", "by_client", "by_user", "protocol")
    return {
        name: [{key: value for key, value in run.summary.items() if key not in dropped} for run in runs]
        for name, runs in methods.items()
    }


def verdicts(place: tuple[str, str], methods: Methods) -> list[Verdict]:
    """Claims about a table that its finished methods allow to judge."""
    which, dataset = place
    found: list[Verdict] = []

    def judge(claim: str, figure: float, bound: float) -> None:
        found.append(Verdict(which, dataset, claim, float(figure), bound, bool(figure <= bound + 1e-9)))

    error = {name: mean(runs) for name, runs in methods.items()}
    single = [name for name in _SINGLE if name in error]
    if which == "within_session" and "five_layers" in error and single:
        best = np.min([error[name] for name in single], axis=0)
        judge("five layers over the best single level", np.max(error["five_layers"] / best), 1.01)
    if which == "unseen_users":
        _judge_unseen(dataset, error, judge)
        for name in [one for one in single if "five_layers" in error]:
            worse = metrics.paired(by_user(methods["five_layers"]), by_user(methods[name])).low
            judge(
                f"five layers worse than {name}: lower end of the interval over users (deg)",
                np.max(worse),
                0.0,
            )
        if {"five_layers", "fedavg"} <= error.keys():
            judge("users hurt by five layers", hurt(methods["five_layers"], methods["fedavg"])["share"], 0.05)
    return found


def _judge_unseen(dataset: str, error: Mapping[str, np.ndarray], judge: Any) -> None:
    """Claims about means alone; the last horizon is 5 s, the third 1 s."""
    if {"five_layers", "fedavg"} <= error.keys() and dataset in _FIVE_GAIN:
        ratio = error["five_layers"][-1] / error["fedavg"][-1]
        judge("five layers over FedAvg at 5 s", ratio, 1 - _FIVE_GAIN[dataset])
    if {"global_video", "fedavg", "per_video"} <= error.keys():
        better = np.minimum(error["fedavg"], error["per_video"])
        judge(
            "global + video over the better of FedAvg and per video",
            np.max(error["global_video"] / better),
            1.01,
        )
    if {"global_video", "fedavg"} <= error.keys() and dataset in _VIDEO_GAIN:
        ratio = error["global_video"][-1] / error["fedavg"][-1]
        judge("global + video over FedAvg at 5 s", ratio, 1 - _VIDEO_GAIN[dataset])
    if {"centralized", "fedavg"} <= error.keys():
        ratio = error["fedavg"] / error["centralized"]
        judge("FedAvg over centralized from 1 s on", np.max(ratio[2:]), 1.03)
        judge("FedAvg over centralized below 1 s", np.max(ratio[:2]), 1.08)


def centralized_verdict(place: tuple[str, str], methods: Methods) -> list[Verdict]:
    """Pooled training against the ratios to no motion that a global model is known to reach."""
    which, dataset = place
    if which != "unseen_users" or dataset not in _GLOBAL_RATIO or "centralized" not in methods:
        return []
    runs = methods["centralized"]
    ratio = mean(runs) / np.asarray(runs[0].summary["baselines"]["no_motion"]["mean"])
    figure = float(np.max(ratio / np.asarray(_GLOBAL_RATIO[dataset])))
    return [
        Verdict(which, dataset, "centralized over the known ratio to no motion", figure, 1.03, figure <= 1.03)
    ]


def lines(found: Sequence[Verdict]) -> str:
    """Verdicts as text, one a line."""
    return "\n".join(
        f"{'yes' if one.holds else 'NO '} {one.table}, {one.dataset}: {one.claim}: "
        f"{one.figure:.4f} (at most {one.bound:g})"
        for one in found
    )
