"""Who trains, validates and tests under a protocol: whole sessions, by their users and videos."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedjax_vp.data.protocols import (
    DAVID_TEST_VIDEOS,
    NETLLM_LISTS,
    NetLLM,
    Protocol,
    UnseenBoth,
    UnseenUsers,
    UnseenVideos,
    WithinSession,
)
from fedjax_vp.data.traces import TraceSet
from fedjax_vp.errors import UserError


class Roles(NamedTuple):
    """What whole sessions are for, each bool [trace]; where time decides, every session is for everything."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def of(traces: TraceSet, protocol: Protocol) -> Roles:
    """Roles of all sessions under a protocol.

    Raises:
        UserError: The protocol names users or videos that the traces do not have.
    """
    everyone = np.ones(traces.num_traces, bool)
    match protocol:
        case WithinSession():
            return Roles(everyone, everyone, everyone)
        case NetLLM():
            return _named_roles(traces)
        case UnseenUsers():
            tests = _ranks(traces.user) % protocol.folds == protocol.fold
            trains = ~tests
            if protocol.rehearse:
                tests = _every(traces.user, trains, protocol.rehearse)
                trains &= ~tests
        case UnseenVideos():
            tests = _ranks(traces.video) % protocol.folds == protocol.fold
            trains = ~tests
        case UnseenBoth():
            users, videos = unseen(traces, protocol)
            trains, tests = ~users & ~videos, users & videos
    valids = _keep_valid(traces, trains, protocol.valid_share)
    return Roles(trains & ~valids, valids, tests)


def unseen(traces: TraceSet, protocol: UnseenBoth) -> tuple[np.ndarray, np.ndarray]:
    """Bool [trace]: the user tests, the video tests."""
    return _ranks(traces.user) % 2 == 1, _test_videos(traces, protocol)


def _test_videos(traces: TraceSet, protocol: UnseenBoth) -> np.ndarray:
    """Bool [trace]: the video tests."""
    names = protocol.test_videos
    if not names and set(DAVID_TEST_VIDEOS) <= set(traces.video_ids):
        names = DAVID_TEST_VIDEOS
    if not names:
        return _ranks(traces.video) % 5 == 4
    unknown = sorted(set(names) - set(traces.video_ids))
    if unknown:
        raise UserError(
            f"protocol.test_videos names {unknown[0]!r}, which {traces.name} does not have: "
            f"give some of {', '.join(traces.video_ids[:5])}, ..."
        )
    return np.isin(traces.video, [traces.video_ids.index(name) for name in names])


def _keep_valid(traces: TraceSet, trains: np.ndarray, share: float) -> np.ndarray:
    """Bool [trace]: training sessions for validation, spread over users and videos.

    The only training session of a user or of a video keeps training.
    """
    keep = np.zeros(len(trains), bool)
    if share > 0 and trains.any():
        user, video = traces.user[trains], traces.video[trains]
        chosen = (_ranks(user) + _ranks(video)) % round(1 / share) == 0
        chosen &= (np.bincount(user)[user] > 1) & (np.bincount(video)[video] > 1)
        keep[trains] = chosen
    return keep


def _ranks(codes: np.ndarray) -> np.ndarray:
    """Position [trace] of each trace's user or video among those present."""
    return np.unique(codes, return_inverse=True)[1]


def _every(codes: np.ndarray, among: np.ndarray, step: int) -> np.ndarray:
    """Bool [trace]: the trace's user or video is a `step`-th one of those present `among` the traces."""
    found = np.zeros(len(codes), bool)
    found[among] = _ranks(codes[among]) % step == step - 1
    return found


def _named_roles(traces: TraceSet) -> Roles:
    """NetLLM's lists; sessions of users and videos from different lists are left out."""
    if traces.name not in NETLLM_LISTS:
        raise UserError(
            f"protocol netllm has no lists for dataset {traces.name!r}: choose {' or '.join(NETLLM_LISTS)}"
        )
    users, videos = NETLLM_LISTS[traces.name]
    lists = (
        _named(traces.user, traces.user_ids, user_list) & _named(traces.video, traces.video_ids, video_list)
        for user_list, video_list in zip(users, videos, strict=True)
    )
    return Roles(*lists)


def _named(codes: np.ndarray, ids: tuple[str, ...], wanted: tuple[int, ...]) -> np.ndarray:
    """Bool [trace]: the trace's user or video is one of the wanted."""
    return np.isin(codes, [index for index, name in enumerate(ids) if name in set(map(str, wanted))])
