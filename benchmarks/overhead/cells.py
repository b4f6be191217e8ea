"""Cells of the grid: a way of sharing models, so many clients and groups; and the levels that it means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from fedjax_vp.federated.grouping.settings import (
    CFL,
    IFCA,
    PACFL,
    FedGroup,
    Hierarchical,
    KMeans,
    Known,
    Trajectories,
)
from fedjax_vp.federated.settings import Level

VIDEOS = 10
MOST_EXACT = 8192  # clients whose updates are compared pair by pair
GRID = ("fedavg", "ifca", "sketched", "exact", "hierarchy")
_UPDATES = {"of": "session", "warmup": 1}
KINDS: dict[str, Any] = {
    "fedavg": Known(),
    "known": Known(),
    "ifca": IFCA(),
    "fedsoft": IFCA(soft=True),
    "kmeans": KMeans(**_UPDATES),
    "fedgroup": FedGroup(**_UPDATES),
    "hierarchical": Hierarchical(**_UPDATES),
    "cfl": CFL(**_UPDATES),
    "pacfl": PACFL(),
    "spectral": Trajectories(kind="spectral"),
    "cliques": Trajectories(kind="cliques"),
    # The grid's names of two of these: cosines of whole updates, and k-means on sketches of them.
    "exact": Known(),
    "sketched": KMeans(**_UPDATES),
}
READ_TRACES = ("spectral", "cliques", "pacfl")
"""Kinds that find their groups before training, in stored traces."""


class Cell(NamedTuple):
    """What is measured in one go."""

    method: str  # of KINDS, or "hierarchy"
    clients: int
    groups: int  # 1 for FedAvg

    @property
    def name(self) -> str:
        """For humans and for resuming."""
        return f"{self.method}, {self.clients} clients, {self.groups} groups"


def levels(cell: Cell) -> tuple[Level, ...]:
    """The levels of a cell's method."""
    if cell.method == "fedavg":
        return (Level("global"),)
    if cell.method == "hierarchy":
        return _five(cell.groups)
    kind = KINDS[cell.method]
    if isinstance(kind, Known):  # as many rows as groups: users are dealt to them
        return (Level("user_category", by="user_category"),)
    by = "video" if isinstance(kind, Trajectories) else ""
    return (Level("cluster", by=by, grouping=replace(kind, groups=cell.groups)),)


def _five(groups: int) -> tuple[Level, ...]:
    """Five layers; those below the first own the last layer, a user's own its bias alone."""
    head = ("head/*",)
    categories = KMeans(groups=min(groups, VIDEOS // 2), of="video", warmup=1)
    return (
        Level("global"),
        Level("video_category", owns=head, grouping=categories),
        Level("video", by="video", owns=head),
        Level("user_category", by="video", owns=head, grouping=IFCA(groups=groups)),
        Level("user", by="user", owns=("head/bias",)),
    )


def grid(most: int, few_groups: bool) -> list[Cell]:
    """The default grid up to so many clients, small cells first; many groups only where clients are few.

    Args:
        most: clients of the largest cells.
        few_groups: leave out what a slow machine has no time for.
    """
    sizes = [size for size in (100, 1000, 10_000, 100_000, 1_000_000) if size <= most]
    cells = []
    for size in sizes:
        for method in GRID:
            clients = min(size, MOST_EXACT // VIDEOS * VIDEOS) if method == "exact" else size
            if method == "exact" and size > 10_000:
                continue
            cells += [Cell(method, clients, groups) for groups in _groups(method, size, few_groups)]
    return cells


def _groups(method: str, clients: int, few: bool) -> tuple[int, ...]:
    if method == "fedavg":
        return (1,)
    if clients in (1000, 10_000):
        return (2, 4, 16) if few else (2, 4, 8, 16)
    if clients == 100_000:
        return (4, 16)
    return (4,)
