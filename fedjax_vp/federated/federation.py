"""A federation: traces, window masks and labels as device arrays, and clients as bags of sessions.

Windows are never stored: a window is a pair (session, now) and is gathered from its trace inside the graph.
Nor need traces be: those of a procedural federation are generated where they are used (`traces_of`).
All training windows stand in one order, sessions of client 0 first, then of client 1, and so on. A client is
then a contiguous range of ranks in that order, however ragged its bag is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fedjax_vp.data.splits import Split
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.errors import UserError
from fedjax_vp.models.base import Inputs, WindowShape


class Windows(NamedTuple):
    """The windows of one phase, by session; sessions whose windows lie alike may share a row."""

    now: Int[Array, "row window"]  # index of the last observed sample, padded with the last one
    count: Int[Array, "session"]
    row: Int[Array, "session"] | None = None  # None: session i has row i

    def at(self, session: Int[Array, "*any"], index: Int[Array, "*any"]) -> Int[Array, "*any"]:
        """`now` of some windows: the windows of a session count from 0."""
        return self.now[session if self.row is None else self.row[session], index]

    def of(self, session: Int[Array, "*any"]) -> Int[Array, "*any window"]:
        """`now` of all windows of some sessions, padded."""
        return self.now[session if self.row is None else self.row[session]]


class Bags(NamedTuple):
    """Which sessions a client holds, and where its training windows stand in the common order."""

    session: Int[Array, "member"]  # sessions with training windows, grouped by client
    first: Int[Array, "client+1"]  # index of each client's first member
    rank: Int[Array, "member+1"]  # rank of each member's first training window


class Traces(NamedTuple):
    """Traces to cut windows from."""

    direction: Float[Array, "row time 3"]
    t0: Float[Array, "row"]  # s


class Arrays(NamedTuple):
    """The part of a federation that lives on the device (an argument of every compiled function)."""

    direction: Float[Array, "session time 3"]  # time is 0 where traces are generated
    t0: Float[Array, "session"]  # s
    train: Windows
    valid: Windows
    adapt: Windows
    test: Windows
    lead: Windows  # before the first one that is measured
    bags: Bags
    make: Callable[[Array], Array] | None = None  # a pytree: session -> [time, 3]; None: traces are stored


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
        split: boolean masks over `now`.
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
    count = split.windows("train")
    owner = {"session": np.arange(len(count)), "user": traces.user, "all": np.zeros(len(count), int)}[client]
    member = np.flatnonzero(count)
    member = member[np.argsort(owner[member], kind="stable")]
    first = np.flatnonzero(np.r_[True, np.diff(owner[member]) != 0, True])
    rank = np.r_[0, np.cumsum(count[member])]
    if rank[-1] >= 2**31:
        raise UserError(f"{traces.name} has {rank[-1]} training windows: stay below 2^31 (protocol.stride)")
    bags = Bags(*(jnp.asarray(x, jnp.int32) for x in (member, first, rank)))
    masks = {phase: getattr(split, phase) for phase in ("train", "valid", "adapt", "test")}
    masks["lead"] = np.zeros_like(split.test) if split.lead is None else split.lead
    phases = {phase: _windows(mask, split.row) for phase, mask in masks.items()}
    stored = jnp.asarray(traces.direction), jnp.asarray(traces.t0, jnp.float32)
    arrays = Arrays(*stored, bags=bags, make=_maker(traces), **phases)
    labels = {**traces.labels, "user": traces.user, "video": traces.video, "session": np.arange(len(count))}
    return Federation(
        arrays=arrays,
        shape=shape,
        labels={name: np.asarray(code, np.int32) for name, code in labels.items()},
        num_clients=len(first) - 1,
        max_sessions=int(np.diff(first).max()),
        max_windows=int(np.diff(rank[first]).max()),
    )


def _maker(traces: TraceSet) -> Callable[[Array], Array] | None:
    if traces.source is None:
        return None
    make, key, ids = traces.source

    def generate(key: Array, ids: Array, session: Array) -> Array:
        return make(key, ids[session])

    return jax.tree_util.Partial(generate, key, jnp.asarray(ids, jnp.int32))


def _windows(mask: np.ndarray, row: np.ndarray | None = None) -> Windows:
    count = mask.sum(axis=1)
    order = np.argsort(~mask, axis=1, kind="stable")[:, : max(int(count.max()), 1)]
    last = np.clip(count - 1, 0, None)
    position = np.minimum(np.arange(order.shape[1])[None, :], last[:, None])
    now = jnp.asarray(np.take_along_axis(order, position, axis=1), jnp.int32)
    if row is None:
        return Windows(now, jnp.asarray(count, jnp.int32))
    return Windows(now, jnp.asarray(count[row], jnp.int32), jnp.asarray(row, jnp.int32))


def thin(windows: Windows, most: int) -> Windows:
    """At most `most` windows a session, spread evenly: for quick looks on the way."""
    size = min(most, windows.now.shape[1])
    spread = jnp.maximum(windows.count, size)  # fewer than `size` windows are all taken, once each
    position = jnp.arange(size)[None, :] * spread[:, None] // size
    count = windows.count.shape[0]
    row = jnp.arange(count) if windows.row is None else windows.row
    return Windows(windows.now[row[:, None], position], jnp.minimum(windows.count, size))


def sampled(federation: Federation, most: int) -> Federation:
    """The same federation, of which at most `most` sessions are tested and as many validated (0: all)."""

    def some(windows: Windows) -> Windows:
        count = np.asarray(windows.count)
        sessions = np.flatnonzero(count)
        if not most or len(sessions) <= most:
            return windows
        kept = sessions[np.arange(most) * len(sessions) // most]
        few = np.zeros_like(count)
        few[kept] = count[kept]
        return windows._replace(count=jnp.asarray(few))

    arrays = federation.arrays
    return replace(federation, arrays=arrays._replace(test=some(arrays.test), valid=some(arrays.valid)))


def trained_by(arrays: Arrays, sessions: Bool[np.ndarray, "session"]) -> Arrays:
    """The same arrays where only some sessions have training windows: the others' clients do no work."""
    count = jnp.where(jnp.asarray(sessions), arrays.train.count, 0)
    rank = jnp.cumsum(count[arrays.bags.session]).astype(jnp.int32)
    bags = arrays.bags._replace(rank=jnp.concatenate([jnp.zeros(1, jnp.int32), rank]))
    return arrays._replace(train=arrays.train._replace(count=count), bags=bags)


def traces_of(arrays: Arrays, session: Int[Array, "slot"]) -> tuple[Traces, Int[Array, "slot"]]:
    """Traces of some sessions, and the row that each of them has there.

    Stored traces are handed on whole, at no cost; others are generated here, so ask once for what is used
    several times.
    """
    if arrays.make is None:
        return Traces(arrays.direction, arrays.t0), session
    made = jax.vmap(arrays.make)(session)  # over sessions
    return Traces(made, arrays.t0[session]), jnp.arange(session.shape[0])


def gather(
    arrays: Arrays, shape: WindowShape, session: Int[Array, "window"], now: Int[Array, "window"]
) -> tuple[Inputs, Float[Array, "window horizon 3"]]:
    """Cuts windows of any sessions out of their traces; see `cut`."""
    traces, row = traces_of(arrays, session)
    return cut(traces, shape, row, now)


def cut(
    traces: Traces, shape: WindowShape, row: Int[Array, "window"], now: Int[Array, "window"]
) -> tuple[Inputs, Float[Array, "window horizon 3"]]:
    """Cuts windows out of traces.

    Args:
        traces: from `traces_of`.
        shape: window lengths in samples.
        row: of each window's trace.
        now: index of each window's last observed sample.

    Returns:
        What a predictor sees, and the unit vectors of the `shape.horizon` samples after `now`.
    """

    def one(r: Int[Array, ""], k: Int[Array, ""]) -> Float[Array, "sample 3"]:
        start = (r, k - shape.history + 1, jnp.zeros((), r.dtype))
        return jax.lax.dynamic_slice(traces.direction, start, (1, shape.history + shape.horizon, 3))[0]

    samples = jax.vmap(one)(row, now)
    inputs = Inputs(samples[:, : shape.history], traces.t0[row] + now / shape.rate_hz)
    return inputs, samples[:, shape.history :]


def cut_early(
    arrays: Arrays, shape: WindowShape, session: Int[Array, ""], now: Int[Array, "window"]
) -> tuple[tuple[Inputs, Float[Array, "window horizon 3"]], Float[Array, "window horizon"]]:
    """Cuts `adapt` windows of a session, and says which samples of their targets adaptation may see.

    These are the samples up to the one after the session's last adapt window; the others are replaced by the
    last direction observed, and weigh 0.
    """
    traces, row = traces_of(arrays, session[None])
    inputs, target = cut(traces, shape, jnp.full(now.shape, row[0]), now)
    last = arrays.adapt.at(session, jnp.maximum(arrays.adapt.count[session] - 1, 0))
    seen = now[:, None] + jnp.arange(shape.horizon)[None, :] <= last
    target = jnp.where(seen[..., None], target, inputs.past[:, -1:])
    return (inputs, target), seen.astype(jnp.float32)


def client_windows(arrays: Arrays, client: Int[Array, "*any"]) -> Int[Array, "*any"]:
    """Training windows of clients."""
    bags = arrays.bags
    return bags.rank[bags.first[client + 1]] - bags.rank[bags.first[client]]
