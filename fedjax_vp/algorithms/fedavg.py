"""FedAvg: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017.

    w_i <- w_t, then K steps  w_i <- w_i - eta grad F_i(w_i; batch)                 (1)
    w_{t+1} = w_t + eta_s sum_i (n_i / n) (w_i - w_t)                               (2)

over the participants i of round t with n_i windows each; eta_s = 1 is plain averaging. The method is the
hierarchy with one level, `global`, that owns every parameter and is not shrunk.
"""

from __future__ import annotations

from fedjax_vp.algorithms.recipe import COHORT, LOCAL_SGD, Recipe

FEDAVG = Recipe(
    name="fedavg",
    title="averaging of locally trained models (McMahan et al. 2017)",
    settings={"local": LOCAL_SGD, "participation": COHORT},
)
