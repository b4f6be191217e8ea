"""FedJAX (Ro et al. 2021): its `for_each_client`, on its `jit` backend or (`pmap`) on a device a core.

The models are written in plain JAX, as FedJAX takes them: a loss of weights and a batch. Its `tree_mean`
calls a function that recent JAX has dropped, so the mean is taken here, on a recent JAX.
"""

from __future__ import annotations

import os

import protocol

ASKED = protocol.request()
DEVICES = protocol.CORES if ASKED.mode == "pmap" else 1
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"

# JAX reads the flags when it starts.
import fedjax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

HORIZON = 25


def normalize(x: jax.Array) -> jax.Array:
    """Scale to unit length."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True))


def cell(hidden: jax.Array, gates: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Gated recurrent unit, reset after the product."""
    reset_x, update_x, new_x = jnp.split(gates, 3, axis=-1)
    reset_h, update_h, new_h = jnp.split(hidden @ kernel + bias, 3, axis=-1)
    update = jax.nn.sigmoid(update_x + update_h)
    new = jnp.tanh(new_x + jax.nn.sigmoid(reset_x + reset_h) * new_h)
    return new + update * (hidden - new)


def gru(w: dict[str, jax.Array], past: jax.Array) -> jax.Array:
    """Encoder and decoder that feeds its positions back."""

    def encode(hidden, x):
        return cell(hidden, x, w["encoder_hidden/kernel"], w["encoder_hidden/bias"]), None

    def decode(carry, _):
        hidden, position = carry
        gates = position @ w["decoder_input/kernel"] + w["decoder_input/bias"]
        hidden = cell(hidden, gates, w["decoder_hidden/kernel"], w["decoder_hidden/bias"])
        position = normalize(position + hidden @ w["head/kernel"] + w["head/bias"])
        return (hidden, position), position

    read = past @ w["encoder_input/kernel"] + w["encoder_input/bias"]
    start = jnp.zeros((past.shape[0], w["head/kernel"].shape[0]))
    hidden, _ = jax.lax.scan(encode, start, read.swapaxes(0, 1))
    return jax.lax.scan(decode, (hidden, past[:, -1]), None, HORIZON)[1].swapaxes(0, 1)


def mlp(w: dict[str, jax.Array], past: jax.Array) -> jax.Array:
    """30-256-256-75."""
    x = past.reshape(past.shape[0], -1)
    for name in ("dense_0", "dense_1"):
        x = jax.nn.relu(x @ w[f"{name}/kernel"] + w[f"{name}/bias"])
    x = x @ w["head/kernel"] + w["head/bias"]
    return normalize(past[:, -1:] + x.reshape(-1, HORIZON, 3))


def replicated(tree, devices):
    """Stands in for `device_put_replicated`, which FedJAX calls and JAX has dropped."""
    return sharded([tree] * len(devices), devices)


def sharded(trees, devices):
    """Stands in for `device_put_sharded`, likewise."""
    del devices
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def main() -> None:
    jax.device_put_replicated, jax.device_put_sharded = replicated, sharded
    fedjax.set_for_each_client_backend(ASKED.mode)
    past, future, weights = ASKED.work()
    first = {n: jnp.asarray(w) for n, w in weights.items()}
    model = {"vp-gru": gru, "vp-mlp": mlp}[ASKED.workload]
    state = dict(first)

    def objective(w, batch):
        square = jnp.sum((model(w, batch["past"]) - batch["future"]) ** 2, axis=-1)
        return jnp.mean(jnp.sqrt(jnp.maximum(square, 1e-24)))

    def client_step(w, batch):
        gradient = jax.grad(objective)(w, batch)
        return jax.tree.map(lambda p, g: p - protocol.RATE * g, w, gradient)

    train = fedjax.for_each_client(lambda shared, _: shared, client_step, lambda shared, w: w)
    add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
    datasets = [fedjax.ClientDataset({"past": p, "future": f}) for p, f in zip(past, future, strict=True)]

    def run_round(count: int | None) -> None:
        chosen = datasets[:count]
        clients = [(i, d.batch(batch_size=protocol.BATCH), None) for i, d in enumerate(chosen)]
        total = None
        for _, output in train(dict(state), clients):
            total = output if total is None else add(total, output)
        # Recent JAX leaves a device's part of an array its leading axis.
        mean = jax.tree.map(lambda x, w: (x / len(chosen)).reshape(w.shape), total, first)
        state.update(jax.block_until_ready(mean))

    def loss() -> float:
        flat = (x[: protocol.JUDGED].reshape(-1, *x.shape[2:]) for x in (past, future))
        return float(objective(state, dict(zip(("past", "future"), flat, strict=True))))

    protocol.serve(lambda: state.update(first), run_round, loss)


if __name__ == "__main__":
    main()
