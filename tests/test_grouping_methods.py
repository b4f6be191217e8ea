"""k-means, FedGroup, FL+HC, PACFL, FedDrift, soft memberships and oracles, against their formulas."""

from __future__ import annotations

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.metrics.pairwise import cosine_similarity

from fedjax_vp.errors import UserError
from fedjax_vp.federated.grouping import (
    drift,
    fedgroup,
    hierarchical,
    kmeans,
    pacfl,
    soft,
    trajectories,
)
from fedjax_vp.federated.grouping.similarity import cosine

RNG = np.random.default_rng


def blobs(
    seed: int, groups: int = 3, each: int = 8, size: int = 12, noise: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Rows around unit directions, and the group of each, by first appearance."""
    rng = RNG(seed)
    center = np.linalg.qr(rng.standard_normal((size, groups)))[0].T
    truth = np.repeat(np.arange(groups), each)
    return center[truth] + noise / math.sqrt(size) * rng.standard_normal((len(truth), size)), truth.astype(
        np.int32
    )


def test_kmeans_is_as_good_as_scikit_learns() -> None:
    for seed in range(5):
        rows, weights = RNG(seed).standard_normal((60, 3)), RNG(seed + 99).uniform(0.5, 2, 60)
        found = kmeans.fit(rows, 4, 0, weights)
        theirs = KMeans(4, n_init=10, random_state=0).fit(rows, sample_weight=weights)
        assert found.inertia < 1.03 * theirs.inertia_
        square = ((rows - found.centers[found.labels]) ** 2).sum(axis=1)
        assert found.inertia == pytest.approx((weights * square).sum())
        for group in range(4):
            mine = found.labels == group
            np.testing.assert_allclose(
                found.centers[group], np.average(rows[mine], axis=0, weights=weights[mine])
            )


def test_spherical_kmeans_sees_directions_only() -> None:
    rows, truth = blobs(0)
    found = kmeans.fit(rows * RNG(1).uniform(0.01, 100, (24, 1)), 3, 0, spherical=True)
    assert found.labels.tolist() == truth.tolist()
    np.testing.assert_allclose(np.linalg.norm(found.centers, axis=1), 1)
    assert found.inertia < kmeans.fit(rows[:, ::-1] * 3, 3, 0).inertia


def test_kmeans_of_few_equal_and_no_rows() -> None:
    assert kmeans.fit(np.zeros((0, 3)), 4, 0).centers.shape == (0, 3)
    assert kmeans.fit(np.ones((1, 3)), 4, 0).labels.tolist() == [0]
    assert kmeans.fit(np.ones((5, 3)), 4, 0).centers.shape == (1, 3)
    two = kmeans.fit(np.array([[0.0], [1.0], [0.0]]), 4, 0)
    assert two.labels.tolist() == [0, 1, 0]
    assert two.inertia == 0
    assert kmeans.fit(np.zeros((2, 3)), 2, 0, spherical=True).labels.tolist() == [0, 0]


def test_kmeans_repeats_and_labels_follow_first_appearance() -> None:
    rows = RNG(3).standard_normal((40, 2))
    one, two = kmeans.fit(rows, 5, 7), kmeans.fit(rows, 5, 7)
    np.testing.assert_array_equal(one.labels, two.labels)
    assert one.labels.dtype == np.int32
    _, first = np.unique(one.labels, return_index=True)
    assert first.tolist() == sorted(first.tolist())


def test_an_empty_group_restarts_from_the_worst_served_row() -> None:
    rows = np.array([[100.0], [100.1], [110.0]])
    (labels,), (inertia,) = kmeans._lloyd(rows, np.ones(3), np.array([[[100.0], [999.0]]]), spherical=False)
    assert labels[2] != labels[0]
    assert inertia == pytest.approx(0.005)


def test_rows_are_assigned_to_the_nearest_center() -> None:
    rows, centers = (
        RNG(0).standard_normal((50, 4)).astype(np.float32),
        RNG(1).standard_normal((3, 4)).astype(np.float32),
    )
    wanted = ((rows[:, None] - centers[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert kmeans.assign(jnp.asarray(rows), jnp.asarray(centers)).tolist() == wanted.tolist()


def test_edc_is_the_released_construction() -> None:
    updates = RNG(0).standard_normal((9, 40))
    directions = TruncatedSVD(3, algorithm="arpack").fit_transform(updates.T)  # d x k, as FlexCFL does
    wanted = cosine_similarity(updates, directions.T)
    found = fedgroup.edc(updates, 3)
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-6)
    apart = [np.linalg.norm(x[:, None] - x[None], axis=2) for x in (found, wanted)]
    np.testing.assert_allclose(*apart, atol=1e-6)
    assert fedgroup.edc(updates[:2], 3).shape == (2, 3)


def test_madc_leaves_out_the_pair_itself() -> None:
    matrix = cosine(RNG(0).standard_normal((6, 10)))
    found = fedgroup.madc(matrix)
    for i, j in itertools.combinations(range(6), 2):
        others = [k for k in range(6) if k not in (i, j)]
        assert found[i, j] == pytest.approx(np.abs(matrix[i, others] - matrix[j, others]).mean(), abs=1e-6)
    np.testing.assert_array_equal(found, found.T)
    assert not fedgroup.madc(np.ones((2, 2))).any()


@pytest.mark.parametrize("measure", ["edc", "madc"])
def test_cold_start_finds_groups_and_places_newcomers(measure: str) -> None:
    updates, truth = blobs(4)
    start = fedgroup.cold_start(updates, 3, 0, measure)
    assert start.labels.tolist() == truth.tolist()
    np.testing.assert_allclose(start.centers[1], updates[truth == 1].mean(axis=0))
    late = 5 * updates + 0.01
    assert fedgroup.newcomers(late, start.centers).tolist() == truth.tolist()
    for count in (0, 1):
        assert fedgroup.cold_start(updates[:count], 3, 0, measure).labels.tolist() == [0] * count


def test_inter_group_aggregation_is_the_papers_formula() -> None:
    rows = RNG(0).standard_normal((4, 5))
    rows[2] = 0  # not in use
    active, eta = np.array([True, True, False, True]), 0.1
    found = fedgroup.inter_group(
        {"a": jnp.asarray(rows[:, :3], jnp.float32), "b": jnp.asarray(rows[:, 3:], jnp.float32)},
        jnp.asarray(active),
        eta,
    )
    norm = np.linalg.norm(rows, axis=1)
    for g in range(4):
        others = [h for h in range(4) if h != g and active[h]] if active[g] else []
        wanted = (rows[g] + eta * sum((rows[h] / norm[h] for h in others), np.zeros(5))) / (
            1 + eta * sum(1 / norm[h] for h in others)
        )
        np.testing.assert_allclose(np.concatenate([found["a"][g], found["b"][g]]), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("metric", "linkage"), [("l1", "single"), ("l2", "ward"), ("l2", "complete"), ("cosine", "average")]
)
def test_one_shot_hierarchical_clustering(metric: str, linkage: str) -> None:
    updates, truth = blobs(5)
    assert hierarchical.fit(updates, metric, linkage, num_groups=3).tolist() == truth.tolist()
    apart = hierarchical.distances(updates, metric)
    same = truth[:, None] == truth[None, :]
    threshold = (apart[same].max() + apart[~same].min()) / 2
    assert hierarchical.fit(updates, metric, linkage, threshold).tolist() == truth.tolist()
    for count in (0, 1):
        assert hierarchical.fit(updates[:count], metric, linkage, 1.0).tolist() == [0] * count


def test_distances_of_updates() -> None:
    a, b = np.array([3.0, 0.0]), np.array([0.0, 4.0])
    wanted = {"l1": 7.0, "l2": 5.0, "cosine": 1.0}
    for metric, value in wanted.items():
        assert hierarchical.distances(np.stack([a, b]), metric)[0, 1] == pytest.approx(value)


def test_ward_wants_euclidean_distances() -> None:
    with pytest.raises(UserError, match="linkage ward wants l2"):
        hierarchical.fit(np.ones((3, 2)), "l1", "ward")


def test_principal_angles_are_those_of_planes() -> None:
    tilt = math.radians(30)
    planes = [np.eye(3)[:2], np.array([[1, 0, 0], [0, math.cos(tilt), math.sin(tilt)]])]
    windows = [RNG(0).standard_normal((50, 2)) @ plane for plane in planes]
    bases = pacfl.subspaces(windows, 2)
    np.testing.assert_allclose(pacfl.angles(bases, bases, "smallest"), np.zeros((2, 2)), atol=1e-5)
    np.testing.assert_allclose(pacfl.angles(bases, bases, "sum"), [[0, 30], [30, 0]], atol=1e-5)
    line = pacfl.subspaces([np.array([[0.0, 0.0, 1.0]])], 2)  # one direction only
    np.testing.assert_allclose(pacfl.angles(line, bases, "sum"), [[180, 150]], atol=1e-5)


def test_basis_is_the_left_singular_vectors() -> None:
    windows = RNG(0).standard_normal((30, 6))
    vectors = np.linalg.svd(windows.T, full_matrices=False)[0][:, :3]
    found = pacfl.subspaces([windows], 3)[0]
    np.testing.assert_allclose(np.abs((vectors * found).sum(axis=0)), np.ones(3), atol=1e-9)


def test_pacfl_groups_members_and_places_newcomers() -> None:
    rng = RNG(1)
    spans = [np.linalg.qr(rng.standard_normal((20, 3)))[0].T for _ in range(2)]
    truth = np.array([0, 1, 0, 1, 1, 0])
    windows = [rng.standard_normal((rng.integers(20, 60), 3)) @ spans[g] for g in truth]
    bases = pacfl.subspaces([x + 0.01 * rng.standard_normal(x.shape) for x in windows], 3)
    assert pacfl.fit(bases, threshold=10.0).tolist() == truth.tolist()
    assert pacfl.fit(bases, num_groups=2, angle="sum").tolist() == truth.tolist()
    late = pacfl.subspaces([rng.standard_normal((9, 3)) @ spans[1], rng.standard_normal((9, 20))], 3)
    assert pacfl.newcomers(late, bases, truth, threshold=10.0).tolist() == [1, -1]
    nobody = pacfl.subspaces([], 3)
    assert pacfl.fit(nobody, 5.0).tolist() == []
    assert pacfl.newcomers(late, bases[:0], truth[:0]).tolist() == [-1, -1]


def test_drift_isolates_and_merges() -> None:
    before, now = np.array([[1.0, 3.0], [2.0, 1.0]]), np.array([[1.2, 3.0], [2.0, 1.6]])
    assert drift.isolates(jnp.asarray(before), jnp.asarray(now), 0.5).tolist() == [False, True]
    losses = np.array([[1.0, 1.1, 3.0], [1.3, 1.0, 3.0], [4.0, 0.5, 1.0]])
    wanted = np.array([[0, 0.3, 3.0], [0.3, 0, 2.0], [3.0, 2.0, 0]])
    np.testing.assert_allclose(drift.distances(losses), wanted)
    assert drift.merge(losses, 0.4).tolist() == [0, 0, 1]
    assert drift.merge(losses, 0.3).tolist() == [0, 1, 2]
    assert drift.merge(losses, 2.5).tolist() == [0, 0, 1], "complete linkage looks at the farthest pair"
    assert drift.merge(losses[:0, :0], 1.0).tolist() == []


def test_fedsoft_importance_by_hand() -> None:
    losses = jnp.asarray(
        [[0.1, 0.2, 0.3, 9.0], [1.0, 0.1, 0.4, 8.0], [2.0, 1.0, 0.5, 0.0]]
    )  # [model, window]
    won = soft.wins(losses) @ jnp.asarray([1.0, 1.0, 1.0, 0.0]) / 3
    np.testing.assert_allclose(won, [2 / 3, 1 / 3, 0.0], rtol=1e-6)
    found = soft.importance(won[None], 0.1)
    np.testing.assert_allclose(found, np.array([[2 / 3, 1 / 3, 0.1]]) / 1.1, rtol=1e-6)


def viewers(seed: int, groups: int = 3, each: int = 5, times: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Trajectories near a common one for each group, and the groups."""
    rng = RNG(seed)
    truth = np.arange(groups * each) % groups
    yaw = (
        2 * np.pi * truth[:, None] / groups
        + np.linspace(0, 1, times)[None]
        + 0.05 * rng.standard_normal((len(truth), times))
    )
    pitch = 0.05 * rng.standard_normal(yaw.shape)
    return np.stack([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)], axis=-1), truth


def test_distances_of_viewers_are_great_circles() -> None:
    direction = np.eye(3)[[0, 1, 0]][:, None]
    valid = np.array([[True], [True], [False]])
    found = trajectories.distances(direction, valid)
    assert found[0, 1, 0] == pytest.approx(math.pi / 2)
    assert np.isnan(found[0, 2, 0])
    mean = trajectories.mean_distance(found)
    assert mean[0, 2] == pytest.approx(math.pi)
    assert mean[0, 1] == pytest.approx(math.pi / 2)


@pytest.mark.parametrize("seed", range(3))
def test_oracles_find_groups_of_viewers(seed: int) -> None:
    direction, truth = viewers(seed)
    valid = RNG(seed).random(direction.shape[:2]) < 0.9
    assert trajectories.spectral(direction, valid, 3).tolist() == truth.tolist()
    assert trajectories.cliques(direction, valid).tolist() == truth.tolist()


def test_oracles_of_none_and_few() -> None:
    direction, _ = viewers(0)
    valid = np.ones(direction.shape[:2], bool)
    for count in (0, 1, 2):
        assert trajectories.spectral(direction[:count], valid[:count], 2).tolist() == list(range(count))
        assert trajectories.cliques(direction[:count], valid[:count]).tolist() == list(range(count))
    assert trajectories.spectral(direction, valid, 1).tolist() == [0] * 15


def test_cliques_want_the_share_of_time_together() -> None:
    near, far = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    direction = np.stack([np.stack([near] * 10), np.stack([near] * 6 + [far] * 4)])
    valid = np.ones((2, 10), bool)
    assert trajectories.cliques(direction, valid, share=0.6).tolist() == [0, 0]
    assert trajectories.cliques(direction, valid, share=0.7).tolist() == [0, 1]
    valid[0, 6:] = False  # unknown time is not time together, nor does it shorten the chunk
    assert trajectories.cliques(direction, valid, share=0.6).tolist() == [0, 0]
    assert trajectories.cliques(direction, valid, share=0.7).tolist() == [0, 1]


@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.1, 0.95))
def test_largest_clique_is_largest(seed: int, count: int, density: float) -> None:
    joined = np.triu(RNG(seed).random((count, count)) < density, 1)
    joined = joined | joined.T

    def is_clique(members: tuple[int, ...]) -> bool:
        return all(joined[a, b] for a, b in itertools.combinations(members, 2))

    most = max(
        size
        for size in range(1, count + 1)
        if any(map(is_clique, itertools.combinations(range(count), size)))
    )
    found = trajectories.largest_clique(joined)
    assert is_clique(tuple(found))
    assert len(found) == most
