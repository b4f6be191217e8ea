"""Temporal convolutions (Bai, Kolter, Koltun, arXiv 1803.01271): causal, dilated, residual."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fedjax_vp.models.base import Predictor, learned, small_head_init
from fedjax_vp.models.features import Features, WindowShape, posture_of, tokens_of

TAPS = 3  # samples a convolution sees; dilations 1, 2, 4 then reach 15 samples back


def delayed(x: Float[Array, "window time d"], dilation: int) -> Float[Array, "window time taps_d"]:
    """Each sample beside the ones `dilation` and 2 * `dilation` before it, zeros before the first.

    A dense layer on this is the causal convolution; as one matrix product it stays fast when every client has
    its own weights, which makes a convolution of as many groups as clients.
    """
    time = x.shape[1]
    shifted = [x]
    for tap in range(1, TAPS):
        lag = min(tap * dilation, time)
        shifted.append(jnp.pad(x[:, : time - lag], ((0, 0), (lag, 0), (0, 0))))
    return jnp.concatenate(shifted, axis=-1)


class TCNNet(nn.Module):
    """Residual blocks; the head reads the sample of the present."""

    width: int
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
        for index in range(self.num_layers):
            inner = jax.nn.relu(nn.Dense(self.width, name=f"conv_{index}")(delayed(x, 2**index)))
            x = x + jax.nn.relu(nn.Dense(self.width, name=f"dense_{index}")(inner))
        return nn.Dense(self.num_outputs, kernel_init=small_head_init(), name="head")(x[:, -1])


@dataclass(frozen=True)
class TCN:
    """Settings of the temporal convolutions."""

    kind: Literal["tcn"] = "tcn"
    width: int = 64
    num_layers: int = 3
    features: Features = field(default_factory=Features)

    def __post_init__(self) -> None:
        if self.width < 1 or self.num_layers < 1:
            raise ValueError("model.width and model.num_layers must be at least 1")

    def build(self, shape: WindowShape) -> Predictor:
        """Predictor of the given window shape."""
        return learned(TCNNet(self.width, self.num_layers, 2 * shape.horizon), self.features, shape)
