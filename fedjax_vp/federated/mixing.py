"""Prediction-level mixing: which prefix of the hierarchy to trust at which horizon, and for whom.

    p(k) = normalize( sum_l pi[g, l, k] p_l(k) ),        pi[g, :, k] on the simplex                (1)

p_l is the prediction of an expert (`Mixing.experts`; these come first) or of a prefix theta^(<=l), and g the
session's group under `mixing.per` (one for all by default). The weights minimize the mean great-circle error
of validation windows, which come from training sessions; `best_prefix` is the hard case. A sum of parameters
cannot do this below the last layer.

A group with n validation sessions is shrunk toward the weights common to all, which count as `prior` sessions
(windows of one session are much alike, so that their number says little):

    pi[g] = n / (n + prior) pi_own[g] + prior / (n + prior) pi_common                              (2)

(the hard case shrinks the errors it compares instead), so that a group nobody validated has the common ones.
`safe` retreats from there to the first model e_1, an expert's or the first level's,

    pi[g](a) = a pi[g] + (1 - a) e_1,    a in [0, 1],                                              (3)

to the a of least error at which no more than `most_hurt` of the users are hurt: those whose error over 1-5 s
exceeds the first prefix's by more than half a degree, the error shrunk as in (2) to the mean over users.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from fedjax_vp import geometry
from fedjax_vp.federated.settings import Mixing
from fedjax_vp.metrics import HURT_HORIZONS_S, HURT_MARGIN_DEG

STEPS, LEARNING_RATE = 100, 0.3
RETREATS = 11  # values of a in (3)


class Weights(NamedTuple):
    """Weights of (1): one row a group, and last the one common to all."""

    rows: Float[Array, "row level horizon"]
    row: Int[Array, "session"]  # row of each session
    typical: Float[Array, "horizon"]  # mean error of the common ones on validation windows, radians


class Validation(NamedTuple):
    """Validation windows as the fit sees them."""

    predicted: Float[Array, "level window horizon 3"]  # unit vectors of each prefix
    target: Float[Array, "window horizon 3"]  # true unit vectors
    weight: Float[Array, "window"]  # 0 for padding
    share: Float[Array, "window"]  # of its session: one over the windows found there, 0 for padding
    row: Int[Array, "window"]
    user: Int[Array, "window"]


def of(weights: Weights, session: Int[Array, ""]) -> Float[Array, "level horizon"]:
    """Weights of one session."""
    return weights.rows[weights.row[session]]


def mix(
    weights: Float[Array, "level #window horizon"], predicted: Float[Array, "level window horizon 3"]
) -> Float[Array, "window horizon 3"]:
    """Normalized mixture of the prefixes' predictions."""
    return _unit(jnp.sum(weights[..., None] * predicted, axis=0))


def last_level(num_levels: int, horizon: int) -> Float[Array, "level horizon"]:
    """Weights that predict with the whole hierarchy."""
    return jnp.zeros((num_levels, horizon)).at[-1].set(1.0)


def same_for_all(weights: Float[Array, "level horizon"], num_sessions: int) -> Weights:
    """The same weights for every session; nothing is known of their errors."""
    return Weights(weights[None], jnp.zeros(num_sessions, jnp.int32), jnp.ones(weights.shape[-1]))


def hurt_horizons(horizon: int, rate_hz: float) -> Bool[np.ndarray, "horizon"]:
    """Samples by whose mean error users are hurt: 1 to 5 s, or all where the horizon ends before."""
    at_s = np.arange(1, horizon + 1) / rate_hz
    low, high = HURT_HORIZONS_S
    inside = (at_s >= low - 1e-6) & (at_s <= high + 1e-6)
    return inside if inside.any() else np.ones(horizon, bool)


def fit(
    settings: Mixing,
    found: Validation,
    num_groups: int,
    num_users: int,
    counts: Bool[np.ndarray, "horizon"],
) -> Float[Array, "row level horizon"]:
    """Learns the weights of every group and, in the last row, those common to all.

    Args:
        settings: kind, prior and safety.
        found: validation windows; `row` is `num_groups` where a session's group is unknown.
        num_groups: groups that have weights of their own, 0 where everybody has the common ones.
        num_users: users, of whom few may be hurt.
        counts: horizons by which a user is hurt (`hurt_horizons`).
    """
    everyone = found._replace(row=jnp.zeros_like(found.row))
    common = _learn(settings, everyone, 1, None)
    if settings.safe:
        common = _retreat(settings, everyone, common, num_users, counts)
    if not num_groups:
        return common
    known = jnp.where(found.row < num_groups, 1.0, 0.0)
    known = found._replace(weight=known * found.weight, share=known * found.share)
    own = _learn(settings, known, num_groups + 1, common)
    return (_retreat(settings, known, own, num_users, counts) if settings.safe else own).at[-1].set(common[0])


def typical(found: Validation, common: Float[Array, "level horizon"]) -> Float[Array, "horizon"]:
    """Mean error of the common weights on the validation windows, radians."""
    error = geometry.great_circle(mix(common[:, None], found.predicted), found.target)
    total = jnp.sum(found.weight[:, None] * error, axis=0) / jnp.maximum(jnp.sum(found.weight), 1e-9)
    return jnp.maximum(total, 1e-6)


def _learn(
    settings: Mixing, found: Validation, num_rows: int, common: Float[Array, "1 level horizon"] | None
) -> Float[Array, "row level horizon"]:
    """Weights by row, shrunk toward the common ones where there are any."""
    total = _sum(found.weight, found.row, num_rows)
    sessions = _sum(found.share, found.row, num_rows)
    own_share = sessions / jnp.maximum(sessions + settings.prior, 1e-9)
    trust = (jnp.ones(num_rows) if common is None else own_share)[:, None, None]

    def by_row(prediction: Float[Array, "window horizon 3"]) -> Float[Array, "row horizon"]:
        error = found.weight[:, None] * geometry.great_circle(prediction, found.target)
        return _sum(error, found.row, num_rows) / jnp.maximum(total, 1e-9)[:, None]

    single = jnp.moveaxis(jax.lax.map(by_row, found.predicted), 0, 1)  # [row, level, horizon]
    mean = jnp.tensordot(total / jnp.maximum(jnp.sum(total), 1e-9), single, 1)[None]
    best = jax.nn.one_hot(jnp.argmin(trust * single + (1 - trust) * mean, axis=1), single.shape[1], axis=1)
    if settings.kind == "best_prefix":
        return best
    optimizer = optax.adam(LEARNING_RATE)

    def mixed(weights: Float[Array, "row level horizon"]) -> Float[Array, "row horizon"]:
        return by_row(_mix_by_row(weights, found))

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        logits, moments = carry
        gradient = jax.grad(lambda x: jnp.sum(mixed(jax.nn.softmax(x, axis=1))))(logits)
        update, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(logits, update), moments), None

    start = best  # logits that lean to the best prefix
    (logits, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), None, length=STEPS)
    mixture = jax.nn.softmax(logits, axis=1)
    better = mixed(mixture) < mixed(best)
    own = jnp.where(better[:, None, :], mixture, best)
    return own if common is None else trust * own + (1 - trust) * common


def _retreat(
    settings: Mixing,
    found: Validation,
    rows: Float[Array, "row level horizon"],
    num_users: int,
    counts: Bool[np.ndarray, "horizon"],
) -> Float[Array, "row level horizon"]:
    """Each row as near to the first prefix as (3) and the share of its users that are hurt ask."""
    num_rows, at = rows.shape[0], np.flatnonzero(counts)
    first = jnp.zeros_like(rows).at[:, 0].set(1.0)
    shares = jnp.linspace(0.0, 1.0, RETREATS)
    pair = found.row * num_users + found.user
    sessions, windows = (_sum(x, pair, num_rows * num_users) for x in (found.share, found.weight))
    trust = sessions / jnp.maximum(sessions + settings.prior, 1e-9)
    present = (windows > 0).reshape(num_rows, num_users)

    def error(share: Float[Array, ""]) -> Float[Array, "window"]:
        prediction = _mix_by_row(share * rows + (1 - share) * first, found)
        return jnp.mean(geometry.great_circle(prediction[:, at], found.target[:, at]), axis=1)

    before = error(shares[0])

    def judge(share: Float[Array, ""]) -> tuple[Float[Array, "row"], Float[Array, "row"]]:
        worse = found.weight * jnp.rad2deg(error(share) - before)
        mean = jnp.sum(worse) / jnp.maximum(jnp.sum(found.weight), 1e-9)
        by_user = _sum(worse, pair, num_rows * num_users) / jnp.maximum(windows, 1e-9)
        by_user = (trust * by_user + (1 - trust) * mean).reshape(num_rows, num_users)
        hurt = jnp.sum(present & (by_user > HURT_MARGIN_DEG), axis=1) / jnp.maximum(present.sum(axis=1), 1)
        return _sum(worse, found.row, num_rows), hurt

    change, hurt = jax.lax.map(judge, shares)
    allowed = jnp.where(hurt <= settings.most_hurt, change, jnp.inf)  # a = 0 always is
    share = shares[jnp.argmin(allowed, axis=0)][:, None, None]
    share = jnp.where(present.any(axis=1)[:, None, None], share, 1.0)  # nobody to judge by: as shrunk
    return share * rows + (1 - share) * first


def _mix_by_row(
    rows: Float[Array, "row level horizon"], found: Validation
) -> Float[Array, "window horizon 3"]:
    """`mix` of every window with the weights of its row."""
    return mix(jnp.moveaxis(rows[found.row], 1, 0), found.predicted)


def _sum(
    values: Float[Array, "window *rest"], row: Int[Array, "window"], num: int
) -> Float[Array, "{num} *rest"]:
    return jax.ops.segment_sum(values, row, num_segments=num)


def _unit(total: Float[Array, "*any 3"]) -> Float[Array, "*any 3"]:
    return total / jnp.maximum(jnp.linalg.norm(total, axis=-1, keepdims=True), 1e-9)
