"""FedDrift: models that serve each other's clients merge, and a client that drifts opens one of its own.

Jothimurugesan, Hsieh, Wang, Joshi, Gibbons, "Federated Learning under Distributed Concept Drift", AISTATS
2023, in losses instead of accuracies. Clients choose among models as in IFCA; L_ij is the loss of model j on
the clients of model i:

    isolate   min_j loss_j(now) > min_j loss_j(before) + delta                                      (1)
    merge     D(i, j) = max(L_ij - L_ii, L_ji - L_jj, 0), complete linkage while D < delta'         (2)

The traces of a run do not drift, so all starts isolated: more models than groups are held apart on random
shares of the clients, and merge from then on; how many remain is found, not given. (1) then undoes a merger
that its clients suffer from.
"""

from __future__ import annotations

from fedjax_vp.algorithms.fedavg import FEDAVG
from fedjax_vp.algorithms.recipe import Recipe

_GROUPING = {"kind": "ifca", "groups": 8, "warmup": 30, "windows": 0, "every": 20}

FEDDRIFT = Recipe(
    name="feddrift",
    title="many models that merge where they serve each other's clients",
    settings={
        **FEDAVG.settings,
        "levels": [{"name": "cluster", "grouping": {**_GROUPING, "merge": 0.005, "isolate": 0.01}}],
    },
)
