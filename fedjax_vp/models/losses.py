"""Losses between predicted and true directions, element by element; whoever trains takes the mean.

All are in radians and agree near zero, never a squared error of angles: heads move rarely and far, and a
squared error is ruled by the few windows in which they do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_vp import geometry

LossFn = Callable[
    [Float[Array, "window horizon 3"], Float[Array, "window horizon 3"]], Float[Array, "window horizon"]
]


@dataclass(frozen=True)
class GreatCircle:
    """Angle between the directions, radians."""

    kind: Literal["great_circle"] = "great_circle"

    def build(self) -> LossFn:
        """The loss as a pure function of predicted and true directions."""
        return geometry.great_circle


@dataclass(frozen=True)
class Huber:
    """Great circle d with a rounded tip: d^2 / (2 delta) below delta, d - delta / 2 above (slope 1)."""

    kind: Literal["huber"] = "huber"
    delta_rad: float = 0.1

    def __post_init__(self) -> None:
        if not self.delta_rad > 0:
            raise ValueError(f"loss.delta_rad is {self.delta_rad}: give a positive angle in radians")

    def build(self) -> LossFn:
        """The loss as a pure function of predicted and true directions."""

        def loss(
            predicted: Float[Array, "window horizon 3"], true: Float[Array, "window horizon 3"]
        ) -> Float[Array, "window horizon"]:
            angle = geometry.great_circle(predicted, true)
            near = jnp.minimum(angle, self.delta_rad)
            return near * near / (2 * self.delta_rad) + angle - near

        return loss


@dataclass(frozen=True)
class Chord:
    """Straight distance through the sphere, 2 sin(angle / 2)."""

    kind: Literal["chord"] = "chord"

    def build(self) -> LossFn:
        """The loss as a pure function of predicted and true directions."""

        def loss(
            predicted: Float[Array, "window horizon 3"], true: Float[Array, "window horizon 3"]
        ) -> Float[Array, "window horizon"]:
            return geometry.safe_norm(predicted - true)

        return loss


LossSettings = GreatCircle | Huber | Chord

LOSSES: dict[str, type[GreatCircle] | type[Huber] | type[Chord]] = {
    "great_circle": GreatCircle,
    "huber": Huber,
    "chord": Chord,
}
"""Settings of every loss by kind; `LOSSES[kind](...).build()` is the function."""
