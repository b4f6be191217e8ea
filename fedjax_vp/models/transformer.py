"""Transformer encoder on the scan path alone, after VPT360 (Chao, Ozcinar, Smolic, MMSP 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fedjax_vp.models.base import Predictor, learned, small_head_init
from fedjax_vp.models.features import Features, WindowShape, posture_of, tokens_of


class TransformerNet(nn.Module):
    """Pre-norm encoder; the head reads the token of the present."""

    width: int
    num_heads: int
    num_layers: int
    num_outputs: int

    @nn.compact
    def __call__(
        self, past: Float[Array, "window history 3"], context: Float[Array, "window c"]
    ) -> Float[Array, "window output"]:
        """Displacements (east, north) of every future sample."""
        context = jnp.concatenate([posture_of(past), context], axis=-1)
        x = nn.Dense(self.width, name="embed")(tokens_of(past))
        x = x + nn.Dense(self.width, use_bias=False, name="context")(context)[:, None]
        order_init = nn.initializers.normal(0.02)
        x = x + self.param("order", order_init, (past.shape[1], self.width))[None]
        for index in range(self.num_layers):
            x = self._layer(x, index)
        return nn.Dense(self.num_outputs, kernel_init=small_head_init(), name="head")(
            nn.LayerNorm(name="norm")(x[:, -1])
        )

    def _layer(self, x: Float[Array, "window time d"], index: int) -> Float[Array, "window time d"]:
        head_width = self.width // self.num_heads
        normed = nn.LayerNorm(name=f"attention_norm_{index}")(x)
        qkv = nn.Dense(3 * self.width, use_bias=False, name=f"attention_qkv_{index}")(normed)
        query, key, value = jnp.split(qkv.reshape(*x.shape[:2], self.num_heads, -1), 3, axis=-1)
        scores = jnp.einsum("wqhd,wkhd->whqk", query, key) / jnp.sqrt(head_width).astype(x.dtype)
        mixed = jnp.einsum("whqk,wkhd->wqhd", jax.nn.softmax(scores, axis=-1), value)
        x = x + nn.Dense(self.width, name=f"attention_out_{index}")(mixed.reshape(x.shape))
        normed = nn.LayerNorm(name=f"dense_norm_{index}")(x)
        inner = jax.nn.relu(nn.Dense(2 * self.width, name=f"dense_in_{index}")(normed))
        return x + nn.Dense(self.width, name=f"dense_out_{index}")(inner)


@dataclass(frozen=True)
class Transformer:
    """Settings of the transformer encoder."""

    kind: Literal["transformer"] = "transformer"
    width: int = 64
    num_heads: int = 4
    num_layers: int = 1
    features: Features = field(default_factory=Features)

    def __post_init__(self) -> None:
        if self.num_layers < 1 or self.num_heads < 1:
            raise ValueError("model.num_layers and model.num_heads must be at least 1")
        if self.width < 1 or self.width % self.num_heads:
            raise ValueError(f"model.width is {self.width}: give a multiple of num_heads, {self.num_heads}")

    def build(self, shape: WindowShape) -> Predictor:
        """Predictor of the given window shape."""
        network = TransformerNet(self.width, self.num_heads, self.num_layers, 2 * shape.horizon)
        return learned(network, self.features, shape)
