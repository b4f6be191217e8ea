"""New videos and new users arrive at a hierarchy that others have trained.

A new video can have a model of its own, started from a prefix of the hierarchy: with P the first `depth`
levels and w the model's init,

    row_v = sum over l in P of delta_l[g_l(v)],        w where no level of P owns a leaf        (1)

Depth 0 is the start from scratch, 1 that from the global model, and so on down to the category of the video.
Or the hierarchy goes on as it is: levels that keep a video's viewers together stand still, as everybody else
leaves them where they are, and the finer ones take up the new video's updates with rows of zeros.

Levels grouped by updates choose by losses from here on (`assignment`): a newcomer has no updates to compare,
and its viewers can say at the start of their first round which row predicts them best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_vp.errors import UserError
from fedjax_vp.federated import hierarchy, levels
from fedjax_vp.federated import learned as learned_of
from fedjax_vp.federated.checks import require
from fedjax_vp.federated.grouping.settings import IFCA, ByUpdates, FromData
from fedjax_vp.federated.levels import LevelState
from fedjax_vp.federated.round import State
from fedjax_vp.federated.settings import Adapt, Everyone, Level, Method, Mixing
from fedjax_vp.federated.simulator import Simulator


@dataclass(frozen=True)
class ColdStart:
    """What `fedjax-vp coldstart` measures.

    Attributes:
        rounds: Rounds of a new video after which the error is measured, from 0 up.
        viewers: Numbers of viewers that a new video has had, from 0 up.
        viewer_rounds: Rounds that so few viewers train.
        seconds: Seconds of a new user's session that are known, from 0 up.
        rate: Of what new videos train, as a factor on `local.lr`.
    """

    rounds: tuple[int, ...] = (0, 1, 2, 5, 10, 20)
    viewers: tuple[int, ...] = (0, 1, 2, 5, 10, 20)
    viewer_rounds: int = 20
    seconds: tuple[float, ...] = (0.0, 2.0, 5.0, 10.0)
    rate: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rounds", "viewers", "seconds"):
            budgets = getattr(self, name)
            rising = bool(budgets) and list(budgets) == sorted(set(budgets)) and budgets[0] >= 0
            require(rising, f"coldstart.{name} is {list(budgets)}: give rising numbers from 0 up")
        require(self.viewer_rounds >= 1, f"coldstart.viewer_rounds is {self.viewer_rounds}: give at least 1")
        require(0 < self.rate < math.inf, f"coldstart.rate is {self.rate}: give a factor above 0")


def continued(method: Method, shared: int, rate: float = 1.0) -> Method:
    """The method on new videos: its first `shared` levels stand still, and rates are constant.

    Raises:
        UserError: A level's groups were found in the data before training: newcomers have none.
    """
    fixed = next((level for level in method.levels if isinstance(level.grouping, FromData)), None)
    if fixed:
        raise UserError(
            f"levels: {fixed.name}.grouping is {fixed.grouping.kind}, which finds groups once and before "
            "training: newcomers have none; choose a grouping that is learned, such as ifca or kmeans"
        )
    stack = [
        replace(
            _by_losses(level),
            server=replace(level.server, schedule=_constant(level.server.schedule)),
            period=0 if index < shared else level.period,
            absorb=0,
        )
        for index, level in enumerate(method.levels)
    ]
    steady = _constant(method.local.schedule)
    local = replace(method.local, lr=rate * method.local.lr, schedule=steady, keep_state=False)
    return replace(method, levels=tuple(stack), local=local, participation=Everyone(), adapt=Adapt())


def per_video(method: Method, rate: float = 1.0) -> Method:
    """One model for each video, trained as `continued` trains."""
    plain = continued(replace(method, levels=(Level("video", by="video"),)), 0, rate)
    return replace(plain, mixing=Mixing(), local=replace(plain.local, prefix_share=0.0))


def _constant(schedule: Any) -> Any:
    return replace(schedule, kind="constant", warmup=0.0)


def _by_losses(level: Level) -> Level:
    settings = level.grouping
    if isinstance(settings, ByUpdates):
        settings = IFCA(groups=settings.groups, of=settings.of, within=settings.within)
    if isinstance(settings, IFCA):
        settings = replace(settings, reseed=False)
    return replace(level, grouping=settings)


def num_shared(sim: Simulator) -> int:
    """How many of the first levels keep every video's viewers together, and several videos apart from none.

    A level with a row for each video is not among them: a new video has no row there.
    """
    video = np.asarray(sim.federation.labels["video"])

    def shared(index: int) -> bool:
        group = sim.groupings[index]
        if (group.finest < 0).any() or hierarchy.nesting(video, group.finest) == "crossed":
            return False
        return group.unit is not None or group.num_groups < len(np.unique(video))

    return len(list(takewhile(shared, range(len(sim.layout.levels)))))


def carried(sim: Simulator, state: State) -> State:
    """A state of the hierarchy as `sim`, which continues it, takes it: what is known of units is kept."""
    states = []
    for level, group, names, old in zip(
        sim.layout.levels, sim.groupings, sim.layout.owned, state.levels, strict=True
    ):
        known = old.learned
        if known is not None:
            one = {n: rows[0] for n, rows in old.rows.items()}
            fresh = learned_of.init(level, group, one, names)
            known = fresh._replace(share=known.share, seen=known.seen, heard=known.heard)
        states.append(old._replace(learned=known))
    stack = tuple(states)
    for index in range(len(stack)):
        stack = learned_of.follow(sim.layout.levels, stack, index)
    return State(state.round, state.seed, stack, None)


def start(own: LevelState, states: tuple[LevelState, ...], depth: int, session_of: np.ndarray) -> LevelState:
    """A model for each video by (1).

    Args:
        own: the level of one model for each video, as it is before its first round.
        states: the hierarchy, with newcomers in groups.
        depth: levels that the start takes from it.
        session_of: a session of each video, int [video].
    """
    rows = dict(own.rows)
    known = {n for state in states[:depth] for n in state.rows}
    for leaf in set(rows) & known:
        rows[leaf] = levels.compose(states, jnp.asarray(session_of, jnp.int32), leaf, depth)
    return own._replace(rows=jax.tree.map(jnp.array, rows))
