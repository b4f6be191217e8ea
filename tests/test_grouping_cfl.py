"""Clustered federated learning: the bipartition, the three tests, the tree, and planted clients recovered."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from fedjax_vp.federated.grouping import split_tree
from fedjax_vp.federated.grouping.cfl import Members, SplitRule, advance, should_split
from fedjax_vp.federated.grouping.labels import renumber
from fedjax_vp.federated.grouping.linkage import agglomerate, bipartition
from fedjax_vp.federated.grouping.scores import score
from fedjax_vp.federated.grouping.similarity import cosine


@pytest.fixture(scope="module")
def planted() -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "cfl_planted.py"
    spec = importlib.util.spec_from_file_location("cfl_planted", path)
    assert spec
    assert spec.loader
    module = sys.modules["cfl_planted"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_similarity(seed: int, count: int, ties: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    matrix = rng.uniform(-1, 1, (count, count))
    matrix = np.round(np.triu(matrix, 1), 1 if ties else 12)
    return matrix + matrix.T + np.eye(count)


def cross_max(similarity: np.ndarray, labels: np.ndarray) -> float:
    return float(similarity[np.ix_(labels == 0, labels == 1)].max())


def least_cross_max(similarity: np.ndarray) -> float:
    """The argmin of the paper over all bipartitions, by trying them."""
    count = len(similarity)
    others = itertools.product((0, 1), repeat=count - 1)
    return min(cross_max(similarity, np.array([0, *rest])) for rest in others if any(rest))


@given(st.integers(0, 10_000), st.integers(2, 8), st.booleans())
def test_single_linkage_attains_the_least_cross_similarity(seed: int, count: int, ties: bool) -> None:
    similarity = random_similarity(seed, count, ties)
    labels, alpha = bipartition(similarity, "single")
    assert set(labels.tolist()) == {0, 1}
    assert alpha == cross_max(similarity, labels) == least_cross_max(similarity)


def test_complete_linkage_may_miss_it() -> None:
    missed = [
        bipartition(s, "complete")[1] > least_cross_max(s)
        for s in map(random_similarity, range(20), [6] * 20)
    ]
    assert any(missed)


def paper_algorithm_1(similarity: np.ndarray) -> np.ndarray:
    """Sattler et al., Algorithm 1: merges the sets of the most similar pairs until two are left."""
    sets = [{i} for i in range(len(similarity))]
    pairs = itertools.combinations(range(len(similarity)), 2)
    for i, j in sorted(pairs, key=lambda pair: -similarity[pair]):
        if len(sets) == 2:
            break
        a, b = (next(s for s in sets if k in s) for k in (i, j))
        if a is not b:
            sets = [s for s in sets if s is not a and s is not b] + [a | b]
    return renumber(np.array([next(n for n, s in enumerate(sets) if i in s) for i in range(len(similarity))]))


@pytest.mark.parametrize("linkage", ["single", "complete"])
@pytest.mark.parametrize("seed", range(5))
def test_bipartition_agrees_with_scipy_scikit_learn_and_the_paper(linkage: str, seed: int) -> None:
    from sklearn.cluster import AgglomerativeClustering

    similarity = random_similarity(seed, 15)
    labels, _ = bipartition(similarity, linkage)
    tree = hierarchy.linkage(squareform(1 - similarity, checks=False), linkage)
    assert labels.tolist() == renumber(hierarchy.fcluster(tree, 2, "maxclust")).tolist()
    released = AgglomerativeClustering(n_clusters=2, metric="precomputed", linkage=linkage)
    assert labels.tolist() == renumber(released.fit_predict(1 - similarity)).tolist()
    if linkage == "single":
        assert labels.tolist() == paper_algorithm_1(similarity).tolist()


def test_bipartition_of_none_and_one_member() -> None:
    for count in (0, 1):
        labels, alpha = bipartition(np.eye(count), "single")
        assert labels.tolist() == [0] * count
        assert labels.dtype == np.int32
        assert alpha == 1.0


def test_agglomeration_with_equal_distances_leaves_the_groups_asked_for() -> None:
    same = 1 - np.eye(6)
    assert [agglomerate(same, "single", num_groups=k).max() + 1 for k in (1, 2, 5, 6, 9)] == [1, 2, 5, 6, 6]
    assert agglomerate(same, "single", threshold=1.0).tolist() == list(range(6)), "merged only while nearer"
    assert agglomerate(same, "single", threshold=1.01).tolist() == [0] * 6


UPDATES = np.array([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [-0.9, -0.1]])
RULE = SplitRule(eps1=0.1, eps2=0.5, gamma_max=0.5, min_size=2, linkage="single", min_round=3)


def test_the_three_tests_each_forbid_a_split() -> None:
    ones = np.ones(4)
    verdict = should_split(UPDATES, ones, RULE, 4)
    assert verdict.split
    assert verdict.labels.tolist() == [0, 0, 1, 1]
    assert verdict.mean_norm == pytest.approx(0)
    assert verdict.max_norm == pytest.approx(1)
    assert verdict.alpha_cross_max == pytest.approx(-0.9 / np.hypot(0.9, 0.1))
    assert not should_split(UPDATES, np.array([9.0, 1, 1, 1]), RULE, 4).split, "(1): the weighted mean moves"
    assert not should_split(UPDATES, ones, replace(RULE, eps2=1.1), 4).split, "(2)"
    assert not should_split(UPDATES, ones, replace(RULE, gamma_max=0.999), 4).split, "(3)"
    assert should_split(UPDATES, ones, replace(RULE, gamma_max=1.0), 4).split, "(3) left out"
    assert not should_split(UPDATES, ones, RULE, 3).split, "too early"
    assert not should_split(UPDATES, ones, replace(RULE, min_size=5), 4).split, "too few members"
    for count in (0, 1):
        assert not should_split(UPDATES[:count], ones[:count], replace(RULE, min_size=0, eps1=9.0), 4).split


def test_scaled_rule_follows_the_size_of_the_updates() -> None:
    rule = RULE.scaled(10.0)
    assert (rule.eps1, rule.eps2) == (1.0, 5.0)
    assert should_split(10 * UPDATES, np.ones(4), rule, 4).split
    assert not should_split(UPDATES, np.ones(4), rule, 4).split


def split_once(kept: int = 4) -> tuple[split_tree.Tree, np.ndarray]:
    models = {"w": np.arange(6.0, dtype=np.float32).reshape(3, 2)}
    tree = split_tree.empty(2, kept, 2, {"w": (2,)})
    members = Members(np.array([0, 0, 0, 0, -1], np.int32), np.vstack([UPDATES, [[5.0, 5.0]]]), np.ones(5))
    found = advance(tree, members, RULE, 4, [2, 1], models)
    assert found.copied == {2: 0}
    assert tree.count == 0, "the tree before stays as it was"
    assert members.row.tolist() == [0, 0, 0, 0, -1]
    return found.tree, found.row


def test_advance_splits_into_the_next_free_row_and_keeps_what_it_saw() -> None:
    tree, row = split_once()
    assert row.tolist() == [0, 0, 2, 2, -1]
    assert (tree.count, tree.free) == (1, 1)
    assert (tree.row[0], tree.new[0], tree.round[0], tree.size[0]) == (0, 2, 4, 4)
    assert tree.member[0].tolist() == [0, 1, 2, 3]
    assert tree.side[0].tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(tree.update[0], UPDATES.astype(np.float32))
    assert tree.model["w"].tolist() == [[0, 1], [0, 0]], "the divided row's model"
    assert tree.alpha_cross_max[0] == pytest.approx(-0.9 / np.hypot(0.9, 0.1))


def test_no_split_without_a_free_row_or_a_place_in_the_tree() -> None:
    members = Members(np.zeros(4, np.int32), UPDATES, np.ones(4))
    models = {"w": np.zeros((2, 2), np.float32)}
    for tree, free in ((split_tree.empty(1, 4, 2, {"w": (2,)}), []), (split_tree.empty(0, 4, 2, {}), [1])):
        found = advance(tree, members, RULE, 4, free, models)
        assert found.verdicts[0].split
        assert found.row.tolist() == [0] * 4
        assert not found.copied


def test_a_full_tree_refuses_and_a_small_one_keeps_members_of_both_sides() -> None:
    tree, _ = split_once(kept=2)
    assert sorted(tree.side[0].tolist()) == [0, 1]
    assert tree.size[0] == 4
    side = np.array([0] * 99 + [1])
    full = split_tree.record(
        tree, (0, 1), 9, (0.0, 0.0, 0.0), (np.arange(100), side), np.ones((100, 2)), {"w": np.ones((1, 2))}
    )
    assert set(full.side[1].tolist()) == {0, 1}
    with pytest.raises(ValueError, match="2 splits already"):
        split_tree.record(full, (0, 1), 9, (0.0, 0.0, 0.0), (np.arange(2), side[-2:]), np.ones((2, 2)), {})


def test_tree_survives_as_plain_arrays(tmp_path: Path) -> None:
    tree, _ = split_once()
    np.savez(tmp_path / "tree.npz", allow_pickle=False, **split_tree.to_arrays(tree))
    with np.load(tmp_path / "tree.npz", allow_pickle=False) as stored:
        back = split_tree.from_arrays(dict(stored))
    for name in tree._fields[:-1]:
        np.testing.assert_array_equal(getattr(back, name), getattr(tree, name))
        assert getattr(back, name).dtype == getattr(tree, name).dtype
    np.testing.assert_array_equal(back.model["w"], tree.model["w"])
    shapes = {k: v.shape for k, v in split_tree.to_arrays(split_tree.empty(2, 4, 2, {"w": (2,)})).items()}
    assert shapes == {k: v.shape for k, v in split_tree.to_arrays(tree).items()}, "fixed capacity"


def test_newcomers_are_led_by_their_update_at_each_split() -> None:
    tree, _ = split_once()
    north, south = UPDATES[0, ::-1], UPDATES[2, ::-1]
    side = np.array([0, 1])
    tree = split_tree.record(
        tree,
        (2, 1),
        8,
        (0.0, 0.0, 0.0),
        (np.array([2, 3]), side),
        np.array([north] * 3 + [south]),
        {"w": np.ones((3, 2))},
    )
    east, west = UPDATES[0], UPDATES[2]
    newcomers = np.array([[east, south], [west, north], [west, south], [east, north]])
    start = np.zeros(4, np.int32)
    assert split_tree.route(tree, newcomers, start).tolist() == [0, 2, 1, 0]
    assert split_tree.route(tree, newcomers[:, :1], start).tolist() == [0, 2, 2, 0], (
        "one update for all splits"
    )
    assert split_tree.route(tree, newcomers[:3], np.array([7, 2, 2])).tolist() == [7, 2, 1], "other roots"
    assert split_tree.route(tree, newcomers[:0], start[:0]).tolist() == []


def test_two_groups_without_noise_have_similarity_one_and_minus_one() -> None:
    """k = 2 and gamma = 0 in the separation theorem: mean estimation at the common optimum."""
    rng = np.random.default_rng(0)
    group = np.arange(10) % 2
    truth = rng.standard_normal((2, 30))[group]
    model = truth.mean(axis=0)
    updates = 0.3 * (truth - model)
    expected = np.where(group[:, None] == group[None, :], 1.0, -1.0)
    np.testing.assert_allclose(cosine(updates), expected, atol=1e-6)
    verdict = should_split(updates, np.ones(10), replace(RULE, gamma_max=0.99), 4)
    assert verdict.split
    assert verdict.labels.tolist() == renumber(group).tolist()
    assert verdict.alpha_cross_max == pytest.approx(-1, abs=1e-6)


def check_recovery(planted: ModuleType, seeds: range) -> None:
    for seed, groups, linkage in itertools.product(seeds, (1, 2, 4), ("single", "complete")):
        clients = planted.plant(groups, seed)
        run = planted.train(clients, replace(planted.RULE, linkage=linkage), rounds=25)
        found = score(run.row, clients.truth)
        assert (found.ari, found.num_groups) == (1.0, groups), (seed, groups, linkage)
        assert run.tree.count == groups - 1


def test_planted_groups_are_recovered_and_iid_clients_stay_together(planted: ModuleType) -> None:
    check_recovery(planted, range(2))


@pytest.mark.slow
def test_planted_groups_are_recovered_over_20_seeds(planted: ModuleType) -> None:
    check_recovery(planted, range(20))


def test_newcomers_find_their_planted_group(planted: ModuleType) -> None:
    clients = planted.plant(4, 7, 40)
    old, new = (planted.Clients(*(x[half] for x in clients)) for half in (slice(20), slice(20, None)))
    run = planted.train(old, rounds=25)
    labels = np.concatenate([run.row, planted.lead_newcomers(run, new)])
    assert renumber(labels).tolist() == renumber(clients.truth).tolist()


def test_a_rule_that_asks_for_less_splits_iid_clients(planted: ModuleType) -> None:
    """Negative control: it is eps2 that keeps IID clients together."""
    rule = replace(planted.RULE, eps2=1e-4)
    assert planted.train(planted.plant(1, 0), rule, rounds=25).tree.count > 0
