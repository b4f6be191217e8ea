"""Oracles: what a grouping could gain at most. They are told, or see, what no server is to know.

    theta_i = theta_{c(v), k(u)}          c, k the categories that the data were planted with       (1)
    theta_i = theta_global + C_v + head_{v, k(i)},   k from the viewers' own trajectories       (2)

`oracle` is (1): one model for each pair of planted categories. Real viewers have no such labels;
`oracle_paths` is `global_video` with (2): viewers of a video are clustered by great-circle distance before
training (Petrangeli, Simon, Swaminathan, "Trajectory-Based Viewport Prediction for 360-Degree Virtual Reality
Videos", AIVR 2018), those who only test by what they are tested on.
"""

from __future__ import annotations

from fedjax_vp.algorithms.fedavg import FEDAVG
from fedjax_vp.algorithms.global_video import GLOBAL_VIDEO
from fedjax_vp.algorithms.recipe import Recipe

ORACLE = Recipe(
    name="oracle",
    title="one model for each planted group: knows the labels",
    settings={**FEDAVG.settings, "levels": [{"name": "cluster", "by": "video_category*user_category"}]},
)
ORACLE_PATHS = Recipe(
    name="oracle_paths",
    title="global_video with groups from whole trajectories: sees the tests",
    settings={
        **GLOBAL_VIDEO.settings,
        "levels": [
            *GLOBAL_VIDEO.settings["levels"],
            {
                "name": "viewers",
                "by": "video",
                "owns": ["head/*"],
                "shrinkage": "auto",
                "progress": 0.05,
                "grouping": {"kind": "spectral", "of": "session", "groups": 3, "peek": True},
            },
        ],
    },
)
