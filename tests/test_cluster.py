"""Groups of many units follow from groups of some."""

from __future__ import annotations

import numpy as np
import pytest

from fedjax_vp.federated.grouping import cluster
from fedjax_vp.federated.grouping.scores import score
from fedjax_vp.federated.grouping.settings import ByUpdates, FedGroup, Hierarchical, KMeans


@pytest.mark.parametrize(
    "settings",
    [
        KMeans(groups=3),
        KMeans(groups=3, metric="euclidean"),
        FedGroup(groups=3),
        Hierarchical(groups=3, metric="l2"),
    ],
)
def test_units_beyond_the_fitted_join_the_nearest_group(
    settings: ByUpdates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "MOST_FITTED", 60)
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 500)
    update = (4 * rng.normal(size=(3, 16))[true] + rng.normal(size=(500, 16))).astype(np.float32)
    found = cluster.find(settings, cluster.Evidence(update, np.ones(500, np.float32), true), 0)
    assert score(found, true).ari == 1.0
