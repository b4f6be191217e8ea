"""Batches: passes that visit every window once, draws that never leave the client, ragged amounts of work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from fedjax_vp.federated import batches
from fedjax_vp.federated.federation import Federation
from fedjax_vp.federated.settings import Local

TRACES = toy.traces()
SPLIT = toy.split(TRACES, empty=(2, 7))


@pytest.fixture(scope="module")
def by_user() -> Federation:
    return toy.federation(client="user", empty=(2, 7))


def own_windows(fed: Federation, client: int) -> set[tuple[int, int]]:
    """Pairs (session, now) of a client's training windows, from the bag and the mask."""
    first = np.asarray(fed.arrays.bags.first)
    members = np.asarray(fed.arrays.bags.session)[first[client] : first[client + 1]]
    return {(int(s), int(k)) for s in members for k in np.flatnonzero(SPLIT.train[s])}


@cache
def worker(fed: Federation, settings: Local, mixed: bool) -> Callable[[jax.Array], tuple]:
    """Compiled plan and batches of any client."""
    clients = jnp.arange(fed.num_clients)
    per_pass = jax.vmap(lambda c: batches.steps_of_pass(settings, fed, fed.arrays, c, mixed))(clients)
    most = int(batches.num_steps(settings, per_pass).max())
    size = batches.batch_size(settings, fed)

    @jax.jit
    def run(client: jax.Array) -> tuple:
        plan = batches.plan(jax.random.key(5), settings, fed, fed.arrays, client, mixed)
        draw = jax.vmap(lambda i: batches.draw(plan, i, size, fed, fed.arrays, client, mixed))  # over steps
        return plan.steps, draw(jnp.arange(most))

    return run


def work(fed: Federation, settings: Local, client: int, mixed: bool) -> list[batches.Batch]:
    """All batches of a client in a round."""
    steps, stacked = jax.device_get(worker(fed, settings, mixed)(jnp.int32(client)))
    return [batches.Batch(*(x[i] for x in stacked)) for i in range(int(steps))]


def counted(some: list[batches.Batch]) -> Counter:
    """How often each window counts."""
    return Counter(
        (int(s), int(k)) for b in some for s, k, w in zip(b.session, b.now, b.weight, strict=True) if w > 0
    )


@pytest.mark.parametrize("batch", [4, 7, 1000, 0])
def test_a_pass_visits_every_window_once(by_user: Federation, batch: int) -> None:
    """Two passes: twice, and each pass is whole in itself though the batches do not divide it."""
    settings = Local(batch=batch, epochs=2.0) if batch else Local(batch=0, steps=2)
    for client in range(by_user.num_clients):
        own = own_windows(by_user, client)
        some = work(by_user, settings, client, mixed=True)
        size = batch or by_user.max_windows
        per_pass = -(-len(own) // size)
        assert len(some) == 2 * per_pass
        for part in (some[:per_pass], some[per_pass:]):
            assert counted(part) == Counter(own)


@pytest.mark.parametrize("batch", [4, 7, 0])
def test_an_unmixed_pass_visits_every_window_once_session_by_session(by_user: Federation, batch: int) -> None:
    """Each batch is of one session, whose windows stand together in the pass; sessions change their order."""
    settings = Local(batch=batch, epochs=3.0) if batch else Local(batch=0, steps=3)
    orders = set()
    for client in range(by_user.num_clients):
        own = own_windows(by_user, client)
        some = work(by_user, settings, client, mixed=False)
        size = batch or by_user.max_windows
        sessions = Counter(s for s, _ in own)
        per_pass = sum(-(-n // size) for n in sessions.values())
        assert len(some) == 3 * per_pass
        for part in (some[k : k + per_pass] for k in range(0, len(some), per_pass)):
            assert counted(part) == Counter(own)
            assert all(len(set(b.session.tolist())) == 1 for b in part)
            seen = list(dict.fromkeys(int(b.session[0]) for b in part))
            wanted = [s for s in seen for _ in range(-(-sessions[s] // size))]
            assert [int(b.session[0]) for b in part] == wanted
            orders.add((client, tuple(seen)))
    assert len(orders) > by_user.num_clients


def test_every_pass_has_an_order_of_its_own(by_user: Federation) -> None:
    some = work(by_user, Local(batch=4, epochs=2.0), 0, mixed=True)
    half = len(some) // 2
    assert [b.now.tolist() for b in some[:half]] != [b.now.tolist() for b in some[half:]]


@pytest.mark.parametrize(("epochs", "passes"), [(0.5, 0.5), (1.5, 1.5), (0.01, None)])
def test_parts_of_a_pass(by_user: Federation, epochs: float, passes: float | None) -> None:
    """A part of a pass visits nothing twice, and every client takes at least one step."""
    some = work(by_user, Local(batch=4, epochs=epochs), 1, mixed=True)
    own = own_windows(by_user, 1)
    per_pass = -(-len(own) // 4)
    assert len(some) == (max(round(passes * per_pass), 1) if passes else 1)
    if epochs < 1:
        assert max(counted(some).values()) == 1
    else:
        assert set(counted(some)) == own


@pytest.mark.parametrize("mixed", [True, False])
def test_free_draws_stay_within_the_client_and_reach_all_of_it(by_user: Federation, mixed: bool) -> None:
    for client in range(by_user.num_clients):
        some = work(by_user, Local(batch=16, steps=40), client, mixed)
        assert len(some) == 40
        seen = counted(some)
        assert sum(seen.values()) == 40 * 16
        assert set(seen) == own_windows(by_user, client)


def test_an_unmixed_batch_is_of_one_session_and_says_which(by_user: Federation) -> None:
    first, session = (np.asarray(x) for x in (by_user.arrays.bags.first, by_user.arrays.bags.session))
    for client in range(by_user.num_clients):
        slots = set()
        for batch in work(by_user, Local(batch=8, steps=30), client, mixed=False):
            assert len(set(batch.session.tolist())) == 1
            assert session[first[client] + int(batch.slot)] == batch.session[0]
            slots.add(int(batch.slot))
        assert slots == set(range(first[client + 1] - first[client]))


def test_sessions_are_drawn_by_their_windows(by_user: Federation) -> None:
    """Longer sessions give more batches, so that every window is as likely as any other."""
    some = work(by_user, Local(batch=1, steps=3000), 0, mixed=False)
    own = own_windows(by_user, 0)
    for session in {s for s, _ in own}:
        share = sum(s == session for s, _ in own) / len(own)
        found = np.mean([int(b.session[0]) == session for b in some])
        assert found == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / 3000))


def test_work_without_windows_is_no_step(by_user: Federation) -> None:
    for settings in (Local(steps=5), Local(epochs=2.0), Local(batch=0)):
        assert int(batches.num_steps(settings, jnp.int32(0))) == 0


def test_work_grows_with_a_clients_windows_in_epochs_only(by_user: Federation) -> None:
    cases = (
        (Local(steps=6, batch=4), [6, 6, 6, 6]),
        (Local(epochs=3.0, batch=4), [3, 3, 6, 15]),
        (Local(steps=2, batch=0), [2, 2, 2, 2]),
    )
    for settings, wanted in cases:
        size = batches.batch_size(settings, by_user)
        found = [int(batches.num_steps(settings, jnp.int32(-(-n // size)))) for n in (1, 4, 5, 20)]
        assert found == wanted


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize(
    "settings", [Local(batch=4, steps=9), Local(batch=4, epochs=1.0)], ids=["free", "order"]
)
def test_members_of_large_bags_are_those_of_small_ones(
    by_user: Federation, settings: Local, mixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [work(by_user, settings, client, mixed) for client in range(by_user.num_clients)]
    monkeypatch.setattr(batches, "_FEW", 0)
    worker.cache_clear()
    again = [work(by_user, settings, client, mixed) for client in range(by_user.num_clients)]
    worker.cache_clear()
    assert sum(map(len, found)) > by_user.num_clients
    for few, many in zip(found, again, strict=True):
        for a, b in zip(few, many, strict=True):
            jax.tree.map(np.testing.assert_array_equal, a, b)
