"""Who takes part in a round: everyone, a uniform draw, or those online (some of whom drop out midway)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from fedjax_vp.federated.settings import Availability, Everyone, Participation


class Cohort(NamedTuple):
    """The clients of one round."""

    client: Int[Array, "cohort"]
    invited: Bool[Array, "cohort"]  # is sent the model (False: a padded place)
    reports: Bool[Array, "cohort"]  # trains and reports back


def cohort_size(settings: Participation, num_clients: int) -> int:
    """Places in a round's cohort (static)."""
    return num_clients if isinstance(settings, Everyone) else min(settings.clients, num_clients)


def draw(key: Array, settings: Participation, num_clients: int) -> Cohort:
    """Draws the cohort of a round.

    Availability draws uniformly among the clients that are online; if fewer are online than places, the rest
    of the places stay empty. A participant that drops out has received the model but reports nothing.
    """
    size = cohort_size(settings, num_clients)
    everyone = jnp.arange(num_clients, dtype=jnp.int32)
    full = jnp.ones(size, bool)
    if isinstance(settings, Everyone):
        return Cohort(everyone, full, full)
    if not isinstance(settings, Availability):
        return Cohort(_first(jax.random.bits(key, (num_clients,)), size), full, full)
    key_order, key_online, key_drop = jax.random.split(key, 3)
    online = jax.random.bernoulli(key_online, settings.online, (num_clients,))
    order = jnp.where(online, 0.0, 2.0) + jax.random.uniform(key_order, (num_clients,))
    client = _first(order, size)
    invited = online[client]
    # Drop-out follows the client, not its place in the cohort.
    stays = jax.random.bernoulli(key_drop, 1 - settings.dropout, (num_clients,))[client]
    return Cohort(client, invited, invited & stays)


def _first(order: Array, size: int) -> Int[Array, "cohort"]:
    """Clients with the least numbers."""
    return jnp.argsort(order)[:size].astype(jnp.int32)
