"""Bundles against sums over the leaves one by one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_vp.federated import bundles, hierarchy
from fedjax_vp.federated.bundles import Bundle
from fedjax_vp.federated.settings import Level, Method

SHAPES = {"body/kernel": (4, 3), "body/bias": (3,), "head/kernel": (3, 2), "head/bias": (2,), "scale": ()}
BUNDLE = Bundle(SHAPES, (0,))
TABLE = Bundle({"video_table": (5, 2, 3)}, (0,))
HEAD = Bundle({"head/kernel": (3, 2)}, (0,))
EACH = pytest.mark.parametrize("bundle", [BUNDLE, TABLE, HEAD], ids=["several", "blocks", "one"])


def rows(shapes: dict[str, tuple[int, ...]], count: int = 7) -> dict[str, jax.Array]:
    random = np.random.default_rng(0)
    return {n: jnp.asarray(random.normal(size=(count, *shape)), jnp.float32) for n, shape in shapes.items()}


@EACH
def test_rows_are_joined_and_taken_apart(bundle: Bundle) -> None:
    leaves = rows(dict(bundle.shapes))
    back = bundle.leaves(bundle.joined(leaves))
    assert list(back) == list(leaves)
    for name, value in leaves.items():
        np.testing.assert_array_equal(back[name], value)


@EACH
def test_totals_are_sums_by_leaf_and_of_the_head_by_unit(bundle: Bundle) -> None:
    leaves = rows(dict(bundle.shapes))
    wanted = []
    for name, value in leaves.items():
        units = value.shape[-1] if name.startswith("head/") else 1
        wanted += list(value.reshape(-1, units).sum(axis=0))
    found = bundle.total(bundle.joined(leaves))
    assert found.shape == (1, *bundle.stat_shape)
    np.testing.assert_allclose(found.reshape(-1), wanted, rtol=1e-4, atol=1e-5)


@EACH
def test_a_weight_counts_for_every_number_behind_a_statistic(bundle: Bundle) -> None:
    weight = jnp.asarray(np.random.default_rng(1).random((7, *bundle.weight_shape)), jnp.float32)
    everywhere = jnp.broadcast_to(weight, bundle.joined(rows(dict(bundle.shapes))).shape)
    counted, wanted = bundle.total(weight), bundle.total(everywhere)
    np.testing.assert_allclose(jnp.broadcast_to(counted, wanted.shape), wanted, rtol=1e-5)


def test_statistics_are_spread_to_their_own_numbers() -> None:
    random, rows_ = np.random.default_rng(2), 7
    named = {n: random.random((rows_, *bundles.stat_shape(n, shape))) for n, shape in SHAPES.items()}
    flat = np.concatenate([value.reshape(rows_, -1) for value in named.values()], axis=1)
    spread = BUNDLE.leaves(BUNDLE.spread(jnp.asarray(flat, jnp.float32)))
    for name, value in spread.items():
        np.testing.assert_allclose(value, np.broadcast_to(named[name], value.shape), rtol=1e-6, err_msg=name)
    one = {n: jnp.asarray(value[:1], jnp.float32) for n, value in named.items()}
    np.testing.assert_allclose(BUNDLE.joined(one), flat[:1], rtol=1e-6)


def test_leaves_are_bundled_where_owners_and_weights_agree() -> None:
    levels = (
        Level("global", owns=("*", "!video_*")),
        Level("video", by="video", owns=("video_*",)),
        Level("user", by="user", owns=("head/*",)),
    )
    labels = {"session": np.arange(4), "user": np.arange(4) // 2, "video": np.arange(4) % 2}
    groups = [hierarchy.grouping(labels, level.by) for level in levels]
    shapes = {**SHAPES, "video_table": (5, 2, 3), "video_crowd": (5, 4)}
    layout = hierarchy.layout(Method(levels=levels), groups, list(shapes), np.arange(4))
    found = bundles.bundled(layout, shapes)
    assert {name: (list(b.shapes), b.weight_shape, b.owners) for name, b in found.items()} == {
        "body/bias": (["body/bias", "body/kernel", "scale"], (1,), (0,)),
        "head/bias": (["head/bias", "head/kernel"], (1,), (0, 2)),
        "video_crowd": (["video_crowd"], (5, 1), (1,)),
        "video_table": (["video_table"], (5, 1, 1), (1,)),
    }


def test_what_is_large_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = (Level("global"), Level("user", by="user", owns=("head/*",)))
    labels = {"session": np.arange(100), "user": np.arange(100)}
    groups = [hierarchy.grouping(labels, level.by) for level in levels]
    layout = hierarchy.layout(Method(levels=levels), groups, list(SHAPES), np.arange(100))
    head = sum(int(np.prod(SHAPES[n])) for n in ("head/kernel", "head/bias"))
    for most, sizes in ((100 * head, [3, 2]), (100 * head - 1, [3, 1, 1])):
        monkeypatch.setattr(bundles, "COPIED", most)
        assert [len(bundle.shapes) for bundle in bundles.bundled(layout, SHAPES).values()] == sizes
