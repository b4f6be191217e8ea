"""Multilayer perceptron on the whole past: the default predictor, cheap and strong on head motion alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fedjax_vp.models.base import Predictor, learned, small_head_init
from fedjax_vp.models.features import Features, WindowShape, flat_past

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


class MLPNet(nn.Module):
    """Dense layers on the flat past and the context, then the head."""

    hidden: tuple[int, ...]
    activation: str
    num_outputs: int

    @nn.compact
    def __call__(
        self, past: Float[Array, "window history 3"], context: Float[Array, "window c"]
    ) -> Float[Array, "window output"]:
        """Displacements (east, north) of every future sample."""
        x = jnp.concatenate([flat_past(past), context], axis=-1)
        for index, width in enumerate(self.hidden):
            x = ACTIVATIONS[self.activation](nn.Dense(width, name=f"dense_{index}")(x))
        return nn.Dense(self.num_outputs, kernel_init=small_head_init(), name="head")(x)


@dataclass(frozen=True)
class MLP:
    """Settings of the multilayer perceptron."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[int, ...] = (256, 256)
    activation: Literal["relu", "silu", "tanh"] = "relu"
    features: Features = field(default_factory=Features)

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"model.hidden is {list(self.hidden)}: give widths of at least 1")

    def build(self, shape: WindowShape) -> Predictor:
        """Predictor of the given window shape."""
        return learned(MLPNet(self.hidden, self.activation, 2 * shape.horizon), self.features, shape)
