"""CFL: clients whose updates point apart are parted, again and again.

Sattler, Mueller, Samek, "Clustered Federated Learning: Model-Agnostic Distributed Multitask Optimization
under Privacy Constraints", IEEE TNNLS 32(8), 2021. Where a group's mean update has died down but its members'
updates have not, it is split in two by the cosine similarity of the updates,

    |mean_c D_i| < eps1   and   max_c |D_i| > eps2:
    c1, c2 = argmin_{c1 u c2 = c} max_{i in c1, j in c2} cos(D_i, D_j)                          (1)

and each half goes on by itself (`federated/grouping/cfl.py`). The thresholds are shares of the largest mean
update seen so far, the paper's rule of thumb; the released code's 0.4 and 1.6 are norms (`relative: false`).

The paper has every client take part in every round. With a cohort, a client's last update stands for it.
"""

from __future__ import annotations

from fedjax_vp.algorithms.fedavg import FEDAVG
from fedjax_vp.algorithms.recipe import Recipe

CFL = Recipe(
    name="cfl",
    title="groups split in two where their updates point apart",
    settings={
        **FEDAVG.settings,
        "levels": [{"name": "cluster", "grouping": {"kind": "cfl", "groups": 8, "warmup": 30, "every": 10}}],
    },
)
