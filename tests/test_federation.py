"""Federations: clients as bags of ragged sessions, windows of each phase, and what is cut out of a trace."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from fedjax_vp.data.protocols import Protocol, UnseenBoth, UnseenUsers, WithinSession
from fedjax_vp.data.splits import split
from fedjax_vp.data.synthetic import Planted, Synthetic, generate
from fedjax_vp.errors import UserError
from fedjax_vp.federated.federation import Federation, build, client_windows, gather, sampled, thin, traces_of

TRACES = toy.traces()
SPLIT = toy.split(TRACES, empty=(2, 7))


@pytest.fixture(scope="module", params=["session", "user", "all"])
def dealt(request: pytest.FixtureRequest) -> tuple[str, Federation]:
    return request.param, build(TRACES, SPLIT, toy.SHAPE, request.param)


def windows(mask: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (session, now) of a mask."""
    return [(int(s), int(k)) for s, k in zip(*np.nonzero(mask), strict=True)]


def test_every_training_window_belongs_to_one_client_of_its_owner(dealt: tuple[str, Federation]) -> None:
    client, fed = dealt
    owner = {"session": np.arange(12), "user": TRACES.user, "all": np.zeros(12, int)}[client]
    bags = fed.arrays.bags
    session, first, rank = (np.asarray(x) for x in bags)
    seen = []
    for c in range(fed.num_clients):
        members = session[first[c] : first[c + 1]]
        assert len(set(owner[members])) == 1
        for m in range(first[c], first[c + 1]):
            own = np.asarray(fed.arrays.train.now)[session[m], : rank[m + 1] - rank[m]]
            seen += [(int(session[m]), int(k)) for k in own]
        assert int(client_windows(fed.arrays, jnp.int32(c))) == SPLIT.train[members].sum()
    assert sorted(seen) == windows(SPLIT.train)
    assert len({*seen}) == len(seen)
    expected = {"session": 10, "user": 4, "all": 1}[client]
    assert fed.num_clients == expected
    assert fed.max_sessions == {"session": 1, "user": 3, "all": 10}[client]
    assert fed.max_windows == max(
        int(client_windows(fed.arrays, jnp.int32(c))) for c in range(fed.num_clients)
    )


def test_phases_are_the_masks(dealt: tuple[str, Federation]) -> None:
    _, fed = dealt
    for phase in ("train", "valid", "adapt", "test"):
        now, count = (np.asarray(x) for x in getattr(fed.arrays, phase)[:2])
        found = [(s, int(k)) for s in range(12) for k in now[s, : count[s]]]
        assert found == windows(getattr(SPLIT, phase))


def test_windows_are_cut_where_they_lie(dealt: tuple[str, Federation]) -> None:
    _, fed = dealt
    pairs = windows(SPLIT.test)[::7] + windows(SPLIT.train)[::7]
    session, now = (jnp.asarray(x, jnp.int32) for x in zip(*pairs, strict=True))
    inputs, target = jax.jit(gather, static_argnums=1)(fed.arrays, toy.SHAPE, session, now)
    for i, (s, k) in enumerate(pairs):
        trace = TRACES.direction[s]
        np.testing.assert_array_equal(inputs.past[i], trace[k - 3 : k + 1])
        np.testing.assert_array_equal(target[i], trace[k + 1 : k + 4])
    np.testing.assert_allclose(inputs.time, np.array([k for _, k in pairs]) / 5.0, rtol=1e-6)


def test_video_time_starts_at_t0() -> None:
    late = replace(TRACES, t0=np.arange(12) + 0.5)
    fed = build(late, SPLIT, toy.SHAPE)
    pair = jnp.asarray([4], jnp.int32), jnp.asarray([10], jnp.int32)
    assert float(gather(fed.arrays, toy.SHAPE, *pair)[0].time[0]) == pytest.approx(4.5 + 2.0)


def test_labels_are_those_of_the_sessions() -> None:
    fed = toy.federation()
    assert sorted(fed.labels) == ["edge", "session", "user", "video"]
    assert fed.labels["edge"].tolist() == (TRACES.user % 2).tolist()
    assert all(code.dtype == np.int32 and code.shape == (12,) for code in fed.labels.values())


@pytest.mark.parametrize("most", [1, 3, 5, 64])
def test_thinned_windows_are_distinct_and_spread(most: int) -> None:
    """Fewer than asked are all kept, once each; more are spread from the first on."""
    fed = toy.federation(empty=(2,))
    whole, thinned = fed.arrays.train, thin(fed.arrays.train, most)
    for s in range(12):
        count = int(whole.count[s])
        kept = np.asarray(thinned.now[s, : int(thinned.count[s])])
        own = np.asarray(whole.now[s, :count])
        assert len(kept) == min(count, most)
        assert len(set(kept.tolist())) == len(kept)
        assert set(kept.tolist()) <= set(own.tolist())
        if count > most > 1:
            gaps = np.diff(np.searchsorted(own, kept))
            assert gaps.max() - gaps.min() <= 1
            assert count - np.searchsorted(own, kept[-1]) <= gaps.max() + 1


@pytest.mark.parametrize("phase", ["train", "test"])
def test_a_protocol_without_windows_is_refused(phase: str) -> None:
    empty = SPLIT._replace(**{phase: np.zeros_like(SPLIT.train)})
    with pytest.raises(UserError, match=f"toy: the protocol leaves no {phase} window"):
        build(TRACES, empty, toy.SHAPE)


RAGGED = Planted(
    users=6, videos=5, duration_s=16.0, duration_power=0.5, min_duration_s=3.0, sessions_power=0.3
)


def both(settings: Planted | Synthetic, protocol: Protocol, client: str) -> tuple[Federation, Federation]:
    """The same federation with its traces stored, and with traces that are generated."""
    feds = []
    for stored in (True, False):
        traces = generate(replace(settings, stored=stored))
        feds.append(build(traces, split(traces, protocol), toy.SHAPE, client))
    return feds[0], feds[1]


@pytest.mark.parametrize("client", ["session", "user"])
@pytest.mark.parametrize("protocol", [WithinSession, UnseenUsers, UnseenBoth])
def test_a_federation_that_stores_no_traces_has_the_same_windows(
    protocol: type[Protocol], client: str
) -> None:
    kept, made = both(RAGGED, protocol(history_s=0.8, horizon_s=0.6, start_s=1.0), client)
    assert made.arrays.direction.size == 0
    for a, b in zip(kept.arrays.bags, made.arrays.bags, strict=True):
        np.testing.assert_array_equal(a, b)
    assert kept.labels.keys() == made.labels.keys()
    for name, code in kept.labels.items():
        np.testing.assert_array_equal(code, made.labels[name])
    sessions = jnp.arange(kept.num_sessions)
    for phase in ("train", "valid", "adapt", "test"):
        a, b = (getattr(fed.arrays, phase) for fed in (kept, made))
        np.testing.assert_array_equal(a.count, b.count)
        for x, y, count in zip(a.of(sessions), b.of(sessions), np.asarray(a.count), strict=True):
            np.testing.assert_array_equal(x[:count], y[:count])
    assert (kept.max_windows, kept.max_sessions) == (made.max_windows, made.max_sessions)


@pytest.mark.parametrize(
    "settings", [replace(RAGGED, iid=True), Synthetic(users=3, videos=4, duration_s=12.0)]
)
def test_generated_traces_are_those_that_would_be_stored(settings: Planted | Synthetic) -> None:
    kept, made = both(settings, WithinSession(history_s=0.8, horizon_s=0.6, start_s=1.0), "session")
    session = jnp.asarray([0, 5, 5, 9])
    now = kept.arrays.train.at(session, jnp.asarray([0, 1, 0, 2]))
    for fed in (kept, made):
        traces, row = traces_of(fed.arrays, session)
        assert traces.direction.shape[0] == (4 if fed is made else kept.num_sessions)
        assert row.shape == session.shape
    found = [gather(fed.arrays, toy.SHAPE, session, now) for fed in (kept, made)]
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(found[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("most", [0, 3, 5, 99])
def test_a_sample_of_the_tested_sessions_is_measured(most: int) -> None:
    fed = toy.federation()
    some = sampled(fed, most)
    tested, kept = (np.flatnonzero(np.asarray(x.arrays.test.count)) for x in (fed, some))
    assert len(kept) == min(most or 99, len(tested))
    assert set(kept) <= set(tested)
    np.testing.assert_array_equal(some.arrays.test.count[kept], fed.arrays.test.count[kept])
    if len(kept) < len(tested):
        assert np.diff(np.searchsorted(tested, kept)).max() <= -(-len(tested) // most)
    np.testing.assert_array_equal(some.arrays.train.count, fed.arrays.train.count)
