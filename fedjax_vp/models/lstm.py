"""The position-only baseline of TRACK (Rondon et al., IEEE TPAMI 2021): one LSTM that reads and writes.

It works on (longitude / 2 pi, latitude / pi), both shifted to [0, 1]. The encoder reads all but the last
position; the decoder starts from the last and feeds its prediction back:

    magnitude = sigmoid(W h + b) / 2
    direction = tanh(W' h + b')
    position <- position + magnitude * direction

a step over a pole comes down on the other side, and longitude wraps. Longitude is counted from the last yaw
here, as for every model of this package, so that the model does not depend on where a video's front is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fedjax_vp import geometry
from fedjax_vp.models.base import Predictor, learned, refuse_velocity, small_head_init
from fedjax_vp.models.features import Features, WindowShape
from fedjax_vp.models.recurrent import Affine, lstm_step


def to_map(direction: Float[Array, "*batch 3"]) -> Float[Array, "*batch 2"]:
    """Place on the unit square: (longitude / 2 pi, latitude / pi) + 1/2."""
    yaw, elevation = geometry.to_angles(direction)
    return jnp.stack([yaw / (2 * math.pi), elevation / math.pi], axis=-1) + 0.5


def from_map(place: Float[Array, "*batch 2"]) -> Float[Array, "*batch 3"]:
    """Direction of a place on the unit square."""
    return geometry.from_angles((place[..., 0] - 0.5) * (2 * math.pi), (place[..., 1] - 0.5) * math.pi)


def fold(place: Float[Array, "*batch 2"]) -> Float[Array, "*batch 2"]:
    """Bring a place that a step has left back to the unit square: over a pole, or around."""
    x, y = place[..., 0], place[..., 1]
    over = (y > 1) | (y < 0)
    y = jnp.where(y > 1, 2 - y, jnp.abs(y))
    return jnp.stack([jnp.mod(jnp.where(over, x + 0.5, x), 1.0), y], axis=-1)


def _forget_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Ones for the forget gate, zeros for the others."""
    return jnp.repeat(jnp.array([0, 1, 0, 0], dtype), shape[0] // 4)


class LSTMNet(nn.Module):
    """One cell that encodes and decodes."""

    width: int
    horizon: int

    @nn.compact
    def __call__(
        self, past: Float[Array, "window history 3"], context: Float[Array, "window c"]
    ) -> Float[Array, "window horizon 3"]:
        """Directions in the frame of the past."""
        places = to_map(past)
        input_kernel, bias = Affine(4 * self.width, bias_init=_forget_init, name="input")(2)
        hidden_init = nn.initializers.orthogonal()
        hidden_kernel = self.param("hidden", hidden_init, (self.width, 4 * self.width))
        head = Affine(4, small_head_init(), name="head")(self.width)
        if context.shape[1]:
            bias = bias + nn.Dense(4 * self.width, use_bias=False, name="context")(context)

        def encode(carry: tuple[Array, Array], place: Array) -> tuple[tuple[Array, Array], None]:
            return lstm_step(*carry, place @ input_kernel + bias, hidden_kernel), None

        def decode(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], Array]:
            hidden, cell, place = carry
            hidden, cell = lstm_step(hidden, cell, place @ input_kernel + bias, hidden_kernel)
            magnitude, direction = jnp.split(hidden @ head[0] + head[1], 2, axis=-1)
            place = fold(place + jax.nn.sigmoid(magnitude) / 2 * jnp.tanh(direction))
            return (hidden, cell, place), place

        start = jnp.zeros((past.shape[0], self.width), past.dtype)
        memory, _ = jax.lax.scan(encode, (start, start), places[:, :-1].swapaxes(0, 1))
        _, future = jax.lax.scan(decode, (*memory, places[:, -1]), None, self.horizon)
        return from_map(future.swapaxes(0, 1))


@dataclass(frozen=True)
class LSTM:
    """Settings of TRACK's position-only baseline."""

    kind: Literal["lstm"] = "lstm"
    width: int = 1024
    features: Features = field(default_factory=Features)

    def __post_init__(self) -> None:
        refuse_velocity(self.features, self.kind)
        if self.width < 1:
            raise ValueError(f"model.width is {self.width}: give at least 1")

    def build(self, shape: WindowShape) -> Predictor:
        """Predictor of the given window shape."""
        return learned(LSTMNet(self.width, shape.horizon), self.features, shape)
