"""Federations: clients as bags of ragged sessions, windows of each phase, and what is cut out of a trace."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from fedjax_vp.errors import UserError
from fedjax_vp.federated.federation import Federation, build, client_windows, gather, thin

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
        now, count = (np.asarray(x) for x in getattr(fed.arrays, phase))
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
