"""Fine-tuning (FedAvg+): Wang et al., "Federated Evaluation of On-device Personalization", 2019.

FedAvg trains w as before; before it predicts, each session takes K steps on windows of its own:

    w_i <- w,  then K steps  w_i <- w_i - eta grad F_i(w_i; batch)                  (1)

Known sessions use their training windows (protocol `within_session`); sessions of unseen users and videos
use their first `protocol.adapt_s` seconds. `adapt.on` says so outright. Nothing is sent back.
"""

from __future__ import annotations

from fedjax_vp.algorithms.fedavg import FEDAVG
from fedjax_vp.algorithms.recipe import Recipe

FINETUNE = Recipe(
    name="finetune",
    title="FedAvg, then local steps before predicting (FedAvg+)",
    settings={**FEDAVG.settings, "adapt": {"steps": 10, "lr": 0.02, "batch": 32}},
)
