"""Soft memberships from the losses of K models on a client's windows.

FedSoft (Ruan, Joe-Wong, "FedSoft: Soft Clustered Federated Learning with Proximal Local Updating", AAAI
2022): with n_ks of a client's n_k windows best served by model s,

    u_ks = max(n_ks / n_k, sigma),      normalized to sum 1                                           (1)

FedEM (Marfoq et al., "Federated Multi-Task Learning under a Mixture of Distributions", NeurIPS 2021):

    q(s | window) = softmax_s(log pi_s - loss_s(window))                                              (2)
    pi_s          = mean over windows of q(s | window)                                                (3)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def importance(
    losses: Float[Array, "window k"], weight: Float[Array, "window"], floor: float | Float[Array, ""]
) -> Float[Array, "k"]:
    """(1).

    Args:
        losses: of each model on each window.
        weight: of the windows, 0 for padding; without any weight the models share equally.
        floor: sigma, the least share of a model before they are normalized.
    """
    wins = jax.nn.one_hot(jnp.argmin(losses, axis=1), losses.shape[1])
    share = jnp.maximum(_mean(wins, weight), floor)
    return share / jnp.sum(share)


def responsibilities(
    losses: Float[Array, "window k"], mixture: Float[Array, "k"]
) -> Float[Array, "window k"]:
    """(2): rows sum to 1; a model of no weight takes no window."""
    return jax.nn.softmax(jnp.log(mixture)[None, :] - losses, axis=1)


def mixture(responsibility: Float[Array, "window k"], weight: Float[Array, "window"]) -> Float[Array, "k"]:
    """(3), with the windows weighted as in `importance`."""
    return _mean(responsibility, weight)


def _mean(x: Float[Array, "window k"], weight: Float[Array, "window"]) -> Float[Array, "k"]:
    total = jnp.sum(weight)
    mean = weight @ x / jnp.where(total > 0, total, 1.0)
    return jnp.where(total > 0, mean, 1 / x.shape[1])
