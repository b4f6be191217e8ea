"""FedOpt: S. Reddi et al., "Adaptive Federated Optimization", ICLR 2021.

The clients do FedAvg's local steps; the server treats the mean update as minus a gradient:

    D_t = sum_i (n_i / n) (w_i - w_t)                                               (1)
    m_t = beta1 m_{t-1} + (1 - beta1) D_t                                           (2)
    v_t = v_{t-1} + D_t^2                                          (FedAdagrad)     (3)
    v_t = v_{t-1} - (1 - beta2) D_t^2 sign(v_{t-1} - D_t^2)        (FedYogi)        (4)
    v_t = beta2 v_{t-1} + (1 - beta2) D_t^2                        (FedAdam)        (5)
    w_{t+1} = w_t + eta m_t / (sqrt(v_t) + tau)                                     (6)

with v_{-1} = tau^2 and no bias correction; FedAdagrad has beta1 = 0.
"""

from __future__ import annotations

from typing import Any

from fedjax_vp.algorithms.recipe import COHORT, LOCAL_SGD, Recipe


def _settings(**server: Any) -> dict[str, Any]:
    return {
        "levels": [{"name": "global", "server": {"schedule": {"kind": "cosine"}, **server}}],
        "local": LOCAL_SGD,
        "participation": COHORT,
    }


FEDADAGRAD = Recipe(
    name="fedadagrad",
    title="FedAvg with Adagrad on the server (Reddi et al. 2021)",
    settings=_settings(kind="adagrad", lr=1e-2, beta1=0.0),
)
FEDYOGI = Recipe(
    name="fedyogi",
    title="FedAvg with Yogi on the server (Reddi et al. 2021)",
    settings=_settings(kind="yogi", lr=5e-3),
)
FEDADAM = Recipe(
    name="fedadam",
    title="FedAvg with Adam on the server (Reddi et al. 2021)",
    settings=_settings(kind="adam", lr=5e-3),
)
