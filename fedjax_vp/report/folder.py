"""A run folder read back: what figures and tables are made from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fedjax_vp import metrics
from fedjax_vp.errors import UserError

_ERROR = "error_deg_"
_NAMES = {"no_motion": "no motion", "static": "no motion"}
BASELINES = ("no motion", "velocity")


@dataclass(frozen=True)
class RunFolder:
    """Contents of a finished run.

    Attributes:
        path: The folder.
        label: Name in tables and figures.
        summary: summary.json.
        manifest: manifest.json.
        clients: One row a test session: session, user, video, windows, error_deg_<horizon>.
        history: Long form over rounds; empty where nothing was measured on the way.
        compare: Long form over methods compared beside the own one; empty where there were none.
        examples: Some windows: past, true, predicted, session, now_s; empty where none were kept.
    """

    path: Path
    label: str
    summary: dict[str, Any]
    manifest: dict[str, Any]
    clients: pl.DataFrame
    history: pl.DataFrame = field(default_factory=pl.DataFrame)
    compare: pl.DataFrame = field(default_factory=pl.DataFrame)
    examples: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def horizons_s(self) -> list[float]:
        """Horizons of every list in the summary, in seconds."""
        return [float(h) for h in self.summary["horizons_s"]]

    @property
    def baselines(self) -> dict[str, list[float]]:
        """Mean error in degrees over horizons of the methods without weights, by their label."""
        return {pretty(name): row["mean"] for name, row in self.summary["baselines"].items()}

    def errors_by_user(self) -> tuple[list[str], np.ndarray]:
        """Users and their error in degrees by windows, float64 [user, horizon]."""
        columns = [_ERROR + f"{h}" for h in self.horizons_s]
        errors = self.clients.select(columns).to_numpy().astype(np.float64)
        users = np.array([str(user) for user in self.clients["user"].to_list()])
        names, _, means = metrics.group_means(users, errors, self.clients["windows"].to_numpy())
        return [str(name) for name in names], means

    def compared(self) -> dict[str, dict[str, np.ndarray]]:
        """Columns of compare.parquet over horizons, by method; the own method and baselines left out."""
        skip = {self.label, str(self.summary["algorithm"]), *BASELINES}
        out: dict[str, dict[str, np.ndarray]] = {}
        if self.compare.is_empty():
            return out
        for (method,), rows in self.compare.group_by("method", maintain_order=True):
            label = pretty(str(method))
            if label not in skip:
                ordered = rows.sort("horizon_s")
                out[label] = {name: ordered[name].to_numpy() for name in ordered.columns if name != "method"}
        return out


def pretty(method: str) -> str:
    """Label of a method in tables and figures.

    >>> pretty("no_motion")
    'no motion'
    """
    return _NAMES.get(method, method)


def read(path: Path, label: str | None = None) -> RunFolder:
    """Read a finished run.

    Args:
        path: The run folder.
        label: Its name in tables and figures; the summary's algorithm by default.

    Returns:
        The run's contents.

    Raises:
        UserError: There is no run, or it has not finished, or a file in it cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder; give the folder that `fedjax-vp run` wrote")
    if not (path / "summary.json").is_file():
        raise UserError(_unfinished(path))
    try:
        summary = json.loads((path / "summary.json").read_text("utf-8"))
        manifest = json.loads((path / "manifest.json").read_text("utf-8"))
        clients = pl.read_parquet(path / "clients.parquet")
        history = _optional(path / "history.parquet")
        compare = _optional(path / "compare.parquet")
        examples = _examples(path / "examples.npz")
        return RunFolder(
            path, label or str(summary["algorithm"]), summary, manifest, clients, history, compare, examples
        )
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: the run folder cannot be read ({reason}); run it again") from error


def _unfinished(path: Path) -> str:
    if (path / "manifest.json").is_file() or (path / "checkpoints").is_dir():
        return (
            f"{path}: the run has not finished (no summary.json); "
            f"continue it with `fedjax-vp run --resume {path}`"
        )
    return f"{path}: no run in this folder (no summary.json); give the folder that `fedjax-vp run` wrote"


def _optional(path: Path) -> pl.DataFrame:
    return pl.read_parquet(path) if path.is_file() else pl.DataFrame()


def _examples(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
