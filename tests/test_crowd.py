"""The crowd: counted from training windows alone, left as it is, and a headset's own part taken out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from fedjax_vp.federated import crowd
from fedjax_vp.federated import round as rounds
from fedjax_vp.federated.federation import build
from fedjax_vp.federated.settings import Engine, Level, Local, Method
from fedjax_vp.federated.simulator import Simulator, simulator
from fedjax_vp.models.base import Inputs
from fedjax_vp.models.features import CROWD_PRIOR, CROWD_SCALE, VIDEO_CROWD, Features, view_of
from fedjax_vp.models.mlp import MLP

TRACES = toy.traces(users=3, videos=2)
SPLIT = toy.split(TRACES, empty=(3,))
LEVELS = (
    Level("global", owns=("*", "!video_*")),
    Level("video", by="video", owns=("video_*",), shrinkage="auto"),
)


def make(client: str = "session") -> Simulator:
    method = Method(LEVELS, client, local=Local(batch=4, steps=2))  # type: ignore[arg-type]
    features = Features(crowd=True, table_at_s=(0.2, 0.6))
    predictor = MLP(hidden=(4,), features=features).build(toy.SHAPE)
    return simulator(build(TRACES, SPLIT, toy.SHAPE, client), predictor, method, Engine(devices=1))


def parts() -> np.ndarray:
    """Plain loop: what each session tells, float64 [session, bin, 4]."""
    found = np.zeros((TRACES.num_traces, 19, 4))
    for session, mask in enumerate(SPLIT.train):
        seen = {k for now in np.flatnonzero(mask) for k in range(now - 3, now + 4)}
        for k in sorted(seen):
            found[session, int(k / 5 / 0.5 + 1e-4)] += 0.4 * np.r_[1, TRACES.direction[session, k]]
    return found


@pytest.fixture(scope="module")
def sim() -> Simulator:
    return make()


def test_a_video_holds_the_sums_of_its_training_viewers(sim: Simulator) -> None:
    rows = np.asarray(rounds.init(sim, jnp.int32(0)).levels[1].rows[VIDEO_CROWD])
    wanted = np.stack([parts()[TRACES.video == video].sum(axis=0) for video in range(2)])
    np.testing.assert_allclose(rows[:, :19], wanted, atol=1e-5)
    assert not rows[:, 19:].any()
    assert not parts()[3].any()  # a session that does not train tells nothing
    assert parts()[0].any()


def test_training_leaves_the_crowd_as_it_is(sim: Simulator) -> None:
    state = rounds.init(sim, jnp.int32(0))
    new, info = jax.jit(rounds.make_round(sim))(state, sim.federation.arrays, rounds.hyper(sim.method, 1))
    assert info.healthy
    np.testing.assert_array_equal(new.levels[1].rows[VIDEO_CROWD], state.levels[1].rows[VIDEO_CROWD])
    before, after = (np.asarray(one.levels[0].rows["head/bias"]) for one in (state, new))
    assert not np.allclose(before, after)


@pytest.mark.parametrize(("client", "sessions"), [("session", [4]), ("user", [4, 5])])
def test_a_headset_takes_its_own_part_out(client: str, sessions: list[int]) -> None:
    one = make(client)
    rows = np.asarray(rounds.init(one, jnp.int32(0)).levels[1].rows[VIDEO_CROWD])
    theta = {VIDEO_CROWD: jnp.asarray(rows[TRACES.video[sessions]])}
    real = jnp.ones(len(sessions), bool)
    arrays, shape = one.federation.arrays, one.federation.shape
    found = crowd.without_own(theta, arrays, shape, jnp.asarray(sessions), real)[VIDEO_CROWD]
    for row, session in zip(np.asarray(found), sessions, strict=True):
        others = (TRACES.video == TRACES.video[session]) & (np.arange(6) != session)
        np.testing.assert_allclose(row[:19], parts()[others].sum(axis=0), atol=1e-5)


def test_the_crowd_is_read_between_its_bins_and_in_the_viewer_s_frame() -> None:
    features = Features(crowd=True, table_at_s=(1.0,)).build(toy.SHAPE)
    table = jnp.zeros(features.init()[VIDEO_CROWD].shape).at[4].set(jnp.array([3.0, 0.0, 3.0, 0.0]))
    past = jnp.broadcast_to(jnp.array([0.0, 1.0, 0.0]), (3, 4, 3))  # looks left: left is ahead
    time = jnp.array([1.25, 1.5, 4.0])  # + 1 s: the middle of bin 4, its end, and far from it
    context = features.context({VIDEO_CROWD: table}, view_of(Inputs(past, time)))
    wanted = CROWD_SCALE * np.array([3 / (3 + CROWD_PRIOR), 1.5 / (1.5 + CROWD_PRIOR), 0])
    np.testing.assert_allclose(context, np.stack([wanted, 0 * wanted, 0 * wanted], axis=1), atol=1e-6)
