"""Similarity of updates, their sketches, and scores of groupings, against formulas written out."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_vp.federated.grouping import scores, similarity
from fedjax_vp.federated.grouping.labels import best_overlap, contingency, renumber
from fedjax_vp.federated.grouping.sketch import _width, signs, sketch

SHAPES = {"a/kernel": (30, 64), "b/bias": (64,), "c/kernel": (64, 75)}


def test_cosine_is_the_released_formula() -> None:
    rng = np.random.default_rng(0)
    updates = rng.standard_normal((7, 300)) * np.logspace(-8, 2, 7)[:, None]
    updates[3] = 0
    norm = np.sqrt((updates**2).sum(axis=1))
    wanted = [
        [a @ b / (na * nb + 1e-12) for b, nb in zip(updates, norm, strict=True)]
        for a, na in zip(updates, norm, strict=True)
    ]
    found = similarity.cosine(updates)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    np.testing.assert_array_equal(found, found.T)
    assert not found[3].any()
    np.testing.assert_allclose(similarity.cosine_to(updates, updates[:2]), np.array(wanted)[:, :2], atol=2e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_cosine_of_none_and_one(count: int) -> None:
    found = similarity.cosine(np.ones((count, 4)))
    np.testing.assert_allclose(found, np.ones((count, count)), rtol=1e-6)
    assert all(math.isnan(x) for x in similarity.within_between(found, np.zeros(count, np.int32)))


@pytest.mark.parametrize("count", [1, 7, 19])
def test_many_members_have_the_same_products(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(count, 23)).astype(np.float32)
    monkeypatch.setattr(similarity, "_MANY", 0)
    monkeypatch.setattr(similarity, "COLUMNS", 5)
    np.testing.assert_allclose(similarity._products(x), x @ x.T, rtol=1e-5, atol=1e-5)


def test_within_and_between_leave_out_a_member_with_itself() -> None:
    matrix = np.array([[1, 0.8, 0.1], [0.8, 1, -0.3], [0.1, -0.3, 1]])
    found = similarity.within_between(matrix, np.array([0, 0, 1]))
    assert found == pytest.approx((0.8, -0.1, 0.8, 0.1))
    alone = similarity.within_between(matrix, np.arange(3))
    assert math.isnan(alone.within)
    assert alone.most_between == 0.8


def test_silhouette_by_hand() -> None:
    matrix = np.array([[1, 0.8, 0.1], [0.8, 1, -0.3], [0.1, -0.3, 1]])
    wanted = ((0.9 - 0.2) / 0.9 + (1.3 - 0.2) / 1.3 + 0) / 3  # a group of one counts 0
    assert similarity.silhouette(matrix, np.array([0, 0, 1])) == pytest.approx(wanted)
    for labels in ([0, 0, 0], [0, 1, 2]):
        assert math.isnan(similarity.silhouette(matrix, np.array(labels)))
    assert math.isnan(similarity.silhouette(np.ones((0, 0)), np.zeros(0, np.int32)))


def updates_of(kind: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two updates, leaves [2, ...], dense or of little rank or few entries."""
    delta = {name: np.zeros((2, *shape)) for name, shape in SHAPES.items()}
    if kind == "dense":
        delta = {name: rng.standard_normal((2, *shape)) for name, shape in SHAPES.items()}
    if kind == "rank one":
        delta = {
            name: rng.standard_normal((2, *shape[:1], *(1 for _ in shape[1:])))
            * rng.standard_normal((2, *(1 for _ in shape[:-1]), shape[-1]))
            for name, shape in SHAPES.items()
        }
    if kind == "one unit":  # a column of a kernel as wide as the sketch
        delta["a/kernel"][:, :, 5] = rng.standard_normal((2, 30))
    if kind == "one input":
        delta["c/kernel"][:, 3] = rng.standard_normal((2, 75))
    if kind == "sparse":
        delta["c/kernel"][:] = rng.standard_normal((2, 64, 75)) * (rng.random((64, 75)) < 0.02)
    mixed = {name: np.stack([x[0], 0.5 * x[0] + x[1]]) for name, x in delta.items()}
    return {name: x.astype(np.float32) for name, x in mixed.items()}


def flat(delta: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([delta[name].reshape(2, -1) for name in sorted(delta)], axis=1)


@pytest.fixture(scope="module")
def sketches():
    """Sketches of size 64 under 400 seeds."""
    shapes = {name: jnp.zeros((1, *shape)) for name, shape in SHAPES.items()}
    drawn = jax.tree.map(lambda *x: np.stack(x), *(signs(seed, shapes) for seed in range(400)))
    return jax.jit(lambda delta: jax.vmap(lambda one: sketch(delta, 64, one))(drawn))


@pytest.mark.parametrize("kind", ["dense", "rank one", "one unit", "one input", "sparse"])
def test_sketched_products_are_unbiased_and_within_the_bound(kind: str, sketches) -> None:
    delta = updates_of(kind, np.random.default_rng(1))
    x, y = flat(delta)
    found = np.asarray(sketches(delta))
    product = (found[:, 0] * found[:, 1]).sum(axis=1)
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    cosine = x @ y / scale
    bound = math.sqrt((1 + cosine**2) / 64)
    error = product / scale - cosine
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(len(error)) + 1e-6
    assert error.std() < 1.3 * bound
    norms = np.linalg.norm(found, axis=2)
    angle_error = product / (norms[:, 0] * norms[:, 1]) - cosine
    assert np.sqrt((angle_error**2).mean()) < 1.3 / math.sqrt(64)


def test_sketches_are_linear_exact_when_large_and_flat_at_size_zero() -> None:
    delta = updates_of("dense", np.random.default_rng(2))
    jitted = jax.jit(sketch, static_argnums=1)
    one = jitted(delta, 100)
    assert one.shape == (2, 100)
    mixed = jitted({n: np.stack([2 * x[0] - x[1], x[1]]) for n, x in delta.items()}, 100)
    np.testing.assert_allclose(mixed[0], 2 * one[0] - one[1], atol=2e-4)
    whole = np.asarray(jitted(delta, 7000))
    np.testing.assert_allclose(whole @ whole.T, flat(delta) @ flat(delta).T, rtol=1e-4)
    np.testing.assert_array_equal(jitted(delta, 0), flat(delta))


def test_leaves_have_signs_of_their_own() -> None:
    """Equal leaves that fall into the same buckets: with common signs their product would count twice."""
    leaf = jax.random.normal(jax.random.key(3), (1, 32, 32))
    both = {"a": leaf, "b": leaf}
    drawn = jax.tree.map(lambda *x: np.stack(x), *(signs(seed, both) for seed in range(200)))
    found = jax.jit(jax.vmap(lambda one: sketch(both, 32, one)))(drawn)
    assert float((found**2).sum(axis=2).mean()) == pytest.approx(2 * float((leaf**2).sum()), rel=0.1)


def test_rows_share_no_factor_with_strides() -> None:
    assert _width((256, 256), 128) == 127
    assert _width((3, 20, 30), 64) == 61
    assert _width((5,), 64) == 64
    assert _width((500,), 64) == 64
    assert _width((9, 9), 1) == 1


def test_renumber_follows_first_appearance() -> None:
    found = renumber(np.array([7, -2, 7, 3]))
    assert found.tolist() == [0, 1, 0, 2]
    assert found.dtype == np.int32
    assert renumber(np.zeros(0, np.int64)).shape == (0,)


def test_contingency_counts_shared_members() -> None:
    assert contingency(np.array([0, 0, 1, 1]), np.array([4, 4, 4, 2])).tolist() == [[2, 0], [1, 1]]


def test_scores_against_known_values() -> None:
    truth = np.array([0, 0, 0, 1, 1, 1])
    found = scores.score(np.array([0, 0, 1, 1, 2, 2]), truth)
    # Hubert and Arabie: (sum of pairs - expected) / (mean of pairs - expected) = (2 - 1.2) / (4.5 - 1.2)
    assert found.ari == pytest.approx(0.8 / 3.3)
    mutual = math.log(2) - math.log(2) / 3
    assert found.nmi == pytest.approx(mutual / ((math.log(3) + math.log(2)) / 2))
    assert found.purity == pytest.approx(5 / 6)
    assert found.num_groups == 3
    unknown = scores.score(np.array([3, 3, -1]), np.array([1, 1, 0]))
    assert (unknown.ari, unknown.num_groups) == (1.0, 1)
    assert math.isnan(scores.score(np.array([-1]), np.array([0])).ari)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.permutations(range(4)))
def test_renamed_groups_do_not_churn(labels: list[int], names: list[int]) -> None:
    before = np.array(labels)
    after = np.array(names)[before]
    assert scores.churn(before, after) == 0
    assert scores.score(after, before).ari == 1
    assert best_overlap(before, after) == len(labels)


def test_churn_counts_movers_after_the_best_matching() -> None:
    assert scores.churn(np.array([0, 0, 0, 1, 1]), np.array([1, 1, 0, 0, 0])) == pytest.approx(0.2)
    assert scores.churn(np.array([0, 0, -1]), np.array([2, 1, 1])) == pytest.approx(0.5)
    assert math.isnan(scores.churn(np.zeros(0, np.int32), np.zeros(0, np.int32)))


def test_sizes_are_sorted() -> None:
    assert scores.sizes(np.array([5, 1, 1, -1, 5, 5])).tolist() == [3, 2]
    assert scores.sizes(np.array([-1])).tolist() == []
