"""Global + video: one network for all, and for each video where its viewers look at each half second.

    theta_i = theta_global + C_{v(i)}                                                    (1)
    C_v[b] = sum over the training viewers i of v of (1, mean direction of i in bin b)   (2)
    prediction at horizon k = sum_l pi[l, k] f(theta^(<=l))_k,  l in {global, video}     (3)

The global level owns everything but `video_crowd`, the video level owns the crowd (2). It is counted once,
and a headset that trains takes its own part out (`federated/crowd.py`). The network sees the mean of the
crowd's directions now and up to 5 s ahead, shrunk to "unknown" where few have watched, and the mixture (3),
learned on validation windows, lets each horizon lean on the level that predicts it best. Part of every batch
is predicted without the crowd, so that the network alone stays a good predictor.

A table that is trained instead is `features: {crowd: false, table: 4}`, with a server optimizer and
shrinkage of its own at the video level (docs/levels.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedjax_vp.algorithms.recipe import COHORT, LOCAL_SGD, Recipe

CROWD: Mapping[str, Any] = {"crowd": True, "table": 0, "table_at_s": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]}

GLOBAL_VIDEO = Recipe(
    name="global_video",
    title="one network for all, and where each video's viewers look when",
    settings={
        "levels": [
            {"name": "global", "owns": ["*", "!video_*"]},
            {"name": "video", "by": "video", "owns": ["video_*"]},
        ],
        "model": {"features": CROWD},
        "local": {**LOCAL_SGD, "prefix_share": 0.5},
        "participation": COHORT,
        "mixing": {"kind": "mixture"},
    },
)
