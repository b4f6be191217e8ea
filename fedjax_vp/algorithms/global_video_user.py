"""Global + video + user: the three layers, a user's own last layer on top of `global_video`.

    theta_i = theta_global + C_{v(i)} + head_{u(i)}                             (1)
    head_u <- s (head_u + mean residual update of u's sessions),   s by empirical Bayes   (2)

A user's update is what the levels above left unexplained. Real users differ by degrees and have few windows,
so that their unshrunk heads lose 12-18 %; empirical Bayes lets them move only as far as the data bear.
"""

from __future__ import annotations

from fedjax_vp.algorithms.global_video import GLOBAL_VIDEO
from fedjax_vp.algorithms.recipe import Recipe

_USER = {"name": "user", "by": "user", "owns": ["head/*"], "shrinkage": "auto", "progress": 0.02}

GLOBAL_VIDEO_USER = Recipe(
    name="global_video_user",
    title="global_video with a last layer for each user",
    settings={**GLOBAL_VIDEO.settings, "levels": [*GLOBAL_VIDEO.settings["levels"], _USER]},
)
