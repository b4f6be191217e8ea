"""Global + video: one network for all, and for each video a table of where its viewers look at each second.

    theta_i = theta_global + table_{v(i)}                                           (1)
    table_v <- s (table_v + mean update of the viewers of v),   s by empirical Bayes   (2)
    prediction at horizon k = sum_l pi[l, k] f(theta^(<=l))_k,  l in {global, video}    (3)

The global level owns everything but `video_table`, the video level owns the table. Shrinkage (2) keeps
seconds that few have watched near "unknown", and the mixture (3), learned on validation windows, lets each
horizon lean on the level that predicts it best: motion for fractions of a second, the video beyond. Part of
every batch is predicted without the table, so that the network alone stays a good predictor.
"""

from __future__ import annotations

from fedjax_vp.algorithms.recipe import COHORT, LOCAL_SGD, Recipe

GLOBAL_VIDEO = Recipe(
    name="global_video",
    title="one network for all, a table by time for each video",
    settings={
        "levels": [
            {"name": "global", "owns": ["*", "!video_table"]},
            {
                "name": "video",
                "by": "video",
                "owns": ["video_table"],
                "shrinkage": "auto",
                "progress": 0.02,
                "server": {"kind": "adam", "lr": 0.03, "tau": 1e-4, "schedule": {"kind": "cosine"}},
            },
        ],
        "model": {"features": {"table": 4, "table_at_s": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]}},
        "local": {**LOCAL_SGD, "prefix_share": 0.5},
        "participation": COHORT,
        "mixing": {"kind": "mixture"},
    },
)
