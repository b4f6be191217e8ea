"""A federation: traces, window masks and labels as device arrays, and clients as bags of sessions.

Windows are never stored: a window is a pair (session, now) and is gathered from its trace inside the graph.
All training windows stand in one order, sessions of client 0 first, then of client 1, and so on. A client is
then a contiguous range of ranks in that order, however ragged its bag is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fedjax_vp.data.splits import Split
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.errors import UserError
from fedjax_vp.models.base import Inputs, WindowShape


class Windows(NamedTuple):
    """The windows of one phase, by session."""

    now: Int[Array, "session window"]  # index of the last observed sample, padded with the last one
    count: Int[Array, "session"]


class Bags(NamedTuple):
    """Which sessions a client holds, and where its training windows stand in the common order."""

    session: Int[Array, "member"]  # sessions with training windows, grouped by client
    first: Int[Array, "client+1"]  # index of each client's first member
    rank: Int[Array, "member+1"]  # rank of each member's first training window


class Arrays(NamedTuple):
    """The part of a federation that lives on the device (an argument of every compiled function)."""

    direction: Float[Array, "session time 3"]
    t0: Float[Array, "session"]  # s
    train: Windows
    valid: Windows
    adapt: Windows
    test: Windows
    bags: Bags


@dataclass(frozen=True, eq=False)
class Federation:
    """Device arrays and the static facts about them.

    Attributes:
        arrays: see `Arrays`.
        shape: window lengths, rate and the longest video.
        labels: group code of each session by label, int32 [session]; -1 where unknown.
        num_clients: clients with at least one training window.
        max_sessions: most sessions in one bag.
        max_windows: most training windows of one client.
    """

    arrays: Arrays
    shape: WindowShape
    labels: dict[str, np.ndarray]
    num_clients: int
    max_sessions: int
    max_windows: int

    @property
    def num_sessions(self) -> int:
        """Sessions, with or without training windows."""
        return self.arrays.t0.shape[0]


def build(traces: TraceSet, split: Split, shape: WindowShape, client: str = "session") -> Federation:
    """Puts traces and window masks on the device and deals the training sessions to clients.

    Args:
        traces: resampled traces; the session index is the trace index.
        split: boolean masks [trace, time] over `now`.
        shape: window lengths in samples.
        client: what one client holds: a `session`, all sessions of a `user`, or `all`.

    Raises:
        UserError: no session has a training window, or none has a test window.
    """
    for phase in ("train", "test"):
        if not getattr(split, phase).any():
            raise UserError(
                f"{traces.name}: the protocol leaves no {phase} window; "
                "lower protocol.start_s or horizon_s, or choose another protocol"
            )
    count = split.train.sum(axis=1)
    owner = {"session": np.arange(len(count)), "user": traces.user, "all": np.zeros(len(count), int)}[client]
    member = np.flatnonzero(count)
    member = member[np.argsort(owner[member], kind="stable")]
    first = np.flatnonzero(np.r_[True, np.diff(owner[member]) != 0, True])
    rank = np.r_[0, np.cumsum(count[member])]
    bags = Bags(*(jnp.asarray(x, jnp.int32) for x in (member, first, rank)))
    phases = {phase: _windows(getattr(split, phase)) for phase in ("train", "valid", "adapt", "test")}
    arrays = Arrays(jnp.asarray(traces.direction), jnp.asarray(traces.t0, jnp.float32), bags=bags, **phases)
    labels = {**traces.labels, "user": traces.user, "video": traces.video, "session": np.arange(len(count))}
    return Federation(
        arrays=arrays,
        shape=shape,
        labels={name: np.asarray(code, np.int32) for name, code in labels.items()},
        num_clients=len(first) - 1,
        max_sessions=int(np.diff(first).max()),
        max_windows=int(np.diff(rank[first]).max()),
    )


def _windows(mask: np.ndarray) -> Windows:
    count = mask.sum(axis=1)
    order = np.argsort(~mask, axis=1, kind="stable")[:, : max(int(count.max()), 1)]
    last = np.clip(count - 1, 0, None)
    position = np.minimum(np.arange(order.shape[1])[None, :], last[:, None])
    now = np.take_along_axis(order, position, axis=1)
    return Windows(jnp.asarray(now, jnp.int32), jnp.asarray(count, jnp.int32))


def thin(windows: Windows, most: int) -> Windows:
    """At most `most` windows a session, spread evenly: for quick looks on the way."""
    size = min(most, windows.now.shape[1])
    spread = jnp.maximum(windows.count, size)  # fewer than `size` windows are all taken, once each
    position = jnp.arange(size)[None, :] * spread[:, None] // size
    return Windows(jnp.take_along_axis(windows.now, position, axis=1), jnp.minimum(windows.count, size))


def gather(
    arrays: Arrays, shape: WindowShape, session: Int[Array, "window"], now: Int[Array, "window"]
) -> tuple[Inputs, Float[Array, "window horizon 3"]]:
    """Cuts windows out of their traces.

    Returns:
        What a predictor sees, and the unit vectors of the `shape.horizon` samples after `now`.
    """

    def cut(s: Int[Array, ""], k: Int[Array, ""]) -> Float[Array, "sample 3"]:
        start = (s, k - shape.history + 1, jnp.zeros((), s.dtype))
        return jax.lax.dynamic_slice(arrays.direction, start, (1, shape.history + shape.horizon, 3))[0]

    samples = jax.vmap(cut)(session, now)
    inputs = Inputs(samples[:, : shape.history], arrays.t0[session] + now / shape.rate_hz)
    return inputs, samples[:, shape.history :]


def client_windows(arrays: Arrays, client: Int[Array, "*any"]) -> Int[Array, "*any"]:
    """Training windows of clients."""
    bags = arrays.bags
    return bags.rank[bags.first[client + 1]] - bags.rank[bags.first[client]]
