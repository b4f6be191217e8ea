"""Five layers: global, video category, video, user category within the video, user.

    theta_i = theta_global + head_{c(v)} + (C_v + T_v) + head_{v, k(i)} + head_u            (1)

The mission's own idea. Categories of videos are learned from the mean update of each video's viewers, user
categories within a video by which of its rows predicts a viewer's windows best; labels are not used. C_v
and T_v, the video's layer, are those of `global_video`. The trained layers below the first are shrunk by
empirical Bayes, so that a layer that holds nothing stays at zero, and the prefixes of the hierarchy are
mixed by horizon, no deeper than validation users are served by, and by what has served the session so far.
A session whose user was never seen is predicted by the layers that know it. `global_video_user` is the same
without the categories.
"""

from __future__ import annotations

from typing import Any

from fedjax_vp.algorithms.global_video import GLOBAL_VIDEO
from fedjax_vp.algorithms.recipe import Recipe

_SHRUNK: dict[str, Any] = {"owns": ["head/*"], "shrinkage": "auto", "progress": 0.05}
_GLOBAL, *_VIDEO = GLOBAL_VIDEO.settings["levels"]
_CATEGORY = {
    "name": "video_category",
    **_SHRUNK,
    "grouping": {"kind": "kmeans", "of": "video", "groups": 3, "warmup": 30},
}
_VIEWERS = {
    "name": "user_category",
    "by": "video",
    **_SHRUNK,
    "grouping": {"kind": "ifca", "of": "session", "groups": 2, "warmup": 60, "windows": 64},
}
_USER = {"name": "user", "by": "user", **_SHRUNK}

FIVE_LAYERS = Recipe(
    name="five_layers",
    title="global, video category, video, user category within the video, user",
    settings={
        **GLOBAL_VIDEO.settings,
        "levels": [_GLOBAL, _CATEGORY, *_VIDEO, _VIEWERS, _USER],
        "mixing": {"kind": "mixture", "safe": True, "online": 0.5},
    },
)
