"""Predictors of the next viewports: settings by kind, each with `build(shape) -> Predictor`."""

from __future__ import annotations

from fedjax_vp.models.base import Params, Predictor
from fedjax_vp.models.features import VIDEO_TABLE, Features, Inputs, WindowShape
from fedjax_vp.models.gru import GRU
from fedjax_vp.models.linear import Linear
from fedjax_vp.models.losses import LOSSES, Chord, GreatCircle, Huber, LossFn, LossSettings
from fedjax_vp.models.lstm import LSTM
from fedjax_vp.models.mlp import MLP
from fedjax_vp.models.static import Static
from fedjax_vp.models.tcn import TCN
from fedjax_vp.models.transformer import Transformer
from fedjax_vp.models.velocity import Velocity

ModelSettings = Static | Velocity | Linear | MLP | GRU | LSTM | Transformer | TCN

MODELS: dict[str, type[ModelSettings]] = {
    "static": Static,
    "velocity": Velocity,
    "linear": Linear,
    "mlp": MLP,
    "gru": GRU,
    "lstm": LSTM,
    "transformer": Transformer,
    "tcn": TCN,
}
"""Settings of every model by kind."""

BASELINES = ("static", "velocity")
"""Kinds without weights: they stand in every table and cannot be trained."""

__all__ = [
    "BASELINES",
    "GRU",
    "LOSSES",
    "LSTM",
    "MLP",
    "MODELS",
    "TCN",
    "VIDEO_TABLE",
    "Chord",
    "Features",
    "GreatCircle",
    "Huber",
    "Inputs",
    "Linear",
    "LossFn",
    "LossSettings",
    "ModelSettings",
    "Params",
    "Predictor",
    "Static",
    "Transformer",
    "Velocity",
    "WindowShape",
]
