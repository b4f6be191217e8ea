"""IFCA with gradient averaging on mixtures of linear regressions, many runs on the same samples at once.

Ghosh, Chung, Yin, Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020,
section 6:

    theta*_j = r b_j,   b_j ~ Bernoulli(1/2)^d;   machine i has group i // (m / k)                 (1)
    x ~ N(0, I_d),   y = <x, theta*_group> + sigma N(0, 1);   n samples a machine                  (2)
    j_i = argmin_j F_i(theta_j),   F_i the mean squared error on machine i                         (3)
    theta_j <- theta_j - lr / m sum_{i: j_i = j} grad F_i(theta_j)                                 (4)
    distance = 1/k sum_j min_j' |theta_j - theta*_j'|                                              (5)

Starts, learning rates, separations r and noises sigma of a data set share its samples x, so that their models
stand side by side as columns: a round is two matrix products, x theta for (3) and x^T residuals for (4).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_DIVERGED = 1e6  # a distance from which no run comes back


class Shape(NamedTuple):
    """Static sizes."""

    k: int
    m: int
    n: int
    d: int
    starts: int


class Grid(NamedTuple):
    """What is varied on the same samples."""

    r: Float[Array, "point"]
    sigma: Float[Array, "point"]
    lr: Float[Array, "lr"]


class Stop(NamedTuple):
    """When runs end."""

    rounds: Int[Array, ""]
    tolerance: Float[Array, ""]
    patience: Int[Array, ""]


class Data(NamedTuple):
    """One data set at every point of the grid."""

    x: Float[Array, "sample d"]
    y: Float[Array, "sample point"]
    truth: Float[Array, "d point k"]


class Runs(NamedTuple):
    """Runs in progress; a run is a (point, start, lr)."""

    theta: Float[Array, "d run k"]
    choice: Int[Array, "machine run"]
    distance: Float[Array, "run"]
    quiet: Int[Array, "run"]  # rounds without a change
    rounds: Int[Array, "run"]  # rounds run


class Outcome(NamedTuple):
    """How runs ended."""

    distance: Float[Array, "*batch point start lr"]
    rounds: Int[Array, "*batch point start lr"]
    recovered: Bool[Array, "*batch point start lr"]  # machines are grouped as planted


@partial(jax.jit, static_argnames=("shape", "at_once"))
def simulate(
    key: Array, sets: Int[Array, "set"], grid: Grid, stop: Stop, shape: Shape, at_once: int
) -> Outcome:
    """Draws some data sets and runs IFCA on each from every start at every rate.

    Args:
        key: of the experiment; a data set and its starts depend on it and on the data set's index alone.
        sets: indices of the data sets.
        grid: separations and noises of the points, and learning rates.
        stop: when to stop.
        shape: static sizes.
        at_once: data sets that are stacked; a number for speed, results do not depend on it.
    """

    def one(index: Int[Array, ""]) -> Outcome:
        data_key, start_key = jax.random.split(jax.random.fold_in(key, index))
        data = draw(data_key, grid, shape)
        return train(data, starts(start_key, shape), grid.lr, stop, shape)

    # no vmap over a single data set: on a CPU batched products take half as long again as plain ones
    return jax.lax.map(one, sets, batch_size=at_once if at_once > 1 else None)


def draw(key: Array, grid: Grid, shape: Shape) -> Data:
    """(1) and (2)."""
    truth_key, x_key, noise_key = jax.random.split(key, 3)
    samples = shape.m * shape.n
    pattern = jax.random.bernoulli(truth_key, 0.5, (shape.d, shape.k)).astype(float)
    x = jax.random.normal(x_key, (samples, shape.d))
    group = jnp.arange(samples) // (samples // shape.k)
    own = jnp.take_along_axis(_matmul(x, pattern), group[:, None], axis=1)
    noise = jax.random.normal(noise_key, (samples, 1))
    y = own * grid.r[None, :] + noise * grid.sigma[None, :]
    return Data(x, y, pattern[:, None, :] * grid.r[None, :, None])


def starts(key: Array, shape: Shape) -> Float[Array, "d start k"]:
    """Random initial models: each coordinate 0 or 1."""
    return jax.random.bernoulli(key, 0.5, (shape.d, shape.starts, shape.k)).astype(float)


def train(
    data: Data, start: Float[Array, "d start k"], lr: Float[Array, "lr"], stop: Stop, shape: Shape
) -> Outcome:
    """Runs IFCA from every start at every rate and point, until each is still, has diverged or is long."""
    sizes = (data.y.shape[1], shape.starts, lr.shape[0])
    point_of, start_of, lr_of = (index.reshape(-1) for index in jnp.indices(sizes))
    y, truth, rate = data.y[:, point_of], data.truth[:, point_of], lr[lr_of]
    never = jnp.zeros(len(rate), jnp.int32)
    unknown = jnp.full((shape.m, len(rate)), -1, jnp.int32)
    first = Runs(start[:, start_of], unknown, jnp.full_like(rate, jnp.inf), never, never)

    def going(runs: Runs) -> Bool[Array, "run"]:
        bounded = (runs.rounds == 0) | (runs.distance < _DIVERGED)
        return bounded & (runs.quiet < stop.patience) & (runs.rounds < stop.rounds)

    def step(runs: Runs) -> Runs:
        choice, gradient = ifca_round(data.x, y, runs.theta, shape)
        theta = runs.theta - rate[None, :, None] * gradient
        distance = distance_of(theta, truth)
        still = jnp.all(choice == runs.choice, axis=0)
        still &= jnp.abs(distance - runs.distance) <= stop.tolerance * distance
        quiet = jnp.where(still, runs.quiet + 1, 0)
        moved = Runs(theta, choice, distance, quiet, runs.rounds + 1)
        on = going(runs)
        masks = Runs(on[None, :, None], on[None, :], on, on, on)
        return jax.tree.map(jnp.where, masks, moved, runs)

    last = jax.lax.while_loop(lambda runs: jnp.any(going(runs)), step, first)
    found = (last.distance, last.rounds, recovered(last.choice, shape.k))
    return Outcome(*(values.reshape(sizes) for values in found))


def ifca_round(
    x: Float[Array, "sample d"], y: Float[Array, "sample run"], theta: Float[Array, "d run k"], shape: Shape
) -> tuple[Int[Array, "machine run"], Float[Array, "d run k"]]:
    """The group that every machine chooses (3), and the mean gradient over all machines (4)."""
    runs = y.shape[1]
    predicted = _matmul(x, theta.reshape(shape.d, -1)).reshape(shape.m, shape.n, runs, shape.k)
    residual = predicted - y.reshape(shape.m, shape.n, runs, 1)
    choice = jnp.argmin(jnp.mean(residual**2, axis=1), axis=-1).astype(jnp.int32)
    chosen = jax.nn.one_hot(choice, shape.k, dtype=residual.dtype)[:, None]  # [machine, 1, run, k]
    gradient = _matmul(x.T, (residual * chosen).reshape(len(x), -1)) * (2 / shape.n / shape.m)
    return choice, gradient.reshape(theta.shape)


def distance_of(theta: Float[Array, "d run k"], truth: Float[Array, "d run k"]) -> Float[Array, "run"]:
    """(5): each model to its nearest truth; not a matching, two models at one truth are at distance 0."""
    to_each = [jnp.linalg.norm(theta - truth[..., j : j + 1], axis=0) for j in range(truth.shape[-1])]
    return jnp.mean(jnp.min(jnp.stack(to_each), axis=0), axis=-1)


def recovered(choice: Int[Array, "machine run"], k: int) -> Bool[Array, "run"]:
    """Whether the machines of each planted group, and they alone, share a model."""
    planted = choice.reshape(k, -1, choice.shape[1])
    joined = jnp.any(planted[..., None] == jnp.arange(k)[None, None, None, :], axis=1)  # [group, run, model]
    return jnp.all(jnp.sum(joined, axis=2) == 1, axis=0) & jnp.all(jnp.sum(joined, axis=0) == 1, axis=1)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")  # accelerators would round float32 to fewer bits
