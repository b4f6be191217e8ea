"""Who takes part: sizes, no client twice, availability and drop-outs, and draws that follow the client."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from fedjax_vp.federated.participation import Cohort, cohort_size, draw
from fedjax_vp.federated.settings import Availability, Everyone, Participation, Uniform

ROUNDS = 400


def cohorts(settings: Participation, num_clients: int, rounds: int = ROUNDS) -> Cohort:
    """Cohorts of many rounds, [round, cohort]."""
    keys = jax.random.split(jax.random.key(3), rounds)
    return jax.device_get(jax.vmap(lambda key: draw(key, settings, num_clients))(keys))  # over rounds


def test_everyone_is_every_client_once() -> None:
    found = cohorts(Everyone(), 7, 2)
    assert found.client.tolist() == [list(range(7))] * 2
    assert found.invited.all()
    assert found.reports.all()


def test_uniform_draws_without_replacement_and_evenly() -> None:
    found = cohorts(Uniform(clients=5), 12)
    assert found.client.shape == (ROUNDS, 5)
    assert all(len(set(row)) == 5 for row in found.client.tolist())
    share = np.bincount(found.client.reshape(-1), minlength=12) / ROUNDS
    # Five standard deviations of a binomial share.
    np.testing.assert_allclose(share, 5 / 12, atol=5 * np.sqrt(5 / 12 * 7 / 12 / ROUNDS))
    assert found.reports.all()


def test_a_cohort_is_no_larger_than_the_federation() -> None:
    assert cohort_size(Uniform(clients=64), 9) == 9
    assert cohort_size(Availability(clients=64), 9) == 9
    assert cohort_size(Everyone(), 9) == 9
    assert sorted(cohorts(Uniform(clients=64), 9, 1).client[0].tolist()) == list(range(9))


def test_availability_invites_only_clients_that_are_online() -> None:
    found = cohorts(Availability(clients=4, online=0.3, dropout=0.0), 12)
    places = found.invited.sum(axis=1)
    # Binomial(12, 0.3) clients are online: often fewer than the four places, which then stay empty.
    online = np.minimum(np.random.default_rng(0).binomial(12, 0.3, 200_000), 4).mean()
    assert places.mean() == pytest.approx(online, abs=0.2)
    assert places.min() < 4
    assert places.max() == 4
    np.testing.assert_array_equal(found.reports, found.invited)
    for client, invited in zip(found.client, found.invited, strict=True):
        assert len(set(client[invited])) == invited.sum()


def test_dropouts_are_invited_but_do_not_report() -> None:
    found = cohorts(Availability(clients=8, online=1.0, dropout=0.25), 12)
    assert found.invited.all()
    lost = 1 - found.reports.mean()
    assert lost == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / (8 * ROUNDS)))


def test_with_everyone_online_availability_is_uniform() -> None:
    found = cohorts(Availability(clients=5, online=1.0, dropout=0.0), 12)
    share = np.bincount(found.client.reshape(-1), minlength=12) / ROUNDS
    np.testing.assert_allclose(share, 5 / 12, atol=5 * np.sqrt(5 / 12 * 7 / 12 / ROUNDS))
    assert found.reports.all()


def test_draws_depend_on_the_key_alone() -> None:
    settings = Availability(clients=6, online=0.7, dropout=0.2)
    a, b = (draw(jax.random.key(1), settings, 12) for _ in range(2))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    other = draw(jax.random.key(2), settings, 12)
    assert a.client.tolist() != other.client.tolist()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Uniform(clients=0),
        lambda: Availability(online=0.0),
        lambda: Availability(dropout=1.0),
        lambda: Availability(clients=0),
    ],
)
def test_impossible_settings_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="participation"):
        wrong()
