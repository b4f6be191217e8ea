"""CFL: clients whose updates point apart are parted, again and again.

Sattler, Mueller, Samek, "Clustered Federated Learning: Model-Agnostic Distributed Multitask Optimization
under Privacy Constraints", IEEE TNNLS 32(8), 2021. Where a group's mean update has died down but its members'
updates have not, it is split in two by the cosine similarity of the updates (`federated/grouping/cfl.py` has
the tests), and each half goes on by itself. The thresholds are shares of the largest mean update seen so far,
the paper's rule of thumb; the released code's 0.4 and 1.6 are norms (`relative: false`).

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
