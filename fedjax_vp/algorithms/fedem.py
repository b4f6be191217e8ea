"""FedEM: every client's data are a mixture, and so is its model: K networks, in shares of its own.

Marfoq, Neglia, Bellet, Kameni, Vidal, "Federated Multi-Task Learning under a Mixture of Distributions",
NeurIPS 2021. The networks theta_m are trained by all, the shares pi_i by each session for itself:

    q_m(window)  = softmax_m( log pi_im - loss_m(window) / width )        responsibilities          (1)
    theta_m     <- average of the clients' steps on  sum_windows q_m(window) loss_m(window)         (2)
    pi_im        = mean over windows of q_m(window)                                                 (3)
    p_i(window)  = normalize( sum_m pi_im p_m(window) )                                             (4)

(1) to (3) are gradient steps of the mixture's likelihood (`federated/components.py`); (4) mixes predictions,
where `fedsoft` mixes parameters. A session whose shares nobody learned predicts with even ones; with first
seconds to go by (`protocol.adapt_s`) it learns its shares on them, the networks held fixed.
"""

from __future__ import annotations

from fedjax_vp.algorithms.fedavg import FEDAVG
from fedjax_vp.algorithms.recipe import Recipe

FEDEM = Recipe(
    name="fedem",
    title="a mixture of K networks, each client in shares of its own",
    settings={
        **FEDAVG.settings,
        "components": {"count": 3},
        "levels": [
            {"name": "global", "owns": ["*", "!components/*"]},
            {"name": "shares", "by": "session", "owns": ["components/*"]},
        ],
        "adapt": {"owns": ["components/*"], "steps": 20, "lr": 2.0},
    },
)
