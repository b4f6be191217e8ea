"""Damped velocity: the last movement goes on along its great circle and dies away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fedjax_vp import geometry
from fedjax_vp.models.base import Params, Predictor
from fedjax_vp.models.features import DAMPING_S, Inputs, WindowShape, reach_s


@dataclass(frozen=True)
class Velocity:
    """Settings of the velocity baseline.

    The angle travelled after t seconds is v * damping_s * (1 - exp(-t / damping_s)), or v * t without
    damping, with v the mean angular velocity over the last `over_s` seconds.
    """

    kind: Literal["velocity"] = "velocity"
    over_s: float = 0.2
    damping_s: float | None = DAMPING_S  # time constant of the decay; null: constant velocity

    def __post_init__(self) -> None:
        if not self.over_s > 0:
            raise ValueError(f"model.over_s is {self.over_s}: give a positive number of seconds")
        if self.damping_s is not None and not self.damping_s > 0:
            raise ValueError(f"model.damping_s is {self.damping_s}: give a positive time, or null for none")

    def build(self, shape: WindowShape) -> Predictor:
        """Predictor of the given window shape; with one observed sample it predicts no motion."""
        steps = min(max(1, round(self.over_s * shape.rate_hz)), shape.history - 1)
        gain = reach_s(shape, self.damping_s) * (shape.rate_hz / max(steps, 1))

        def init(key: Key[Array, ""]) -> Params:
            return {}

        def apply(params: Params, inputs: Inputs) -> Float[Array, "window horizon 3"]:
            last = inputs.past[:, -1]
            back = geometry.log_map(last, inputs.past[:, shape.history - 1 - steps])
            return geometry.exp_map(last[:, None], -back[:, None] * jnp.asarray(gain)[None, :, None])

        return Predictor(init, apply)
