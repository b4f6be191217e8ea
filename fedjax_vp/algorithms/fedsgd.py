"""FedSGD: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017.

Every participant i of round t computes one full-batch gradient, and the server takes one step:

    g_i = grad F_i(w_t)                                                            (1)
    w_{t+1} = w_t - eta sum_i (n_i / n) g_i,    n = sum_i n_i over participants     (2)

It is FedAvg with one local step on all of a client's windows: eta is the local learning rate, and averaging
the moved weights with server rate 1 is (2).
"""

from __future__ import annotations

from fedjax_vp.algorithms.recipe import COHORT, LOCAL_SGD, Recipe

FEDSGD = Recipe(
    name="fedsgd",
    title="one full-batch gradient a round (McMahan et al. 2017)",
    settings={"local": {**LOCAL_SGD, "batch": 0, "steps": 1}, "participation": COHORT},
)
