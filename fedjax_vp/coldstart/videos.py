"""A new video: the error on its unseen viewers after some rounds, or with only some viewers to train on.

Training users watch videos that the base method never saw; test windows are those of the base run, of users
and videos that train nowhere. All starts are states of two compiled functions: one model for each video, its
row set to a prefix of the hierarchy (`federated.arrival`), and the hierarchy that goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_vp import compiling
from fedjax_vp.data.splits import Split
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.evaluate import Evaluation, evaluate, make_errors
from fedjax_vp.federated import arrival, crowd, mixing
from fedjax_vp.federated import round as rounds_of
from fedjax_vp.federated.federation import Arrays, build, sampled, trained_by
from fedjax_vp.federated.levels import LevelState
from fedjax_vp.federated.placement import make_place
from fedjax_vp.federated.round import State
from fedjax_vp.federated.settings import Method
from fedjax_vp.federated.simulator import Simulator, simulator
from fedjax_vp.forecasting import own
from fedjax_vp.problem import Problem

SCRATCH = "scratch"


class Stage(NamedTuple):
    """A method on the new videos, compiled once for all starts, viewers and seeds."""

    sim: Simulator
    chunk: Callable[..., Any]  # (state, arrays, numbers, count) -> state, facts
    numbers: rounds_of.Hyper
    place: Callable[..., State]
    count: Callable[..., Any]  # (levels, arrays) -> levels with the crowd of those who train
    errors: Callable[..., Any]

    def advance(self, state: State, arrays: Arrays, count: int) -> State:
        """The state some rounds later."""
        if not count:
            return state
        # Laid out as a chunk returns them: one compilation serves all.
        args = jax.device_put((state, arrays), NamedSharding(self.sim.mesh, PartitionSpec()))
        return self.chunk(*args, self.numbers, jnp.int32(count))[0]


class NewVideos:
    """New videos of one federation.

    Args:
        base: what the base method was trained in.
        split: `splits.Arrivals.videos`.
        settings: budgets.
        algorithm: name of the base method.

    Attributes:
        starts: names of all starts: from scratch, from each prefix that keeps a video's viewers together, and
            the whole method, where it has a finer level.
    """

    def __init__(self, base: Problem, split: Split, settings: arrival.ColdStart, algorithm: str) -> None:
        federation = build(base.traces, split, base.federation.shape, base.method.client)
        federation = sampled(federation, base.evaluate.sessions)
        base_sim = simulator(base.federation, base.predictor, base.method, base.engine)
        depth = arrival.num_shared(base_sim)
        problem = base._replace(federation=federation)
        length = max(*settings.rounds, settings.viewer_rounds)
        self.whole = _stage(problem, arrival.continued(base.method, depth, settings.rate), length)
        self.single = _stage(problem, arrival.per_video(base.method, settings.rate), length)
        names = [level.name for level in base.method.levels]
        self.starts = [SCRATCH, *names[:depth], *([algorithm] if depth < len(names) else [])]
        self._depth, self._method = depth, algorithm
        self._trains = split.windows("train") > 0
        self._traces = base.traces
        self._session_of = np.unique(self.single.sim.groupings[0].code, return_index=True)[1]

    def viewers(self, most: int | None, seed: int) -> Arrays:
        """Arrays in which only the first `most` viewers of each new video train (None: all of them)."""
        arrays = self.whole.sim.federation.arrays
        return arrays if most is None else trained_by(arrays, first(self._traces, self._trains, most, seed))

    def course(
        self, start: str, base: State, weights: mixing.Weights, arrays: Arrays, budgets: Sequence[int]
    ) -> Iterator[tuple[int, Evaluation]]:
        """Errors of a start after each number of rounds.

        Before the first round nobody has reported: a new video is in no learned category yet.

        Args:
            start: one of `starts`.
            base: final state of the base method.
            weights: by which it mixes its prefixes.
            arrays: from `viewers`.
            budgets: rounds, rising.
        """
        nobody = trained_by(arrays, np.zeros_like(self._trains))
        carried, done = arrival.carried(self.whole.sim, base), 0
        stage = self.whole if start == self._method else self.single
        state = self._begin(start, carried, arrays)
        for budget in budgets:
            state, done = stage.advance(state, arrays, budget - done), budget
            shown = self._begin(start, carried, nobody) if budget == 0 else state
            if stage is self.whole:
                forecaster = stage.place(shown, arrays if budget else nobody), weights
            else:
                level = mixing.last_level(1, stage.sim.federation.shape.horizon)
                forecaster = shown, mixing.same_for_all(level, stage.sim.federation.num_sessions)
            test = stage.sim.federation.arrays.test
            yield budget, evaluate(stage.errors, forecaster, stage.sim, test)

    def _begin(self, start: str, carried: State, arrays: Arrays) -> State:
        """The state before the first round: what its viewers say of their category, and where they looked."""
        carried = carried._replace(levels=self.whole.count(carried.levels, arrays))
        if start == self._method:
            return carried
        fresh = rounds_of.init(self.single.sim, carried.seed)
        placed = self.whole.place(carried, arrays)
        depth = self.starts.index(start)
        level = arrival.start(fresh.levels[0], placed.levels, depth, self._session_of)
        return fresh._replace(levels=self.single.count((level,), arrays))


def first(traces: TraceSet, trains: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Bool [session]: training sessions of the first `most` viewers of each video, in an order of the seed's.

    More viewers of one seed include fewer.
    """
    turn = np.random.default_rng(seed).permutation(traces.num_users)[traces.user]
    turn = np.where(trains, turn, traces.num_users)
    order = np.lexsort((turn, traces.video))
    rank = np.empty(len(order), np.int64)
    begins = np.searchsorted(traces.video[order], traces.video[order])
    rank[order] = np.arange(len(order)) - begins
    return trains & (rank < most)


def _count(sim: Simulator, levels: tuple[LevelState, ...], arrays: Arrays) -> tuple[LevelState, ...]:
    return crowd.counted(sim.layout, levels, arrays, sim.federation.shape)


def _stage(problem: Problem, method: Method, length: int) -> Stage:
    sim = simulator(problem.federation, problem.predictor, method, replace(problem.engine, chunk=length))
    return Stage(
        sim,
        jax.jit(rounds_of.make_chunk(sim, length), compiler_options=compiling.options(sim.mesh)),
        rounds_of.hyper(method, length),
        make_place(sim),
        jax.jit(partial(_count, sim)),
        make_errors(own(sim), problem.federation.shape, sim.mesh, problem.evaluate),
    )
