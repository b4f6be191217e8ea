"""Local only: every headset trains alone on its own sessions, the lower reference of personalisation.

    w_u <- w_u - eta grad F_u(w_u; batch)    for each user u by itself              (1)

The hierarchy has one level, `user`, and a client is a user, so that no two clients share a row: "averaging"
takes the client's own result. A user without training windows has no
model: its parameters are zero, and a network of displacements without parameters predicts no motion.
"""

from __future__ import annotations

from fedjax_vp.algorithms.recipe import LOCAL_SGD, Recipe

LOCAL_ONLY = Recipe(
    name="local_only",
    title="every headset trains alone",
    settings={
        "client": "user",
        "levels": [{"name": "user", "by": "user"}],
        "local": {**LOCAL_SGD, "lr": 0.1, "steps": 8},
        "participation": {"kind": "all"},
    },
)
