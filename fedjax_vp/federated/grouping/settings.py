"""Settings of a level's grouping: a known label, or groups learned while training.

A learned grouping deals *units* to `groups` groups. `of` names the label whose values are the units
("session", "user", "video"); the level's `by` names the groups they are learned within ("" all together,
"video" anew for every video), and `within` a level above whose groups, learned or not, divide them further.
Each of these parent groups has rows of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"levels: grouping.{message}")


@dataclass(frozen=True)
class Known:
    """The groups are the values of the level's label."""

    kind: Literal["known"] = "known"


@dataclass(frozen=True)
class Learned:
    """What every learned grouping has.

    `groups` is the most groups within each parent group: each group of `by`, and of the level `within`. For
    the first `warmup` rounds all units share one group. `memory` is the share of a unit's earlier evidence
    that is kept when it reports again.
    """

    groups: int = 4
    of: str = "session"
    within: str = ""
    warmup: int = 0
    memory: float = 0.0

    def __post_init__(self) -> None:
        _require(self.groups >= 1, f"groups is {self.groups}: give at least 1")
        _require(bool(self.of), 'of is empty: name what is grouped, such as "session", "user" or "video"')
        _require(self.warmup >= 0, f"warmup is {self.warmup}: give a number of rounds, from 0 up")
        _require(0 <= self.memory < 1, f"memory is {self.memory}: give a share in [0, 1)")


@dataclass(frozen=True)
class IFCA(Learned):
    """Each unit joins the row with the least loss on its training windows (ALGORITHMS: IFCA).

    `start` breaks the symmetry: rows of different keys (`keys`, where the level owns whole leaves), or copies
    of the first row, each moved by noise of `spread` times the leaf's root mean square (`perturbed`). For
    `hold` rounds after the warm-up each row is trained by a random share of the units instead. A row that no
    unit has chosen is seeded anew from the unit that is served worst (`reseed`). `soft` shares a unit among
    rows by the windows that each predicts best, at least `floor` (FedSoft).

    Every `every` rounds (0: never) rows become one whose losses on each other's units are less than `merge`
    worse than on their own; from then on units choose among rows in use. With `isolate`, a row in none is
    seeded from a unit only if its least loss has risen by so much (FedDrift); without it, where rows merge,
    not at all. Both are in units of the loss.
    """

    kind: Literal["ifca"] = "ifca"
    windows: int = 32  # of a session, drawn anew each round; 0: all
    start: Literal["keys", "perturbed"] = "perturbed"
    spread: float = 0.1
    hold: int = 0
    reseed: bool = True
    soft: bool = False
    floor: float = 0.01
    every: int = 0
    merge: float = 0.0
    isolate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.windows >= 0, f"windows is {self.windows}: give a number of windows, 0 for all")
        _require(self.spread >= 0, f"spread is {self.spread}: give 0 or more")
        _require(self.hold >= 0, f"hold is {self.hold}: give a number of rounds, from 0 up")
        _require(0 <= self.floor < 1, f"floor is {self.floor}: give a share in [0, 1)")
        _require(self.every >= 0, f"every is {self.every}: give a number of rounds, 0 for never")
        _require(self.merge >= 0, f"merge is {self.merge}: give a difference of losses, from 0 up")
        _require(self.isolate is None or self.isolate >= 0, f"isolate is {self.isolate}: give 0 or more")
        _require(not (self.soft and self.every), "every merges groups, and soft ones share all: set it to 0")


@dataclass(frozen=True)
class ByUpdates(Learned):
    """Groups from the units' updates, at the end of the warm-up and then every `every` rounds (0: once).

    The server sees a sketch of `sketch` numbers of each update (0: the update itself), never the data.
    Sessions whose unit never trained join a group by the `loss` on their first windows, or by the `update`
    that they make of these.
    """

    groups: int = 4
    warmup: int = 20
    memory: float = 0.8
    every: int = 0
    sketch: int = 256
    newcomers: Literal["loss", "update"] = "loss"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.every >= 0, f"every is {self.every}: give a number of rounds, 0 for once")
        _require(self.sketch >= 0, f"sketch is {self.sketch}: give a number, 0 for the whole update")
        _require(self.warmup >= 1, "warmup is 0: updates are known after the first round; give at least 1")


@dataclass(frozen=True)
class CFL(ByUpdates):
    """Recursive bipartition by cosine of updates (Sattler et al. 2021).

    `eps1` and `eps2` bound the norms of the mean and of the largest update, as shares of the largest mean
    norm seen so far (`relative`) or as they are; `gamma_max` 1 leaves the test of the gap out. Newcomers are
    led down the tree of splits by their update at each.
    """

    kind: Literal["cfl"] = "cfl"
    every: int = 5
    memory: float = 0.0
    newcomers: Literal["loss", "update"] = "update"
    eps1: float = 0.4
    eps2: float = 0.6
    relative: bool = True
    gamma_max: float = 1.0
    linkage: Literal["single", "complete"] = "complete"
    min_size: int = 3  # of a group that may be split

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.eps1 > 0 and self.eps2 > 0, "eps1 and eps2 are norms: give numbers above 0")
        _require(0 <= self.gamma_max <= 1, f"gamma_max is {self.gamma_max}: give a number in [0, 1]")
        _require(self.min_size >= 2, f"min_size is {self.min_size}: give at least 2")


@dataclass(frozen=True)
class KMeans(ByUpdates):
    """k-means on updates, by angle (`cosine`) or as they are (`euclidean`), after their mean is taken out."""

    kind: Literal["kmeans"] = "kmeans"
    metric: Literal["cosine", "euclidean"] = "cosine"


@dataclass(frozen=True)
class FedGroup(ByUpdates):
    """Decomposed cosine similarity (`edc`) or mean difference of similarities (`madc`): Duan et al. 2021.

    FlexCFL (2022): with `migrate` groups are not found anew every `every` rounds, but each unit moves to the
    group whose mean update is most like its own; `pull` is the rate at which groups in use move towards each
    other every round.
    """

    kind: Literal["fedgroup"] = "fedgroup"
    measure: Literal["edc", "madc"] = "edc"
    newcomers: Literal["loss", "update"] = "update"
    migrate: bool = False
    pull: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.pull >= 0, f"pull is {self.pull}: give a rate, from 0 up")


@dataclass(frozen=True)
class Hierarchical(ByUpdates):
    """One-shot agglomerative clustering (Briggs et al. 2020); a `threshold` leaves the number open."""

    kind: Literal["hierarchical"] = "hierarchical"
    metric: Literal["l1", "l2", "cosine"] = "cosine"
    linkage: Literal["single", "complete", "average", "ward"] = "average"
    threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.linkage != "ward" or self.metric == "l2", "linkage ward wants metric l2")


@dataclass(frozen=True)
class FromData(Learned):
    """Groups found once, before training, in what the headsets know."""


@dataclass(frozen=True)
class Trajectories(FromData):
    """Groups found once from the viewers' own trajectories: an oracle that sees what must stay private.

    `spectral` clusters the viewers of a video by their mean distance (Petrangeli et al. 2018), `cliques`
    joins those who look at much the same most of the time (Rossi et al. 2019), as many groups as there are.
    With `peek` every session is grouped, by all of its samples, those it is tested on included: what no
    method can know, to see how much the best groups could bring.
    """

    kind: Literal["spectral", "cliques"] = "spectral"
    peek: bool = False


@dataclass(frozen=True)
class PACFL(FromData):
    """Groups found once from principal angles between the subspaces of the units' windows.

    Vahidian et al. 2023: the server sees `rank` directions of each. A `threshold` in degrees leaves the
    number of groups open.
    """

    kind: Literal["pacfl"] = "pacfl"
    rank: int = 3
    threshold: float | None = None
    angle: Literal["smallest", "sum"] = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.rank >= 1, f"rank is {self.rank}: give at least 1")


Grouping = Known | IFCA | CFL | KMeans | FedGroup | Hierarchical | Trajectories | PACFL
