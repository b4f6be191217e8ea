"""What the recurrent models share: weights handed out as arrays, and fused cells.

The time loops are plain `jax.lax.scan`s over arrays, with one matrix product a step for all gates.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class Affine(nn.Module):
    """Kernel and bias of a dense layer, as arrays for use inside a scan."""

    num_outputs: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, num_inputs: int) -> tuple[Float[Array, "i o"], Float[Array, "1 o"]]:
        """Kernel [input, output] and bias [1, output]."""
        kernel = self.param("kernel", self.kernel_init, (num_inputs, self.num_outputs))
        return kernel, self.param("bias", self.bias_init, (self.num_outputs,))[None]


def gru_step(
    hidden: Float[Array, "window h"],
    gates: Float[Array, "window g"],
    kernel: Float[Array, "h g"],
    bias: Float[Array, "1 g"],
) -> Float[Array, "window h"]:
    """Gated recurrent unit, reset after the product, gates in the order reset, update, new (as PyTorch's)."""
    reset_x, update_x, new_x = jnp.split(gates, 3, axis=-1)
    reset_h, update_h, new_h = jnp.split(hidden @ kernel + bias, 3, axis=-1)
    update = jax.nn.sigmoid(update_x + update_h)
    new = jnp.tanh(new_x + jax.nn.sigmoid(reset_x + reset_h) * new_h)
    return new + update * (hidden - new)


def lstm_step(
    hidden: Float[Array, "window h"],
    cell: Float[Array, "window h"],
    gates: Float[Array, "window g"],
    kernel: Float[Array, "h g"],
) -> tuple[Float[Array, "window h"], Float[Array, "window h"]]:
    """Long short-term memory, gates in the order input, forget, new, output (as Keras')."""
    take, keep, new, show = jnp.split(gates + hidden @ kernel, 4, axis=-1)
    cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(take) * jnp.tanh(new)
    return jax.nn.sigmoid(show) * jnp.tanh(cell), cell
