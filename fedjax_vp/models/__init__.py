"""Predictors of the next viewports: settings by kind, each with `build(shape) -> Predictor`."""

from __future__ import annotations

from fedjax_vp.models.base import Params, Predictor
from fedjax_vp.models.features import VIDEO_TABLE, Features, Inputs, WindowShape
from fedjax_vp.models.losses import LOSSES, Chord, GreatCircle, Huber, LossFn, LossSettings
from fedjax_vp.models.mlp import MLP
from fedjax_vp.models.static import Static
from fedjax_vp.models.velocity import Velocity

ModelSettings = Static | Velocity | MLP

MODELS: dict[str, type[ModelSettings]] = {
    "static": Static,
    "velocity": Velocity,
    "mlp": MLP,
}
"""Settings of every model by kind."""

__all__ = [
    "LOSSES",
    "MLP",
    "MODELS",
    "VIDEO_TABLE",
    "Chord",
    "Features",
    "GreatCircle",
    "Huber",
    "Inputs",
    "LossFn",
    "LossSettings",
    "ModelSettings",
    "Params",
    "Predictor",
    "Static",
    "Velocity",
    "WindowShape",
]
