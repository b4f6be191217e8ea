"""Settings of a federated method: its levels and one choice in each slot.

Every default of the engine stands here, those of server optimizers in `server` and those of groupings in
`grouping.settings`. The field names are the YAML keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fedjax_vp.federated.checks import require, require_rate, require_share
from fedjax_vp.federated.components import Components
from fedjax_vp.federated.grouping.settings import CFL, IFCA, FromData, Grouping, Known
from fedjax_vp.federated.precision import Precision
from fedjax_vp.federated.server import Average, Schedule, ServerOptimizer
from fedjax_vp.models.losses import GreatCircle, LossSettings
from fedjax_vp.settings_text import plain


@dataclass(frozen=True)
class Level:
    """One layer of the hierarchy: which sessions share a row, which leaves the rows hold, how rows move.

    `by` is a label of the sessions ("video", "user", "user_category", "video_category", "edge", "session"),
    several joined by "*" ("video*user_category": user category within the video), or "" for one row for all.
    `owns` are shell patterns over parameter leaves; a leading "!" takes out ("*", "!video_table").
    `shrinkage` is partial pooling (1 plain averaging, 0 deletes the level, "auto" empirical Bayes) and
    `progress` the share h of the way to its optimum that one round covers (docs/levels.md).
    `period`: pools every so many rounds (0: never by itself); `absorb`: every so many rounds the rows'
    weighted mean moves up to the level above and the rows return to zero (HierFAVG's cloud step; 0: never).
    `grouping` is the label itself, or learned while training, within the groups of `by`.
    """

    name: str
    by: str = ""
    owns: tuple[str, ...] = ("*",)
    shrinkage: float | Literal["auto"] = 1.0
    progress: float = 1.0
    server: ServerOptimizer = field(default_factory=Average)
    period: int = 1
    absorb: int = 0
    denominator: Literal["group", "participants", "population"] = "group"
    grouping: Grouping = field(default_factory=Known)

    def __post_init__(self) -> None:
        where = f"levels: {self.name}"
        if not isinstance(self.shrinkage, str):
            require(0 <= self.shrinkage <= 1, f"{where}.shrinkage is {self.shrinkage}: give [0, 1] or auto")
        require(
            self.shrinkage != "auto" or self.denominator == "group",
            f"{where}.shrinkage: auto needs the groups' own means; set denominator to group",
        )
        require(0 < self.progress <= 1, f"{where}.progress is {self.progress}: give a share in (0, 1]")
        require(self.period >= 0 and self.absorb >= 0, f"{where}: period and absorb count rounds, from 0 up")


@dataclass(frozen=True)
class Local:
    """What a participating client does in a round.

    `steps` gradient steps (or `epochs` passes where given) of `batch` windows (0: all of its windows at
    once). `prefix_share` is the share of each batch that is predicted without the finer levels (split evenly
    over the shallower prefixes), so that every prefix of the hierarchy stays a good predictor by itself.
    """

    loss: LossSettings = field(default_factory=GreatCircle)
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    schedule: Schedule = field(default_factory=Schedule)
    batch: int = 32
    steps: int = 8
    epochs: float | None = None
    clip: float | None = None  # global norm of each step's gradient
    keep_state: bool = False  # the optimiser's moments stay with the client between rounds
    prefix_share: float = 0.0

    def __post_init__(self) -> None:
        require_rate(self.lr, "local")
        require_share(self.momentum, "local.momentum")
        require(
            self.optimizer != "adam" or not self.momentum,
            f"local.momentum is {self.momentum}, which adam does not take: leave it out or use sgd",
        )
        require(
            self.clip is None or (math.isfinite(self.clip) and self.clip > 0),
            f"local.clip is {self.clip}: give a norm above 0, or null for none",
        )
        require(self.batch >= 0, f"local.batch is {self.batch}: give a number of windows, 0 for all")
        require(self.steps >= 1, f"local.steps is {self.steps}: give at least 1")
        require(self.epochs is None or self.epochs > 0, f"local.epochs is {self.epochs}: give more than 0")
        require(0 <= self.prefix_share < 1, f"local.prefix_share is {self.prefix_share}: give [0, 1)")


@dataclass(frozen=True)
class Everyone:
    """Every client takes part in every round."""

    kind: Literal["all"] = "all"


@dataclass(frozen=True)
class Uniform:
    """`clients` of the N clients, uniform without replacement, each round."""

    kind: Literal["uniform"] = "uniform"
    clients: int = 64

    def __post_init__(self) -> None:
        require(self.clients >= 1, f"participation.clients is {self.clients}: give at least 1")


@dataclass(frozen=True)
class Availability:
    """Uniform among clients that are online, and some that start drop out before they report."""

    kind: Literal["availability"] = "availability"
    clients: int = 64
    online: float = 0.8  # probability that a client is online in a round
    dropout: float = 0.1  # probability that a participant is lost in mid-round

    def __post_init__(self) -> None:
        require(self.clients >= 1, f"participation.clients is {self.clients}: give at least 1")
        require(0 < self.online <= 1, f"participation.online is {self.online}: give (0, 1]")
        require(0 <= self.dropout < 1, f"participation.dropout is {self.dropout}: give [0, 1)")


Participation = Everyone | Uniform | Availability


@dataclass(frozen=True)
class Pooling:
    """How sessions weigh in a group's mean: by windows, equal, or by the square root of windows."""

    weights: Literal["windows", "equal", "sqrt"] = "windows"


MOST_ONLINE = 1e6  # beyond, the best prefix so far has all the weight anyway


@dataclass(frozen=True)
class Mixing:
    """Prediction-level mixing by horizon of the prefix models, learned on validation windows.

    `mixture` learns the weights pi[level, horizon], `best_prefix` takes the best single prefix at each
    horizon, `none` predicts with the whole hierarchy. `per` is a label ("user", "video", "session", ...)
    whose groups have weights of their own, shrunk toward the common ones, which count as `prior` validation
    sessions. `safe` gives deeper levels weight only as far as at most `most_hurt` of the validation users are
    worse off by half a degree than with the first model alone. `windows`: validation windows a session.
    `online`, per radian and second: how fast the headset turns, during a session, to the prefixes that have
    served this session best so far (`hedging.py`); 0 keeps the weights as learned. Above 0 it makes a mixture
    of `best_prefix` too, and begins with half of the weight spread, whatever `safe` has found: half of that
    on the first of `experts`, if there are any.
    `experts` names methods, as `compare` does, whose models are trained apart in the same rounds and mixed
    with the prefixes, before which they stand: `safe` retreats to the first of them, so name `fedavg` first.
    """

    kind: Literal["none", "mixture", "best_prefix"] = "none"
    per: str = ""
    prior: float = 2.0
    safe: bool = False
    most_hurt: float = 0.05
    windows: int = 8
    online: float = 0.0
    experts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(
            len(set(self.experts)) == len(self.experts),
            f"mixing.experts names a method twice in {list(self.experts)}: name each once",
        )
        require(
            not self.experts or self.kind != "none",
            "mixing.experts are mixed with the method, but mixing.kind is none: set mixing.experts to [], "
            "or mixing.kind to mixture or best_prefix",
        )
        require(
            0 <= self.online <= MOST_ONLINE,
            f"mixing.online is {self.online}: give a rate from 0 to {MOST_ONLINE:g}",
        )
        require(
            math.isfinite(self.prior) and self.prior >= 0,
            f"mixing.prior is {self.prior}: give a number of sessions, 0 or more",
        )
        require(0 <= self.most_hurt <= 1, f"mixing.most_hurt is {self.most_hurt}: give a share in [0, 1]")
        require(self.windows >= 1, f"mixing.windows is {self.windows}: give at least 1 window a session")


@dataclass(frozen=True)
class Adapt:
    """Local steps before evaluation, on windows of the session itself.

    `on`: its `train` windows (known sessions), its `adapt` windows (unseen ones), or `auto`: the train
    windows where the session has any, else the adapt windows.
    """

    steps: int = 0
    lr: float = 0.05
    batch: int = 32
    on: Literal["auto", "adapt", "train"] = "auto"
    owns: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        require(self.steps >= 0, f"adapt.steps is {self.steps}: give 0 (no adaptation) or more")
        require_rate(self.lr, "adapt")
        require(self.batch >= 1, f"adapt.batch is {self.batch}: give at least 1 window")


@dataclass(frozen=True)
class Method:
    """A federated method: levels, coarse to fine, and one choice in each slot.

    `starts`: how often it is trained, each time from a seed of its own; the start of least training loss is
    kept (random restarts, for what depends on where it begins, such as IFCA). `experts`: the methods that
    `mixing.experts` names.
    """

    levels: tuple[Level, ...] = (Level("global"),)
    client: Literal["session", "user", "all"] = "session"
    local: Local = field(default_factory=Local)
    participation: Participation = field(default_factory=Uniform)
    pooling: Pooling = field(default_factory=Pooling)
    mixing: Mixing = field(default_factory=Mixing)
    components: Components = field(default_factory=Components)
    adapt: Adapt = field(default_factory=Adapt)
    starts: int = 1
    experts: tuple[Method, ...] = ()

    def __post_init__(self) -> None:
        names = self.mixing.experts if self.experts else ()  # a config makes its method without them first
        for name, expert in zip(names, self.experts, strict=True):
            self._require_alongside(name, expert)
        require(self.starts >= 1, f"starts is {self.starts}: give at least 1")
        names = [level.name for level in self.levels]
        require(bool(names), "levels is empty: give at least one level")
        require(len(set(names)) == len(names), f"levels: two levels share a name in {names}")
        require(not self.levels[0].absorb, "levels: the first level has no level above to be absorbed into")
        for index in range(len(self.levels)):
            parent_level(self.levels, index)

    def _require_alongside(self, name: str, expert: Method) -> None:
        """Raises ValueError where an expert cannot be trained in the same rounds as this method."""
        where = f"mixing.experts: {name}"
        learned = [level.name for level in expert.levels if not isinstance(level.grouping, Known)]
        require(not learned, f"{where} learns its groups: name a method whose groups are known")
        require(not expert.experts, f"{where} has experts of its own: name a method without")
        require(not expert.adapt.steps, f"{where} adapts before it is measured: name a method that does not")
        for key in ("client", "participation"):
            ours, theirs = (plain(getattr(one, key)) for one in (self, expert))
            how = "make them equal, or set mixing.experts to []"
            require(ours == theirs, f"{where} has {key} {theirs} and this method {ours}: {how}")


def parent_level(levels: tuple[Level, ...], index: int) -> int | None:
    """Index of the level that a level's groups are learned within (`grouping.within`), None where in none.

    Raises:
        ValueError: There is none of that name above, or its groups do not divide what is learned within.
    """
    level = levels[index]
    if isinstance(level.grouping, Known) or not level.grouping.within:
        return None
    name, where = level.grouping.within, f"levels: {level.name}.grouping.within"
    names = [one.name for one in levels[:index]]
    above = f"above it are {', '.join(names)}" if names else "above it is none"
    require(name in names, f"{where} is {name!r}: {above}")
    parent = levels[names.index(name)]
    early = isinstance(level.grouping, FromData) and not isinstance(parent.grouping, Known | FromData)
    require(
        not early, f"{where} is {name!r}, learned while training, but {level.grouping.kind} groups before it"
    )
    shared = sorted(set(filter(None, level.by.split("*"))) & set(parent.by.split("*")))
    require(not shared, f"{where} is {name!r}, which lies within {shared[:1]} already: take that out of by")
    changing = isinstance(parent.grouping, IFCA) or bool(getattr(parent.grouping, "every", 0))
    require(
        not (changing and isinstance(level.grouping, CFL)),
        f"{where} is {name!r}, whose groups keep changing, but cfl keeps a tree of splits: take another",
    )
    require(
        not is_soft(parent),
        f"{where} is {name!r}, where a session may be in several groups: set its soft to false",
    )
    return names.index(name)


def is_soft(level: Level) -> bool:
    """Whether a session may use several rows of the level."""
    return isinstance(level.grouping, IFCA) and level.grouping.soft


@dataclass(frozen=True)
class Engine:
    """How the computation is laid out; no learning result depends on it beyond rounding.

    `client_block`: clients trained side by side (0: 1 on a CPU, 256 on an accelerator); `devices`: of each
    process, 0 uses all; `processes`: how many run this together, on one machine or several (docs/devices.md);
    `chunk`: rounds in one compiled scan, after which Python logs and saves; `points`: seeds and traced
    numbers of a sweep run side by side (0: one a device on a CPU, what memory takes on an accelerator);
    `precision`: factors of the matrix products in local training, `float32`, `tf32` or `bfloat16` (sums are
    float32 always; see `federated.precision`).
    """

    client_block: int = 0
    devices: int = 0
    processes: int = 1
    chunk: int = 25
    points: int = 0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        require(self.client_block >= 0, f"engine.client_block is {self.client_block}: give 0 or more")
        require(self.devices >= 0, f"engine.devices is {self.devices}: give 0 (all) or a number")
        require(self.processes >= 1, f"engine.processes is {self.processes}: give at least 1")
        require(self.chunk >= 1, f"engine.chunk is {self.chunk}: give at least 1 round")
        require(self.points >= 0, f"engine.points is {self.points}: give 0 or more")


@dataclass(frozen=True)
class Evaluate:
    """What is measured, and how often on the way.

    `phase`: on test windows, or on validation windows in their place, by which settings may be chosen; test
    windows are then not looked at.
    """

    phase: Literal["test", "valid"] = "test"
    horizons_s: tuple[float, ...] = (0.2, 0.4, 1.0, 2.0, 3.0, 4.0, 5.0)
    tile_horizons_s: tuple[float, ...] = (1.0, 2.0, 4.0)
    grid: tuple[int, int] = (6, 12)
    every: int = 25  # rounds between evaluations on the way, on `history_windows` windows a session
    history_windows: int = 8
    sessions: int = 0  # measured, spread over the test sessions; 0: all of them

    def __post_init__(self) -> None:
        for key in ("horizons_s", "tile_horizons_s"):
            asked = getattr(self, key)
            require(
                all(math.isfinite(h) and h > 0 for h in asked),
                f"evaluate.{key} is {list(asked)}: give seconds above 0",
            )
        require(min(self.grid) >= 1, f"evaluate.grid is {list(self.grid)}: give at least 1 row and 1 column")
        require(self.every >= 1, f"evaluate.every is {self.every}: give at least 1 round")
        require(
            self.history_windows >= 1,
            f"evaluate.history_windows is {self.history_windows}: give at least 1 window a session",
        )
        require(
            self.sessions >= 0, f"evaluate.sessions is {self.sessions}: give 0 for all sessions, or a number"
        )
