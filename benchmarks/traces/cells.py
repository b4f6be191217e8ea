"""What is run: a cell is one method on one data set in one table, with all its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_vp.config import Config, load_config
from fedjax_vp.settings_text import plain

SETS = ("jin", "wu", "david", "avtrack")
TABLES = ("unseen_users", "adaptation", "within_session", "ablation")

_STACKS = ("global_video", "three_layers", "five_layers", "global_video_offline", "five_layers_offline")
_STACKS += ("five_layers_alone",)
_SHORT = ("fedavg", "centralized", "per_video", *_STACKS, "ifca", "cfl")
_ALL = (*_SHORT, "fedgroup", "finetune", "local_only", "oracle")
_WITHIN = tuple(name for name in _ALL if name != "centralized")
_BUDGETS_S = (0, 3, 5, 10)
_PLAN: dict[str, dict[str, tuple[str, ...]]] = {
    "unseen_users": {"jin": _ALL, "wu": _ALL, "david": _SHORT, "avtrack": _SHORT},
    "within_session": {"jin": _WITHIN},
    "adaptation": dict.fromkeys(
        ("jin", "wu"),
        ("fedavg", *(f"{name}_{s}s" for name in ("five_layers", "finetune") for s in _BUDGETS_S[1:])),
    ),
    "ablation": dict.fromkeys(("jin", "wu"), ("no_user_category", "no_video_category")),
}
_SEEDS = {"jin": 3, "wu": 3, "david": 1, "avtrack": 1}

# The viewers of each video in two groups by where they look in the whole session, test sessions included.
_ORACLE = {"kind": "spectral", "of": "session", "groups": 2, "peek": True}
_THIN = {"local.batch": 16}  # 4 steps of 16: at most 64 windows a session and round
_CHOICE = {"levels.cluster.grouping.windows": 64}  # for IFCA too: all take a quarter of an hour on Wu
_SELDOM = {"evaluate.every": 100, "engine.chunk": 100}  # looks on the way and checkpoints
_CONFIGS = {"three_layers": "global_video_user", "no_user_category": "five_layers"}
_CONFIGS |= {"no_video_category": "five_layers", "oracle": "global_video"}
_OFFLINE = "_offline"  # the same models, mixed by the learned weights to the end of the session
_ALONE = "_alone"  # no experts beside the hierarchy
_CLOCK_S = {"jin": 38, "wu": 42, "david": 33, "avtrack": 33}  # one seed of FedAvg on two cores
_TIMES = {"centralized": 1.2, "per_video": 1.2, "global_video": 2.0, "three_layers": 3.0, "five_layers": 4.5}
_TIMES |= {"five_layers_alone": 3.5, "ifca": 2.5, "cfl": 1.2, "local_only": 0.6, "oracle": 2.0}
_ABLATION, _EVALUATED = 4.5, 0.7


class Cell(NamedTuple):
    """One method on one data set in one table."""

    table: str
    dataset: str
    method: str
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """How it is called on the command line and in files."""
        return f"{self.table}/{self.dataset}/{self.method}"

    def folder(self, out: Path, seed: int) -> Path:
        """Run folder of a seed."""
        return out / self.table / self.dataset / f"{self.method}-seed{seed}"

    @property
    def trained_by(self) -> Cell | None:
        """The cell that trains the same models and only measures them otherwise, if it is another one."""
        if self.table == "adaptation":
            method = "five_layers" if self.method.startswith("five_layers") else "fedavg"
        elif self.method == "finetune":
            method = "fedavg"
        elif self.method.endswith(_OFFLINE):
            method = self.method.removesuffix(_OFFLINE)
        else:
            return None
        table = "within_session" if self.table == "within_session" else "unseen_users"
        return Cell(table, self.dataset, method, self.seeds)

    @property
    def seconds(self) -> float:
        """Roughly what it takes on two cores."""
        one = _CLOCK_S[self.dataset]
        if self.trained_by:
            return len(self.seeds) * one * _EVALUATED
        times = _ABLATION if self.table == "ablation" else _TIMES.get(self.method, 1.0)
        return len(self.seeds) * one * times


def plan(
    tables: Sequence[str], sets: Sequence[str], methods: Sequence[str], seeds: Sequence[int] | None
) -> list[Cell]:
    """Cells of the chosen tables, data sets and methods (none named: all), by table, the longest first.

    Args:
        tables: Of `TABLES`.
        sets: Of `SETS`.
        methods: Methods by name; empty for all.
        seeds: Seeds of every data set; by default as many as each is run with.
    """
    found = [
        Cell(table, name, method, tuple(seeds if seeds is not None else range(_seeds(table, name))))
        for table in tables
        for name in sets
        for method in _PLAN[table].get(name, ())
        if not methods or method in methods
    ]
    return sorted(found, key=lambda cell: (tables.index(cell.table), -cell.seconds))


def methods() -> list[str]:
    """Every method that stands in some table."""
    return sorted({name for table in _PLAN.values() for names in table.values() for name in names})


def config(cell: Cell, seed: int) -> Config:
    """Settings of a cell's run."""
    method = (
        cell.method.rpartition("_")[0] if cell.table == "adaptation" and "_" in cell.method else cell.method
    )
    base = method.removesuffix(_OFFLINE).removesuffix(_ALONE)
    source = f"{cell.dataset}_{_CONFIGS.get(base, base)}"
    return load_config(source, seed=seed, compare=[], **_overrides(cell, method, source))


def _seeds(table: str, name: str) -> int:
    return 1 if table in ("ablation", "within_session") else _SEEDS[name]


def _overrides(cell: Cell, method: str, source: str) -> Mapping[str, Any]:
    changes: dict[str, Any] = dict(_SELDOM)
    if load_config(source, compare=[]).local.optimizer == "sgd" and method != "local_only":
        changes |= _THIN
    if method == "ifca":
        changes |= _CHOICE
    if cell.table in ("unseen_users", "within_session"):  # whatever the method's own config asks for
        changes["protocol"] = {"kind": cell.table}
        changes["protocol.adapt_s"] = changes["protocol.reserve_s"] = 0.0
    if cell.table == "adaptation":
        changes["protocol.reserve_s"] = _BUDGETS_S[-1]
        budget = cell.method.rpartition("_")[2]
        changes["protocol.adapt_s"] = float(budget.removesuffix("s")) if budget[:-1].isdecimal() else 0.0
    if cell.table == "ablation":
        levels = load_config(source, compare=[]).levels
        changes["levels"] = [plain(level) for level in levels if level.name != method.removeprefix("no_")]
    if method.endswith(_OFFLINE):
        changes["mixing.online"] = 0.0
    if method.endswith(_ALONE):
        changes["mixing.experts"] = []
    if method == "oracle":
        changes["levels"] = {"video": {"grouping": _ORACLE}}
    if method == "local_only" and cell.table == "unseen_users":
        changes["rounds"] = 1  # an unseen user has no local model: what is trained plays no part
    return changes
