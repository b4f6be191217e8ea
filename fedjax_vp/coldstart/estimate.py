"""How long a cold start will take on this machine, roughly: said before it begins."""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax_vp.config import Config
from fedjax_vp.data.splits import Arrivals
from fedjax_vp.federated.federation import gather
from fedjax_vp.federated.participation import cohort_size
from fedjax_vp.problem import Problem

_TIMED_S = 0.3
_COMPILE_S = 60.0  # of all functions together, where none is cached
_OVERHEAD = 2.0  # of a round over its bare gradients: models of levels, sums, prefixes
_PREDICT = 0.4  # time of a prediction in that of a gradient


def seconds(problem: Problem, arrivals: Arrivals, config: Config, seeds: Sequence[int]) -> float:
    """Seconds of the base runs and of all cells, if nothing is finished."""
    settings, method = config.coldstart, problem.method
    cohort = cohort_size(method.participation, problem.federation.num_clients)
    viewers = int((arrivals.videos.windows("train") > 0).sum())
    videos = len(set(problem.traces.video[arrivals.videos.windows("train") > 0]))
    starts = len(method.levels) + 1
    rounds = settings.rounds[-1] * viewers
    rounds += settings.viewer_rounds * sum(min(videos * count, viewers) for count in settings.viewers)
    trained = (
        (method.starts * config.rounds * cohort + starts * rounds)
        * method.local.steps
        * max(method.local.batch, 32)
    )
    predicted = (
        starts * (len(settings.rounds) + len(settings.viewers)) * arrivals.videos.windows("test").sum()
    )
    predicted += 4 * len(settings.seconds) * arrivals.users.windows("test").sum()
    each = _gradient_s(problem) / len(jax.devices()[: problem.engine.devices or None])
    return _COMPILE_S + len(seeds) * each * (_OVERHEAD * trained + _PREDICT * len(method.levels) * predicted)


def _gradient_s(problem: Problem, windows: int = 32) -> float:
    """Seconds of the gradient of one window's loss, in a batch on one device."""
    arrays, loss_fn = problem.federation.arrays, problem.method.local.loss.build()
    session = jnp.full(windows, arrays.bags.session[0])
    inputs, target = gather(arrays, problem.federation.shape, session, arrays.train.at(session, 0 * session))
    params = problem.predictor.init(jax.random.key(0))
    step = jax.jit(jax.grad(lambda p: jnp.mean(loss_fn(problem.predictor.apply(p, inputs), target))))
    jax.block_until_ready(step(params))
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < _TIMED_S:
        jax.block_until_ready(step(params))
        count += 1
    return (time.perf_counter() - begun) / count / windows
