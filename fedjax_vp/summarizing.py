"""From what a simulation returns to what a run folder holds: the summary and the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from fedjax_vp import metrics
from fedjax_vp.config import Config
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.evaluate import Evaluation
from fedjax_vp.federated.settings import Evaluate
from fedjax_vp.geometry import TILE_SCORES
from fedjax_vp.problem import TIMES, Outcome

_COMPARED = (
    *("method", "horizon_s", "mean", "median", "p95", "bytes_up", "bytes_down", "hurt_share"),
    *("by_client", "by_user", "worst_decile", *TILE_SCORES),
)
_TYPES = {"method": pl.String, "bytes_up": pl.Int64, "bytes_down": pl.Int64}


class Scores:
    """Scores of every method on the same test windows: the own one, those beside it, and the baselines.

    Args:
        traces: Sessions, whose users the scores are split by.
        evaluate: Horizons.
        evaluations: Errors and tile scores by method.
        reference: Method that users are hurt or helped relative to: FedAvg, by the name that it has here.
    """

    def __init__(
        self,
        traces: TraceSet,
        evaluate: Evaluate,
        evaluations: Mapping[str, Evaluation],
        reference: str = metrics.REFERENCE,
    ) -> None:
        self.traces, self.reference = traces, reference
        self.horizons_s = tuple(evaluate.horizons_s)
        self.tile_horizons_s = tuple(evaluate.tile_horizons_s)
        self._of = {
            method: metrics.summarize(one, self.horizons_s, evaluate.tile_horizons_s, traces.user)
            for method, one in evaluations.items()
        }

    def __getitem__(self, method: str) -> dict[str, Any]:
        return self._of[method]

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, in the order given."""
        return tuple(self._of)

    def at(self, method: str, horizon_s: float) -> dict[str, float]:
        """Errors and tile scores of a method at one horizon, as far as they were measured there."""
        own = self._of[method]
        found: dict[str, float] = {}
        if horizon_s in self.horizons_s:
            column = self.horizons_s.index(horizon_s)
            means = {"by_client": own["by_client"], "by_user": own["by_user"]}
            errors = {**own["error_deg"], **means, "worst_decile": own["worst_decile_deg"]}
            found |= {name: values[column] for name, values in errors.items()}
        if horizon_s in self.tile_horizons_s:
            column = self.tile_horizons_s.index(horizon_s)
            found |= {name: values[column] for name, values in own["tiles"].items()}
        return found

    def hurt(self, method: str) -> dict[str, Any] | None:
        """Share of users whom the method serves worse than FedAvg; None where FedAvg did not run beside."""
        low, high = metrics.HURT_HORIZONS_S
        if self.reference not in self._of or not any(low <= h <= high for h in self.horizons_s):
            return None
        own, reference = (
            metrics.long_term(np.asarray(self._of[name]["users"]["error_deg"]), self.horizons_s)
            for name in (method, self.reference)
        )
        return metrics.hurt(own, reference)


def summary(config: Config, traces: TraceSet, outcome: Outcome, scores: Scores) -> dict[str, Any]:
    """What summary.json holds of the config's own method."""
    own = scores[config.algorithm]
    hurt = scores.hurt(config.algorithm)
    return {
        "algorithm": config.algorithm,
        "name": config.name,
        "dataset": traces.name,
        "protocol": config.protocol.kind,
        "phase": config.evaluate.phase,
        "model": config.model.kind,
        "seed": config.seed,
        "rounds": config.rounds,
        "horizons_s": list(scores.horizons_s),
        "tile_horizons_s": list(config.evaluate.tile_horizons_s),
        "adapt_s": config.protocol.adapt_s,
        **{key: own[key] for key in ("error_deg", "by_client", "by_user", "worst_decile_deg", "tiles")},
        "num_windows": own["num_windows"],
        "baselines": {
            name: {**scores[name]["error_deg"], "tiles": scores[name]["tiles"]} for name in outcome.baselines
        },
        "hurt_share": hurt["share"] if hurt else None,
        "hurt": hurt,
        "train_loss": None if math.isnan(outcome.train_loss) else outcome.train_loss,
        "starts": [],
        "start": 0,
        "ari": {},
        "nmi": {},
        **outcome.counters,
        **_costs(outcome),
        **{key: float(outcome.timings.get(key, 0.0)) for key in TIMES},
    }


def _costs(outcome: Outcome) -> dict[str, Any]:
    """Sizes and times by depth, apart: only times may differ between equal runs."""
    if outcome.cost is None:
        return {}
    sizes = outcome.cost._asdict()
    return {"latency_s": sizes.pop("latency_s"), "depths": sizes}


def clients_table(traces: TraceSet, scored: Mapping[str, Any], horizons_s: Sequence[float]) -> pl.DataFrame:
    """One row a test session: session, user, video, windows, and the mean error at each horizon."""
    rows = scored["sessions"]
    session = np.asarray(rows["session"])
    return pl.DataFrame(
        {
            "session": session,
            "user": [traces.user_ids[user] for user in traces.user[session]],
            "video": [traces.video_ids[video] for video in traces.video[session]],
            "windows": np.asarray(rows["windows"]),
            **_error_columns(rows, horizons_s),
        }
    )


def users_table(scores: Scores) -> pl.DataFrame:
    """One row a method (baselines included) and user: sessions, windows, the mean error at each horizon."""
    tables = []
    for method in scores.methods:
        rows = scores[method]["users"]
        users = [scores.traces.user_ids[user] for user in rows["user"]]
        counts = {"sessions": np.asarray(rows["sessions"]), "windows": np.asarray(rows["windows"])}
        columns = _error_columns(rows, scores.horizons_s)
        tables.append(pl.DataFrame({"method": [method] * len(users), "user": users, **counts, **columns}))
    return pl.concat(tables)


def _error_columns(rows: Mapping[str, Any], horizons_s: Sequence[float]) -> dict[str, np.ndarray]:
    error = np.asarray(rows["error_deg"], np.float64).reshape(-1, len(horizons_s))
    return {f"error_deg_{float(h)}": error[:, column] for column, h in enumerate(horizons_s)}


def history_table(history: Sequence[Mapping[str, Any]], horizons_s: Sequence[float]) -> pl.DataFrame:
    """Long form of the errors on the way: round, horizon_s, error_deg, loss, bytes_up, bytes_down."""
    schema = {
        "round": pl.Int64,
        "horizon_s": pl.Float64,
        "error_deg": pl.Float64,
        "loss": pl.Float64,
        "bytes_up": pl.Int64,
        "bytes_down": pl.Int64,
    }
    rows = [
        {key: {**one, "horizon_s": h, "error_deg": error}.get(key) for key in schema}
        for one in history
        for h, error in zip(horizons_s, one["error_deg"], strict=True)
    ]
    return pl.DataFrame(rows, schema=schema)


def groups_table(groups: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """One row a learned level and round; null where something was not looked at, or is not known.

    The columns are level, round, groups, sizes (units of each, largest first), churn (share of the units that
    moved), within, between and silhouette (similarity of updates), ari, nmi; and for CFL splits, and of each
    group that was judged mean_norm, max_norm and alpha_cross_max.
    """
    number = dict.fromkeys(("churn", "within", "between", "silhouette", "ari", "nmi"), pl.Float64)
    judged = dict.fromkeys(("mean_norm", "max_norm", "alpha_cross_max"), pl.List(pl.Float64))
    count = {"level": pl.String, "round": pl.Int64, "groups": pl.Int64, "sizes": pl.List(pl.Int64)}
    schema = {**count, **number, "splits": pl.Int64, **judged}
    return pl.DataFrame([{key: one.get(key) for key in schema} for one in groups], schema=schema)


def compare_table(outcomes: Mapping[str, Outcome], scores: Scores) -> pl.DataFrame:
    """Long form over methods, the own one and the baselines included, and horizons.

    Horizons are those of errors and of tiles together; what is not measured at one of them is null.
    """
    rows = []
    for method in scores.methods:
        counters = outcomes[method].counters if method in outcomes else {}
        hurt = scores.hurt(method) if method in outcomes else None
        same = {name: int(counters.get(name, 0)) for name in ("bytes_up", "bytes_down")}
        same |= {"method": method, "hurt_share": hurt["share"] if hurt else None}
        for horizon_s in sorted({*scores.horizons_s, *scores.tile_horizons_s}):
            rows.append({**same, "horizon_s": float(horizon_s), **scores.at(method, horizon_s)})
    return pl.DataFrame(rows, schema={name: _TYPES.get(name, pl.Float64) for name in _COMPARED})
