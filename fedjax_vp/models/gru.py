"""Sequence to sequence: a GRU reads the past, a second one writes the future, feeding its prediction back.

The decoder's head adds a displacement in space to the last position, and the sum is scaled to unit length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fedjax_vp import geometry
from fedjax_vp.models import fused_gru
from fedjax_vp.models.base import Predictor, learned, refuse_velocity, small_head_init
from fedjax_vp.models.features import STEP_SCALE, Features, WindowShape, posture_of, steps_of
from fedjax_vp.models.fused_gru import Weights
from fedjax_vp.models.recurrent import Affine, gru_step


class GRUNet(nn.Module):
    """Encoder and decoder; `steps` feeds movements, else positions.

    `plain` leaves the derivatives to JAX: slower, and what the tests hold `fused_gru` to.
    """

    width: int
    horizon: int
    steps: bool
    plain: bool = False

    @nn.compact
    def __call__(
        self, past: Float[Array, "window history 3"], context: Float[Array, "window c"]
    ) -> Float[Array, "window horizon 3"]:
        """Directions in the frame of the past."""
        sequence, last = past, past[:, -1]
        first = last
        if self.steps:
            sequence = steps_of(past)
            first = sequence[:, -1] if sequence.shape[1] else jnp.zeros_like(last)
            context = jnp.concatenate([posture_of(past), context], axis=-1)
        encoder, decoder = self._gates("encoder"), self._gates("decoder")
        head = fused_gru.Head(*Affine(3, small_head_init(), name="head")(self.width))
        if context.shape[1]:
            # The context is the same at every step, so its share of the gates is computed once.
            share = nn.Dense(3 * self.width, use_bias=False, name="context")(context)
            decoder = decoder._replace(input_bias=decoder.input_bias + share)
        scale = STEP_SCALE if self.steps else 0.0
        encode, decode = (_encode, _decode) if self.plain else (fused_gru.encode, fused_gru.decode)
        hidden = encode(sequence.swapaxes(0, 1), encoder)
        future = cast(Array, decode(scale, self.horizon, (hidden, last, first), decoder, head))
        return future.swapaxes(0, 1)

    def _gates(self, name: str) -> Weights:
        from_input = Affine(3 * self.width, name=f"{name}_input")(3)
        from_hidden = Affine(3 * self.width, nn.initializers.orthogonal(), name=f"{name}_hidden")(self.width)
        return Weights(*from_input, *from_hidden)


def _encode(sequence: Float[Array, "time window 3"], weights: Weights) -> Float[Array, "window h"]:
    def step(hidden: Array, x: Array) -> tuple[Array, None]:
        gates = x @ weights.input + weights.input_bias
        return gru_step(hidden, gates, weights.hidden, weights.hidden_bias), None

    start = jnp.zeros((sequence.shape[1], weights.hidden.shape[0]), sequence.dtype)
    return jax.lax.scan(step, start, sequence)[0]


def _decode(
    scale: float, horizon: int, start: tuple[Array, Array, Array], weights: Weights, head: fused_gru.Head
) -> Float[Array, "horizon window 3"]:
    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], Array]:
        hidden, position, x = carry
        gates = x @ weights.input + weights.input_bias
        hidden = gru_step(hidden, gates, weights.hidden, weights.hidden_bias)
        moved = geometry.normalize(position + hidden @ head.kernel + head.bias)
        return (hidden, moved, scale * (moved - position) if scale else moved), moved

    return jax.lax.scan(step, start, None, horizon)[1]


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
