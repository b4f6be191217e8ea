"""The GRU's two loops over time with hand-written derivatives.

Automatic differentiation adds up the weight gradients step by step, recomputes gates and keeps far more than
is needed. Here the backward loop holds only what the recurrence needs, one product a step with a kernel that
is transposed once; all gradients of weights are products over time and windows together afterwards. With
a = h W + b and x the input's share of the gates (reset r, update z, new n):

    r, z = sigmoid(x_rz + a_rz),   n = tanh(x_n + r a_n),   h' = n + z (h - n)

    dn_pre = dh' (1 - z) (1 - n^2)          dr_pre = dn_pre a_n r (1 - r)          da_n = r dn_pre
    dz_pre = dh' (h - n) z (1 - z)          dh = dh' z + [dr_pre, dz_pre, da_n] W^T

Layouts are those that XLA's products on a CPU like: time leads, and of two factors the one with few columns
comes first. There a barrier keeps XLA from folding a transposition back into the product; a GPU's products
take either form.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_vp import geometry


class Weights(NamedTuple):
    """Kernels and biases of one GRU."""

    input: Float[Array, "3 g"]
    input_bias: Float[Array, "#window g"]  # one for each window where the context adds to it
    hidden: Float[Array, "h g"]
    hidden_bias: Float[Array, "1 g"]


class Head(NamedTuple):
    """Kernel and bias from the hidden state to a displacement."""

    kernel: Float[Array, "h 3"]
    bias: Float[Array, "1 3"]


class _Cell(NamedTuple):
    """What a step keeps for its derivative."""

    hidden: Array  # [window, h] before the step
    reset_update: Array  # [window, 2 h]
    new: Array  # [window, h]
    product: Array  # [window, h] the new gate's share of the product, before the reset


def _fixed(x: Array) -> Array:
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _step(hidden: Array, gates: Array, weights: Weights) -> tuple[Array, _Cell]:
    size = 2 * hidden.shape[-1]
    product = hidden @ weights.hidden + weights.hidden_bias
    both = jax.nn.sigmoid(gates[:, :size] + product[:, :size])
    reset, update = jnp.split(both, 2, axis=-1)
    new = jnp.tanh(gates[:, size:] + reset * product[:, size:])
    return new + update * (hidden - new), _Cell(hidden, both, new, product[:, size:])


def _pull(change: Array, cell: _Cell, back: Array) -> tuple[Array, tuple[Array, Array]]:
    """Derivatives of the state before a step and of its gates: (hidden's r, z, n; input's n)."""
    reset, update = jnp.split(cell.reset_update, 2, axis=-1)
    kept = change * (1 - update)
    new = kept * (1 - cell.new * cell.new)
    inner = new * reset
    parts = (
        inner * (1 - reset) * cell.product,
        kept * update * (cell.hidden - cell.new),
        inner,
    )
    gates = jnp.concatenate(parts, axis=-1)
    return change * update + gates @ back, (gates, new)


def _weight_gradients(weights: Weights, hidden: Array, inputs: Array, gates: Array, new: Array) -> Weights:
    """Sums over time and windows, one product for each kernel; a row of ones gives the biases."""
    size = 2 * hidden.shape[-1]
    rows = jnp.concatenate([inputs, jnp.ones((*inputs.shape[:-1], 1), inputs.dtype)], axis=-1)
    of_hidden = _flat(rows).T @ _flat(gates)
    of_input = jnp.concatenate([of_hidden[:, :size], _flat(rows).T @ _flat(new)], axis=-1)
    bias = of_input[-1:]
    if weights.input_bias.shape[0] > 1:
        bias = jnp.sum(jnp.concatenate([gates[..., :size], new], axis=-1), axis=0)
    return Weights(of_input[:-1], bias, _flat(hidden).T @ _flat(gates), of_hidden[-1:])


def _to_inputs(weights: Weights) -> tuple[Array, Array]:
    """Kernels from the derivatives of the gates to those of the input."""
    size = 2 * weights.hidden.shape[0]
    both = jnp.pad(weights.input[:, :size], ((0, 0), (0, size // 2)))
    return _fixed(both.T), _fixed(weights.input[:, size:].T)


def _read(sequence: Array, weights: Weights) -> tuple[Array, _Cell]:
    gates = _flat(sequence) @ weights.input
    gates = gates.reshape(*sequence.shape[:2], gates.shape[-1]) + weights.input_bias[None]
    start = jnp.zeros((sequence.shape[1], weights.hidden.shape[0]), sequence.dtype)
    return jax.lax.scan(lambda hidden, x: _step(hidden, x, weights), start, gates)


@jax.custom_vjp
def encode(sequence: Float[Array, "time window 3"], weights: Weights) -> Float[Array, "window h"]:
    """Hidden state after a sequence."""
    return _read(sequence, weights)[0]


def _encode_forward(sequence: Array, weights: Weights) -> tuple[Array, Any]:
    hidden, cells = _read(sequence, weights)
    return hidden, (sequence, weights, cells)


def _encode_backward(kept: Any, change: Array) -> tuple[Array, Weights]:
    sequence, weights, cells = kept
    back = _fixed(weights.hidden.T)
    _, (gates, new) = jax.lax.scan(lambda d, cell: _pull(d, cell, back), change, cells, reverse=True)
    both, last = _to_inputs(weights)
    return gates @ both + new @ last, _weight_gradients(weights, cells.hidden, sequence, gates, new)


encode.defvjp(_encode_forward, _encode_backward)


def _write(
    scale: float, horizon: int, start: tuple[Array, Array, Array], weights: Weights, head: Head
) -> tuple[Array, tuple[Array, Array, Array, _Cell]]:
    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], Any]:
        hidden, position, x = carry
        hidden, cell = _step(hidden, x @ weights.input + weights.input_bias, weights)
        raw = position + (hidden @ head.kernel + head.bias)
        moved = geometry.normalize(raw)
        return (hidden, moved, scale * (moved - position) if scale else moved), (moved, raw, x, cell)

    (hidden, _, _), kept = jax.lax.scan(step, start, None, horizon)
    return hidden, kept


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def decode(
    scale: float,
    horizon: int,
    start: tuple[Float[Array, "window h"], Float[Array, "window 3"], Float[Array, "window 3"]],
    weights: Weights,
    head: Head,
) -> Float[Array, "horizon window 3"]:
    """Positions that the decoder writes, each fed back to it.

    Args:
        scale: of the movements that are fed back; 0 feeds positions back.
        horizon: number of positions.
        start: hidden state, last position and first input.
        weights: of the decoder.
        head: from the hidden state to the displacement.
    """
    return _write(scale, horizon, start, weights, head)[1][0]


def _decode_forward(
    scale: float, horizon: int, start: Any, weights: Weights, head: Head
) -> tuple[Array, Any]:
    hidden, (moved, *kept) = _write(scale, horizon, start, weights, head)
    return moved, (hidden, kept, weights, head)


def _decode_backward(scale: float, horizon: int, kept: Any, change: Array) -> tuple[Any, Weights, Head]:
    last, (raw, inputs, cells), weights, head = kept
    back, back_head = _fixed(weights.hidden.T), _fixed(head.kernel.T)
    both, single = _to_inputs(weights)

    def step(carry: tuple[Array, Array, Array], kept: Any) -> tuple[tuple[Array, Array, Array], Any]:
        hidden, position, x = carry  # derivatives of what the step hands on
        change, raw, cell = kept
        fed = scale * x if scale else x
        (moved,) = jax.vjp(geometry.normalize, raw)[1](position + change + fed)
        hidden, (gates, new) = _pull(hidden + moved @ back_head, cell, back)
        return (hidden, moved - fed if scale else moved, gates @ both + new @ single), (gates, new, moved)

    zeros = jnp.zeros_like(raw[0])
    start, (gates, new, moved) = jax.lax.scan(
        step, (jnp.zeros_like(last), zeros, zeros), (change, raw, cells), reverse=True
    )
    hidden = jnp.concatenate([cells.hidden[1:], last[None]])
    kernel = _fixed(_flat(moved).T @ _flat(hidden)).T
    return (
        start,
        _weight_gradients(weights, cells.hidden, inputs, gates, new),
        Head(kernel, jnp.sum(moved, axis=(0, 1))[None]),
    )


decode.defvjp(_decode_forward, _decode_backward)
