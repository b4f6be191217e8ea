"""Groups found once from the clients' updates, then one model for each.

    theta_i = theta_{g(i)},      g = cluster(D_1, ..., D_N)  after the warm-up                     (1)

`fedgroup`: the cosine of the first updates to their leading singular vectors, then k-means (Duan et al.,
"FedGroup: Efficient Federated Learning via Decomposed Similarity-Based Clustering", ISPA 2021).
`flexcfl`: the same, whose groups move towards each other every round, and whose clients move to the group
that their updates have come to resemble most (Duan et al., "Flexible Clustered Federated Learning for
Client-Level Data Distribution Shift", IEEE TPDS 33(11), 2022):

    w_g <- (w_g + eta sum_{h != g} w_h / |w_h|) / (1 + eta sum_{h != g} 1 / |w_h|)                  (2)

`fl_hc`: agglomerative clustering after some rounds of FedAvg (Briggs, Fan, Andras, "Federated learning with
hierarchical clustering of local updates to improve training on non-IID data", IJCNN 2020). They found L1
distances best; here these find no planted group at all, for updates differ in length, and cosines do.
`pacfl`: groups before any training, from the angles between the subspaces of the clients' windows (Vahidian
et al., "Efficient Distribution Similarity Identification in Clustered Federated Learning via Principal Angles
Between Client Data Subspaces", AAAI 2023).
`update_kmeans`: spherical k-means on sketches of the updates, whose cost does not grow with their length.
"""

from __future__ import annotations

from typing import Any

from fedjax_vp.algorithms.fedavg import FEDAVG
from fedjax_vp.algorithms.recipe import Recipe


def _recipe(name: str, title: str, grouping: dict[str, Any]) -> Recipe:
    return Recipe(name, title, {**FEDAVG.settings, "levels": [{"name": "cluster", "grouping": grouping}]})


FEDGROUP = _recipe(
    "fedgroup", "groups from the decomposed cosine of early updates", {"kind": "fedgroup", "warmup": 10}
)
FLEXCFL = _recipe(
    "flexcfl",
    "fedgroup with clients that migrate and groups that stay in touch",
    {"kind": "fedgroup", "warmup": 10, "every": 20, "migrate": True, "pull": 0.01},
)
FL_HC = _recipe("fl_hc", "groups from agglomerative clustering of updates", {"kind": "hierarchical"})
PACFL = _recipe("pacfl", "groups from principal angles between the clients' windows", {"kind": "pacfl"})
UPDATE_KMEANS = _recipe("update_kmeans", "groups from k-means on sketched updates", {"kind": "kmeans"})
