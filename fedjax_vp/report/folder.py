"""A run folder read back: what figures and tables are made from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

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
        histories: The same as history of the methods run beside the own one.
        users: One row a method and user: method, user, windows, error_deg_<horizon>; baselines included.
        examples: Some windows: past, true, predicted, session, now_s; empty where none were kept.
        groups: Learned groups by level and round; empty where no level is learned.
    """

    path: Path
    label: str
    summary: dict[str, Any]
    manifest: dict[str, Any]
    clients: pl.DataFrame
    history: pl.DataFrame = field(default_factory=pl.DataFrame)
    compare: pl.DataFrame = field(default_factory=pl.DataFrame)
    examples: dict[str, np.ndarray] = field(default_factory=dict)
    histories: dict[str, pl.DataFrame] = field(default_factory=dict)
    users: pl.DataFrame = field(default_factory=pl.DataFrame)
    groups: pl.DataFrame = field(default_factory=pl.DataFrame)

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

    def errors_over_users(self) -> dict[str, np.ndarray]:
        """Errors in degrees of the users, float64 [user, horizon], by label: the own method comes first."""
        out = {self.label: self.errors_by_user()[1]}
        if not self.users.is_empty():
            columns = [_ERROR + f"{h}" for h in self.horizons_s]
            for (method,), rows in self.users.group_by("method", maintain_order=True):
                if str(method) != str(self.summary["algorithm"]):
                    out[pretty(str(method))] = rows.select(columns).to_numpy().astype(np.float64)
        return dict(sorted(out.items(), key=lambda item: item[0] in BASELINES))

    def errors_over_rounds(self) -> dict[str, pl.DataFrame]:
        """Histories by label: the own method's, then those of the methods beside it."""
        return {self.label: self.history, **self.histories}

    def compared(self) -> dict[str, dict[str, np.ndarray]]:
        """Columns of compare.parquet over horizons, by method; the own method and baselines left out."""
        skip = {self.label, str(self.summary["algorithm"]), *BASELINES}
        out: dict[str, dict[str, np.ndarray]] = {}
        if self.compare.is_empty():
            return out
        for (method,), rows in self.compare.group_by("method", maintain_order=True):
            label = pretty(str(method))
            if label not in skip:
                ordered = rows.filter(pl.col("mean").is_not_null()).sort("horizon_s")
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
        examples, groups = _examples(path / "examples.npz"), _optional(path / "groups.parquet")
        name = label or str(summary["algorithm"])
        histories, users = _histories(path / "beside"), _optional(path / "users.parquet")
        return RunFolder(
            *(path, name, summary, manifest, clients, history, compare, examples, histories, users, groups)
        )
    except (OSError, EOFError, BadZipFile, ValueError, KeyError, TypeError, PolarsError) as error:
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


def _histories(beside: Path) -> dict[str, pl.DataFrame]:
    files = sorted(beside.glob("*/history.parquet"))
    return {pretty(file.parent.name): pl.read_parquet(file) for file in files}


def _examples(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
