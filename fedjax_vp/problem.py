"""What is simulated, what its points share, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_vp import processes
from fedjax_vp.batching import Chunk
from fedjax_vp.cost import Cost, by_depth
from fedjax_vp.data.splits import Split
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.evaluate import Evaluation, evaluate, make_errors, make_mixing
from fedjax_vp.federated import census, regrouping
from fedjax_vp.federated import round as rounds_of
from fedjax_vp.federated.federation import Federation, thin
from fedjax_vp.federated.placement import make_place
from fedjax_vp.federated.settings import Engine, Evaluate, Method
from fedjax_vp.federated.simulator import Simulator, simulator
from fedjax_vp.forecasting import baseline, own
from fedjax_vp.models.base import Predictor
from fedjax_vp.models.static import Static
from fedjax_vp.models.velocity import Velocity

BASELINES = {"no_motion": Static(), "velocity": Velocity()}
TIMES = ("compile_s", "evaluate_compile_s", "wall_s", "evaluate_s", "clustering_s")  # where a run's time goes


class Problem(NamedTuple):
    """What is simulated."""

    federation: Federation
    predictor: Predictor
    method: Method
    engine: Engine
    evaluate: Evaluate
    traces: TraceSet
    split: Split
    baselines: dict[str, Evaluation] | None = None  # of all problems on the same windows; the first fills it
    experts: tuple[Predictor, ...] = ()  # of the method's experts

    def simulator(self) -> Simulator:
        """The method fitted to the federation."""
        return simulator(self.federation, self.predictor, self.method, self.engine, self.experts)


class Outcome(NamedTuple):
    """What a simulation returns."""

    state: Any
    history: list[dict[str, Any]]  # round, loss, error_deg (list over horizons), bytes_up, bytes_down
    evaluation: Evaluation  # all test windows
    baselines: dict[str, Evaluation]  # on the same windows
    timings: dict[str, float]  # s
    counters: dict[str, Any]
    examples: dict[str, np.ndarray]  # some test windows for the world map
    groups: Sequence[dict[str, Any]] = ()  # of learned levels, by level and round (`census.history`)
    cost: Cost | None = None  # by depth
    train_loss: float = math.nan  # of those that reported in the last tenth of the rounds


class Point(NamedTuple):
    """What may differ between runs of one compiled function."""

    seed: int
    method: Method  # the problem's, but for traced numbers (`batching.static_part`)
    run_dir: Path | None = None  # folder whose `checkpoints/` are written; None keeps nothing


class Common:
    """What the points of a simulation share: compiled functions, and the baselines' errors.

    Args:
        problem: What is simulated.
        rounds: Rounds of every point.
        points: How many there are; decides how many run side by side.
    """

    def __init__(self, problem: Problem, rounds: int, points: int = 1) -> None:
        self.problem, self.rounds = problem, rounds
        self.sim = problem.simulator()
        self.alone = self.sim.on(processes.own(self.sim.mesh))  # on devices of this process
        self.init = jax.jit(partial(rounds_of.init, self.sim))  # one function, where op by op takes seconds
        self.chunk = Chunk(self.sim, problem.engine, points * problem.method.starts)
        self.arrays = problem.federation.arrays
        self.errors = make_errors(own(self.sim), problem.federation.shape, self.sim.mesh, problem.evaluate)
        self.mixing = make_mixing(self.alone)
        self.place = make_place(self.alone)
        self.quick = jax.jit(thin, static_argnums=1)(self.arrays.test, problem.evaluate.history_windows)

    @cached_property
    def baselines(self) -> dict[str, Evaluation]:
        """Errors of the baselines on all test windows, unless another method's problem brought them."""
        found = {} if self.problem.baselines is None else self.problem.baselines
        federation = self.problem.federation
        for name, settings in BASELINES.items() if not found else ():
            forecaster = baseline(settings.build(federation.shape))
            errors = make_errors(forecaster, federation.shape, self.sim.mesh, self.problem.evaluate)
            found[name] = evaluate(errors, (), self.sim, self.arrays.test)
        return found

    @cached_property
    def choice_s(self) -> float:
        """Seconds of a round in which units choose among rows."""
        return census.choice_s(self.alone)

    @cached_property
    def cost(self) -> Cost:
        """Bytes and time by depth."""
        return by_depth(self.sim)

    def stop(self, done: int) -> int:
        """The next round after `done` at which Python has something to do."""
        every, length = self.problem.evaluate.every, self.problem.engine.chunk
        turn = regrouping.due(self.problem.method, done) or self.rounds
        return min(self.rounds, turn, *((done // n + 1) * n for n in (every, length)))
