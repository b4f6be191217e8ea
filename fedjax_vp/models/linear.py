"""Linear map from the past and the context to the displacements: ridge regression's form, any loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fedjax_vp.models.base import Predictor, learned
from fedjax_vp.models.features import Features, WindowShape
from fedjax_vp.models.mlp import MLPNet


@dataclass(frozen=True)
class Linear:
    """Settings of the linear model."""

    kind: Literal["linear"] = "linear"
    features: Features = field(default_factory=Features)

    def build(self, shape: WindowShape) -> Predictor:
        """Predictor of the given window shape."""
        return learned(MLPNet((), "relu", 2 * shape.horizon), self.features, shape)
