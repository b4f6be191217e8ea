"""One model per video: FedAvg within the viewers of each video, nothing shared between videos.

    w_v <- w_v + sum_i (n_i / n_v) (w_i - w_v)    over the participants i that watch v    (1)

The hierarchy has one level, `video`, with a row a video. The model sees where the others look by video time,
as in `global_video`: without, a model of its own has almost nothing to learn about a video. An unseen video
gets the initial model.
"""

from __future__ import annotations

from fedjax_vp.algorithms.global_video import CROWD
from fedjax_vp.algorithms.recipe import COHORT, LOCAL_SGD, Recipe

PER_VIDEO = Recipe(
    name="per_video",
    title="one model per video",
    settings={
        "levels": [{"name": "video", "by": "video"}],
        "model": {"features": CROWD},
        "local": LOCAL_SGD,
        "participation": COHORT,
    },
)
