"""Soft memberships from the losses of K models on a client's windows.

FedSoft (Ruan, Joe-Wong, "FedSoft: Soft Clustered Federated Learning with Proximal Local Updating", AAAI
2022): with n_ks of a client's n_k windows best served by model s,

    u_ks = max(n_ks / n_k, sigma),      normalized to sum 1                                           (1)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def wins(losses: Float[Array, "k window"]) -> Float[Array, "k window"]:
    """1 for the model that serves a window best; its mean over windows is n_ks / n_k."""
    return jax.nn.one_hot(jnp.argmin(losses, axis=0), losses.shape[0], axis=0)


def importance(won: Float[Array, "client k"], floor: float | Float[Array, ""]) -> Float[Array, "client k"]:
    """(1).

    Args:
        won: share of each client's windows that each model serves best.
        floor: sigma, the least share of a model before they are normalized.
    """
    share = jnp.maximum(won, floor)
    return share / jnp.sum(share, axis=1, keepdims=True)
