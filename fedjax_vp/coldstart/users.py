"""A new user on known videos: the error by how many seconds of the session are known.

The first seconds place the session in a user category (`federated.placement`), or are trained on for some
local steps before anything is predicted. All budgets are tested on the windows after the largest one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp

from fedjax_vp.data import splits
from fedjax_vp.data.protocols import UnseenBoth
from fedjax_vp.evaluate import Evaluation, evaluate, make_errors
from fedjax_vp.federated import arrival, levels, mixing
from fedjax_vp.federated.federation import build, sampled
from fedjax_vp.federated.placement import make_place
from fedjax_vp.federated.round import State
from fedjax_vp.federated.settings import Adapt
from fedjax_vp.federated.simulator import Simulator, simulator
from fedjax_vp.forecasting import Forecaster, adapt, alone, own
from fedjax_vp.problem import Problem

LOCAL_STEPS = Adapt(steps=10, lr=0.02, batch=32, on="adapt")
"""Where the config has no local steps of its own: those of the recipe `finetune`."""


class Line(NamedTuple):
    """A way to treat a new user."""

    name: str
    sim: Simulator  # with the local steps
    errors: Callable[..., Any]


class NewUsers:
    """New users of one federation.

    Args:
        base: what the base method was trained in.
        protocol: `unseen_both`, of which new users see the known videos.
        settings: budgets.
        algorithm: name of the base method.

    Attributes:
        lines: the first level alone and the whole method, each with and without local steps.
    """

    def __init__(
        self, base: Problem, protocol: UnseenBoth, settings: arrival.ColdStart, algorithm: str
    ) -> None:
        def known(seconds: float) -> splits.Split:
            budget = replace(protocol, adapt_s=seconds, reserve_s=max(settings.seconds))
            return splits.arrivals(base.traces, budget).users

        most = known(settings.seconds[-1])
        federation = build(base.traces, most, base.federation.shape, base.method.client)
        federation = sampled(federation, base.evaluate.sessions)
        self._counts = {seconds: known(seconds).windows("adapt") for seconds in settings.seconds}
        steps = base.method.adapt if base.method.adapt.steps else LOCAL_STEPS
        sims = {
            suffix: simulator(federation, base.predictor, replace(base.method, adapt=how), base.engine)
            for suffix, how in {"": Adapt(), " + local steps": steps}.items()
        }
        self._sim = sims[""]
        self._place = make_place(self._sim)
        names = {base.method.levels[0].name: 1, algorithm: len(base.method.levels)}
        self.lines = [
            Line(f"{name}{suffix}", sim, make_errors(_forecaster(sim, depth), *_shape(sim), base.evaluate))
            for name, depth in names.items()
            for suffix, sim in sims.items()
        ]

    def errors(self, base: State, weights: mixing.Weights) -> Iterator[tuple[str, float, Evaluation]]:
        """Name of the line, seconds known, and errors on the common windows."""
        for seconds, count in self._counts.items():
            arrays = self._sim.federation.arrays
            early = arrays.adapt._replace(count=jnp.asarray(count, jnp.int32))
            arrays = arrays._replace(adapt=early)
            placed = self._place(base, arrays)
            for line in self.lines:
                federation = replace(line.sim.federation, arrays=arrays)
                sim = line.sim._replace(task=line.sim.task._replace(federation=federation))
                yield line.name, seconds, evaluate(line.errors, (placed, weights), sim, arrays.test)


def _shape(sim: Simulator) -> tuple[Any, Any]:
    return sim.federation.shape, sim.mesh


def _forecaster(sim: Simulator, depth: int) -> Forecaster:
    """The whole method's forecasts, or those of its first levels alone."""
    if depth == len(sim.layout.levels):
        return own(sim)

    def model_of(state: tuple[State, mixing.Weights], arrays: Any, session: Any) -> Any:
        model = levels.model_of(state[0].levels, session, depth)
        return adapt(sim, model, state[0], arrays, session) if sim.method.adapt.steps else model

    return Forecaster(model_of, lambda model, inputs: sim.task.predictor.apply(model, inputs)[None], alone)
