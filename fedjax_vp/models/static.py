"""No motion: the last direction, repeated. It belongs in every table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fedjax_vp.models.base import Params, Predictor
from fedjax_vp.models.features import Inputs, WindowShape


@dataclass(frozen=True)
class Static:
    """Settings of the no-motion baseline: none."""

    kind: Literal["static"] = "static"

    def build(self, shape: WindowShape) -> Predictor:
        """Predictor of the given window shape."""

        def init(key: Key[Array, ""]) -> Params:
            return {}

        def apply(params: Params, inputs: Inputs) -> Float[Array, "window horizon 3"]:
            last = inputs.past[:, -1:]
            return jnp.broadcast_to(last, (last.shape[0], shape.horizon, 3))

        return Predictor(init, apply)
