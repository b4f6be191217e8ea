"""Centralized: ordinary training on the pooled windows of all clients.

One client holds every training window and keeps its optimiser (Adam: D. Kingma and J. Ba, ICLR 2015):

    w <- w - eta m / (sqrt(v) + eps)    on batches drawn from the pool              (1)

A "round" is `local.steps` such steps, after which the server takes the result as it is. It is the upper
reference: no method that sends updates instead of traces should be expected to do better with the same model.
"""

from __future__ import annotations

from fedjax_vp.algorithms.recipe import Recipe

CENTRALIZED = Recipe(
    name="centralized",
    title="training on pooled traces, the upper reference",
    settings={
        "client": "all",
        "participation": {"kind": "all"},
        "local": {
            "optimizer": "adam",
            "lr": 1e-3,
            "schedule": {"kind": "cosine"},
            "batch": 512,
            "steps": 25,
            "keep_state": True,
        },
    },
)
