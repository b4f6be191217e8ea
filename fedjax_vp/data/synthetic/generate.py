"""From settings to sessions: the pure function of a session, and whole `TraceSet`s made of it by blocks.

With ``stored: false`` a `TraceSet` holds who watched what and for how long, and the function that makes the
traces (`fedjax_vp.federated.federation.traces_of` calls it where they are used).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from fedjax_vp.data.synthetic.calibrated import Synthetic, calibrated_session
from fedjax_vp.data.synthetic.latents import SyntheticSession
from fedjax_vp.data.synthetic.planted import Planted, planted_session, sessions_of_users
from fedjax_vp.data.traces import Source, TraceSet

SessionFn = Callable[[Key[Array, ""], Int[Array, ""]], SyntheticSession]

_BLOCK = 512  # sessions generated at once
_FACTS_BLOCK = 2**13  # the same without their traces
_FEW = 4096  # sessions below which compiling well costs more time than it saves


def session_fn(settings: Synthetic | Planted) -> SessionFn:
    """Pure function (key, session id) -> session, for use inside a jit, a vmap or a scan.

    Sizes are static (`settings.num_samples`); key and id may be traced: seeds are one more vmapped axis, and
    a federation of any size needs no storage. With `root_key(settings)` the sessions are those
    of `generate`.
    """
    if isinstance(settings, Synthetic):
        return partial(calibrated_session, settings)
    return partial(planted_session, settings)


def root_key(settings: Synthetic | Planted) -> Key[Array, ""]:
    """Key of the federation that `generate` makes."""
    return jax.random.key(settings.seed)


def session_ids(settings: Synthetic | Planted) -> np.ndarray:
    """Ids int32 [session] of all sessions that exist, in order of users: user * videos + slot."""
    if isinstance(settings, Synthetic):
        return np.arange(settings.users * settings.videos, dtype=np.int32)
    exists = np.arange(settings.videos)[None, :] < sessions_of_users(settings)[:, None]
    return np.flatnonzero(exists).astype(np.int32)


def generate(settings: Synthetic | Planted) -> TraceSet:
    """All sessions of a synthetic federation.

    Planted groups come with their ground truth in ``labels``: `user_category` and `video_category` are those
    a trace was made with; with ``iid`` they stay with the trace, whoever it is dealt to.

    Args:
        settings: Calibrated (`Synthetic`) or planted (`Planted`).

    Returns:
        Traces from video time 0, in order of (user, video) before they are dealt.
    """
    ids = session_ids(settings)
    made = _in_blocks(settings, ids)
    order = np.lexsort((made["video"], made["user"]))
    made = {name: part[order] for name, part in made.items()}
    count, num_samples = made["direction"].shape[:2]
    user, labels = made["user"], {}
    if isinstance(settings, Planted):
        labels = {name: made[name] for name in ("user_category", "video_category")}
        user = _dealt(settings, user, made["video"]) if settings.iid else user
    return TraceSet(
        name=settings.preset if isinstance(settings, Synthetic) else settings.kind,
        rate_hz=float(settings.rate_hz),
        direction=made["direction"],
        length=made["length"],
        t0=np.zeros(count),
        valid=np.arange(num_samples)[None, :] < made["length"][:, None],
        user=user,
        video=made["video"],
        user_ids=tuple(str(index + 1) for index in range(settings.users)),
        video_ids=tuple(str(index + 1) for index in range(settings.videos)),
        labels=labels,
        source=None if settings.stored else Source(_maker(settings), root_key(settings), ids[order]),
    )


def _maker(settings: Synthetic | Planted) -> Callable[[Array, Array], Array]:
    make = session_fn(settings)
    return lambda key, session: make(key, session).direction


def _in_blocks(settings: Synthetic | Planted, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Sessions on the host by field, made by one compiled function of a fixed number of them."""
    block = min(_BLOCK if settings.stored else _FACTS_BLOCK, len(ids))
    quick = len(ids) <= _FEW and jax.default_backend() == "cpu"
    # Neither seed nor users enter the compiled function, so that federations which differ in them share it.
    make = _compiled(replace(settings, seed=0, users=1), quick)
    key = root_key(settings)
    padded = np.pad(ids, (0, -len(ids) % block), mode="edge")
    blocks = [jax.device_get(make(key, jnp.asarray(part))) for part in padded.reshape(-1, block)]
    fields = zip(SyntheticSession._fields, zip(*blocks, strict=True), strict=True)
    return {name: np.concatenate(parts)[: len(ids)] for name, parts in fields}


@lru_cache(maxsize=8)
def _compiled(
    settings: Synthetic | Planted, quick: bool
) -> Callable[[Key[Array, ""], Int[Array, "session"]], SyntheticSession]:
    """Sessions of a block of ids; `quick` to compile rather than quick to run."""
    options = {"xla_backend_optimization_level": 0} if quick else None
    whole = session_fn(settings)

    def make(key: Key[Array, ""], session: Int[Array, ""]) -> SyntheticSession:
        made = whole(key, session)
        return made if settings.stored else made._replace(direction=made.direction[:0])

    return jax.jit(jax.vmap(make, in_axes=(None, 0)), compiler_options=options)


def _dealt(settings: Planted, user: np.ndarray, video: np.ndarray) -> np.ndarray:
    """Users int32 [trace] after each video's traces are dealt at random among those who watched it."""
    draw = np.random.default_rng(settings.seed)
    dealt = user.copy()
    for index in range(settings.videos):
        watched = np.flatnonzero(video == index)
        dealt[watched] = draw.permutation(user[watched])
    return dealt
