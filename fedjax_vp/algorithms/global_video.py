"""Global + video: one network for all, and for each video what its other viewers tell.

    theta_i = theta_global + C_{v(i)} + T_{v(i)}                                         (1)
    C_v[b] = sum over the training viewers i of v of (1, mean direction of i in bin b)   (2)
    T_v <- T_v + eta adam(s (mean update of the viewers of v + h T_v) - h T_v)           (3)
    prediction at horizon k = sum_l pi[l, k](t) f(theta^(<=l))_k                         (4)

The global level owns everything but `video_*`. The video level owns the crowd (2), which is counted once; a
headset that trains takes its own part out (`federated/crowd.py`). The network sees the mean of the crowd's
directions now and up to 5 s ahead, shrunk to "unknown" where few have watched. A further level of the video
owns a table of vectors by second (3), trained, and shrunk by empirical Bayes: what the crowd's mean does not
say. The mixture (4), learned on validation windows, lets each horizon lean on the level that predicts it
best; while a session plays, its headset leans further to what has predicted this viewer best so far, for
some look where the others look and some do not (`federated/hedging.py`). Part of every batch is predicted
without the finer levels, so that the network alone stays a good predictor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedjax_vp.algorithms.recipe import COHORT, LOCAL_SGD, Recipe

CROWD: Mapping[str, Any] = {"crowd": True, "table": 0, "table_at_s": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]}

_TABLE = {
    "name": "video_table",
    "by": "video",
    "owns": ["video_table"],
    "shrinkage": "auto",
    "progress": 0.005,
    "server": {"kind": "adam", "lr": 0.03, "tau": 1e-4, "schedule": {"kind": "cosine"}},
}

GLOBAL_VIDEO = Recipe(
    name="global_video",
    title="one network for all, and where each video's viewers look when",
    settings={
        "levels": [
            {"name": "global", "owns": ["*", "!video_*"]},
            {"name": "video", "by": "video", "owns": ["video_crowd"]},
            _TABLE,
        ],
        "model": {"features": {**CROWD, "table": 4}},
        "local": {**LOCAL_SGD, "prefix_share": 0.5},
        "participation": COHORT,
        "mixing": {"kind": "mixture", "online": 0.5},
    },
)
