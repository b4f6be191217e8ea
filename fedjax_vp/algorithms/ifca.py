"""IFCA: K models, and every client trains the one that fits its data best.

    j_i     = argmin_j F_i(theta_j)                  on the client's training windows           (1)
    option I    theta_j <- theta_j - (lr / m) sum_i [j_i = j] grad F_i(theta_j)                 (2)
    option II   theta_j <- weighted mean of the locally trained models of {i : j_i = j}         (3)

Ghosh, Chung, Yin, Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020. The
recipe `ifca` is option II; option I is `levels: {cluster: {denominator: participants}}` with one full-batch
step (`local: {batch: 0, steps: 1}`): (2) divides by all m participants, not by those that chose j. The rows
start as perturbed copies after some rounds of FedAvg, which is the warm start of the paper's FEMNIST runs.

`ifca_head` shares the body among the clusters, and `fedsoft` lets a client be of several clusters at once:
it trains from sum_j u_ij theta_j, where u_ij is the share of its windows that theta_j predicts best, and what
it learns moves every theta_j as much as it was used (after Ruan, Joe-Wong, "FedSoft", AAAI 2022; pulling
towards each of the centers, as there, is pulling towards that mean).
"""

from __future__ import annotations

from fedjax_vp.algorithms.fedavg import FEDAVG
from fedjax_vp.algorithms.recipe import Recipe

_GROUPING = {"kind": "ifca", "groups": 4, "warmup": 30, "windows": 0}

IFCA = Recipe(
    name="ifca",
    title="K models, each client trains the one that fits it best",
    settings={**FEDAVG.settings, "levels": [{"name": "cluster", "grouping": _GROUPING}]},
)

IFCA_HEAD = Recipe(
    name="ifca_head",
    title="IFCA of the last layer on a common body",
    settings={
        **FEDAVG.settings,
        "levels": [
            {"name": "global", "owns": ["*", "!head/*"]},
            {"name": "cluster", "owns": ["head/*"], "grouping": _GROUPING},
        ],
    },
)

FEDSOFT = Recipe(
    name="fedsoft",
    title="IFCA with a share in every cluster",
    settings={**FEDAVG.settings, "levels": [{"name": "cluster", "grouping": {**_GROUPING, "soft": True}}]},
)
