"""Which figures a run or a comparison gets, and where they are written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fedjax_vp.report import groups, lines, style
from fedjax_vp.report.folder import BASELINES, RunFolder, read
from fedjax_vp.report.world import world_map


def render(run_dir: Path) -> list[Path]:
    """Draw a finished run's figures into its folder ``figures/``, each as PNG and PDF.

    Args:
        run_dir: The run folder.

    Returns:
        The files written.

    Raises:
        UserError: There is no finished run.
    """
    run = read(run_dir)
    errors = {run.label: np.asarray(run.summary["error_deg"]["mean"])}
    errors |= {method: columns["mean"] for method, columns in run.compared().items()}
    errors |= {name: np.asarray(mean) for name, mean in run.baselines.items()}
    return write(
        Path(run_dir) / "figures",
        {
            "error_over_horizon": lines.over_horizon(run.horizons_s, errors),
            "error_over_training": lines.over_training(run.errors_over_rounds()),
            "users": lines.over_users(run.horizons_s, run.errors_over_users()),
            "groups": groups.over_rounds(run.groups),
            "world_map": world_map(run.examples, max(run.horizons_s)),
        },
    )


def render_comparison(
    out: Path,
    runs: Mapping[str, RunFolder],
    error_deg: Mapping[str, np.ndarray],
    half_deg: Mapping[str, np.ndarray],
) -> list[Path]:
    """Draw the figures of several methods into ``out/figures``, each as PNG and PDF.

    Args:
        out: Folder of the comparison.
        runs: One run of each method, for what is drawn of a single seed (training, users).
        error_deg: Mean error over seeds, a list over horizons by method, baselines included.
        half_deg: Half of the 95 % interval over seeds, by method.

    Returns:
        The files written.
    """
    horizons_s = next(iter(runs.values())).horizons_s
    return write(
        out / "figures",
        {
            "error_over_horizon": lines.over_horizon(horizons_s, error_deg, half_deg),
            "error_over_training": lines.over_training({name: run.history for name, run in runs.items()}),
            "users": lines.over_users(horizons_s, _users(runs)),
        },
    )


def _users(runs: Mapping[str, RunFolder]) -> dict[str, np.ndarray]:
    """Every method's errors by user, then the baselines' from the first run."""
    own = {name: run.errors_by_user()[1] for name, run in runs.items()}
    first = next(iter(runs.values())).errors_over_users()
    return own | {name: errors for name, errors in first.items() if name in BASELINES}


def write(folder: Path, figures: Mapping[str, Figure | None]) -> list[Path]:
    """Draws everything beside the folder, then moves it there: a folder that exists is complete."""
    drawn = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(drawn, ignore_errors=True)
    files = [
        path
        for name, figure in figures.items()
        if figure is not None
        for path in style.save(figure, drawn / name)
    ]
    if not folder.exists():
        drawn.rename(folder)
    else:
        for path in files:
            path.replace(folder / path.name)
        drawn.rmdir()
    return [folder / path.name for path in files]
