"""Sequence to sequence: a GRU reads the past, a second one writes the future, feeding its prediction back.

The decoder's head adds a displacement in space to the last position, and the sum is scaled to unit length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fedjax_vp import geometry
from fedjax_vp.models.base import Predictor, learned, refuse_velocity, small_head_init
from fedjax_vp.models.features import STEP_SCALE, Features, WindowShape, posture_of, steps_of
from fedjax_vp.models.recurrent import Affine, gru_step


class GRUNet(nn.Module):
    """Encoder and decoder; `steps` feeds movements, else positions."""

    width: int
    horizon: int
    steps: bool

    @nn.compact
    def __call__(
        self, past: Float[Array, "window history 3"], context: Float[Array, "window c"]
    ) -> Float[Array, "window horizon 3"]:
        """Directions in the frame of the past."""
        last = past[:, -1]
        first = jnp.zeros_like(last)
        if self.steps:
            sequence = steps_of(past)
            first = sequence[:, -1] if sequence.shape[1] else first
            context = jnp.concatenate([posture_of(past), context], axis=-1)
        else:
            sequence = past
        num_gates = 3 * self.width
        recurrent_init = nn.initializers.orthogonal()
        encoder_x = nn.Dense(num_gates, name="encoder_input")(sequence)
        encoder_h = Affine(num_gates, recurrent_init, name="encoder_hidden")(self.width)
        decoder_x = Affine(num_gates, name="decoder_input")(3)
        decoder_h = Affine(num_gates, recurrent_init, name="decoder_hidden")(self.width)
        head = Affine(3, small_head_init(), name="head")(self.width)
        # The context is the same at every step, so its share of the gates is computed once.
        gates = decoder_x[1]
        if context.shape[1]:
            gates = gates + nn.Dense(num_gates, use_bias=False, name="context")(context)

        def encode(hidden: Array, x: Array) -> tuple[Array, None]:
            return gru_step(hidden, x, *encoder_h), None

        def decode(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], Array]:
            hidden, position, x = carry
            hidden = gru_step(hidden, x @ decoder_x[0] + gates, *decoder_h)
            moved = geometry.normalize(position + hidden @ head[0] + head[1])
            return (hidden, moved, STEP_SCALE * (moved - position) if self.steps else moved), moved

        start = jnp.zeros((past.shape[0], self.width), past.dtype)
        hidden, _ = jax.lax.scan(encode, start, encoder_x.swapaxes(0, 1))
        carry = (hidden, last, first if self.steps else last)
        return jax.lax.scan(decode, carry, None, self.horizon)[1].swapaxes(0, 1)


@dataclass(frozen=True)
class GRU:
    """Settings of the recurrent sequence model."""

    kind: Literal["gru"] = "gru"
    width: int = 64
    inputs: Literal["steps", "positions"] = "steps"  # steps learn faster; positions are the usual benchmark
    features: Features = field(default_factory=Features)

    def __post_init__(self) -> None:
        refuse_velocity(self.features, self.kind)
        if self.width < 1:
            raise ValueError(f"model.width is {self.width}: give at least 1")

    def build(self, shape: WindowShape) -> Predictor:
        """Predictor of the given window shape."""
        return learned(GRUNet(self.width, shape.horizon, self.inputs == "steps"), self.features, shape)
