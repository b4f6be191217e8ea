"""Protocols: which windows train, validate, adapt and test.

A protocol names every window by ``now``, the index of its last observed sample, and gives disjoint masks over
it. Windows are chosen by video time, never by index. What holds for every protocol:

- History and target of a window lie wholly in one phase: no sample of a test window belongs to a train,
  valid or adapt window of the same session, and no sample of a valid window to a train window.
- Sessions of unseen users or videos are never trained or validated on; a session that mixes a seen user with
  an unseen video (or the reverse) is left out where both are to be unseen.
- Validation windows come from sessions (or parts of sessions) kept from training, never from test sessions.

**Adaptation.** With ``adapt_s`` > 0, windows of test sessions that have a history and at least one sample of
their target within the session's first ``adapt_s`` seconds are `adapt` (``start_s`` does not hold for them).
Of their targets only the samples up to then may be used (`federation.cut_early`): so two seconds of history
leave something to learn from after 2 s already. Test windows begin, history included, after
``max(adapt_s, reserve_s)`` seconds: set ``reserve_s`` to the largest budget of a comparison and every budget
is scored on the same test windows. Budgets up to ``start_s - history_s`` (by default 4 s) never change them.
The same holds for validation sessions: what is learned on their windows is learned of adapted models.

**Leading windows.** What a headset has forecast in a tested (or validation) session before the first window
that counts, but after budget and reserve, is neither trained on nor measured, but known by then (`lead`): a
headset may judge its models by it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fedjax_vp.data import roles as roles_of
from fedjax_vp.data.protocols import (
    NetLLM,
    Protocol,
    UnseenBoth,
    UnseenUsers,
    UnseenVideos,
    Windows,
    WithinSession,
)
from fedjax_vp.data.roles import Roles
from fedjax_vp.data.traces import TraceSet

__all__ = [
    "NetLLM",
    "Protocol",
    "Split",
    "UnseenBoth",
    "UnseenUsers",
    "UnseenVideos",
    "Windows",
    "WithinSession",
    "split",
]

_SLACK_S = 1e-6  # times are compared with round numbers


class Split(NamedTuple):
    """Disjoint masks over `now`, a row for each trace or for traces that are split alike; host side."""

    train: np.ndarray  # bool [row, time]
    valid: np.ndarray  # bool [row, time]
    adapt: np.ndarray  # bool [row, time]
    test: np.ndarray  # bool [row, time]
    lead: np.ndarray | None = None  # bool [row, time] before a session's first test or valid window
    row: np.ndarray | None = None  # int32 [trace]; None: trace i has row i

    def windows(self, phase: str) -> np.ndarray:
        """Windows of each trace in a phase: int [trace]."""
        count = getattr(self, phase).sum(axis=1)
        return count if self.row is None else count[self.row]


def split(traces: TraceSet, protocol: Protocol) -> Split:
    """Phases of every window of `traces` under `protocol`.

    Args:
        traces: Sessions on one time grid.
        protocol: Settings of one of the protocols of this module.

    Returns:
        Disjoint masks over `now`; where nothing is stored, a row for each length and role of a session.

    Raises:
        UserError: Traces or lists the protocol cannot be used with.
    """
    return _split_roles(traces, protocol, roles_of.of(traces, protocol))


class Arrivals(NamedTuple):
    """What comes after training under `unseen_both`; test users are new in both."""

    videos: Split  # training users train on the new videos; test windows are those of the protocol itself
    users: Split  # training as under the protocol itself, tests on the known videos


def arrivals(traces: TraceSet, protocol: UnseenBoth) -> Arrivals:
    """Splits of the time when the test videos, or the test users on known videos, arrive."""
    users, videos = roles_of.unseen(traces, protocol)
    first = roles_of.of(traces, protocol)
    roles = Roles(~users & videos, first.valid, first.test), Roles(first.train, first.valid, users & ~videos)
    return Arrivals(*(_split_roles(traces, protocol, one) for one in roles))


def _split_roles(traces: TraceSet, protocol: Protocol, roles: Roles) -> Split:
    if traces.source is None:
        return _masks(traces, protocol, roles)
    kinds = np.stack([traces.length, *roles], axis=1)
    _, first, row = np.unique(kinds @ [8, 4, 2, 1], return_index=True, return_inverse=True)
    samples = np.arange(traces.length.max())
    some = replace(
        traces.subset(first),
        direction=np.zeros((len(first), len(samples), 3), np.float32),
        valid=samples[None, :] < traces.length[first][:, None],
    )
    masks = _masks(some, protocol, Roles(*(role[first] for role in roles)))
    return masks._replace(row=row.astype(np.int32))


def _masks(traces: TraceSet, protocol: Protocol, roles: Roles) -> Split:
    match protocol:
        case WithinSession():
            return _split_time(traces, protocol)
        case NetLLM():
            return _split_netllm(traces, protocol, roles)
    return _split_sessions(traces, protocol, roles)


def _samples(traces: TraceSet, protocol: Windows) -> tuple[int, int]:
    """History and horizon in samples."""
    return (
        max(1, round(protocol.history_s * traces.rate_hz)),
        max(1, round(protocol.horizon_s * traces.rate_hz)),
    )


def _on_stride(traces: TraceSet, protocol: Windows, stride: int) -> np.ndarray:
    """Bool [trace, time]: every `stride`-th sample by video time, counted from start_s."""
    steps = np.rint((traces.time_s() - protocol.start_s) * traces.rate_hz).astype(np.int64)
    return steps % stride == 0


def _split_sessions(traces: TraceSet, protocol: Windows, roles: Roles) -> Split:
    """Whole sessions to phases."""
    history, horizon = _samples(traces, protocol)
    seen = traces.eligible(history, horizon, protocol.start_s)
    learned = seen & _on_stride(traces, protocol, protocol.stride)
    adapt, free = _adapt(traces, protocol)
    valid, test = roles.valid[:, None], roles.test[:, None]
    tested = _on_stride(traces, protocol, protocol.test_stride) & test
    counts = (learned & free & valid) | (seen & free & tested)
    before = counts.any(axis=1, keepdims=True) & ~np.maximum.accumulate(counts, axis=1)
    later = _age_s(traces) > max(protocol.adapt_s, protocol.reserve_s) - _SLACK_S
    on_stride = (_on_stride(traces, protocol, protocol.stride) & valid) | tested
    return Split(
        train=learned & roles.train[:, None],
        valid=counts & valid,
        adapt=adapt & (valid | test),
        test=counts & test,
        lead=traces.eligible(history, horizon) & on_stride & later & before,
    )


def _age_s(traces: TraceSet) -> np.ndarray:
    """Seconds since a session's first sample: [trace, time]."""
    begin = traces.valid.argmax(axis=1)[:, None]
    return (np.arange(traces.valid.shape[1])[None, :] - begin) / traces.rate_hz


def _adapt(traces: TraceSet, protocol: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Windows within the budget at a session's start, and windows wholly after budget and reserve."""
    history, horizon = _samples(traces, protocol)
    age_s = _age_s(traces)
    within = age_s + 1 / traces.rate_hz <= protocol.adapt_s + _SLACK_S
    within[:, age_s.shape[1] - horizon :] = False  # cut with whole targets, then masked
    missing = np.cumsum(~traces.valid & (age_s >= 0), axis=1) > 0  # a hole ends what may be seen
    within &= ~np.pad(missing[:, 1:], ((0, 0), (0, 1)))
    adapt = within & traces.eligible(history, 1) & _on_stride(traces, protocol, protocol.stride)
    kept_s = max(protocol.adapt_s, protocol.reserve_s)
    after = age_s - (history - 1) / traces.rate_hz > kept_s + _SLACK_S
    return adapt, after if kept_s > 0 else np.ones_like(after)


def _split_time(traces: TraceSet, protocol: WithinSession) -> Split:
    """Three stretches of each session, a full window apart, so that no sample is in two of them."""
    history, horizon = _samples(traces, protocol)
    span = history + horizon
    seen = traces.eligible(history, horizon, protocol.start_s)
    now = np.arange(seen.shape[1])[None, :]
    first = seen.argmax(axis=1)
    windows = np.where(seen.any(axis=1), seen.shape[1] - seen[:, ::-1].argmax(axis=1) - first, 0)
    # Each border between phases costs the windows that would lie on both of its sides.
    spare2, spare3 = windows - (span - 1), windows - 2 * (span - 1)
    three = (spare3 >= 3) & (protocol.valid_share > 0)
    spare = np.where(three, spare3, spare2)
    num_test = np.clip(np.rint(spare * (1 - protocol.train_share)), 1, np.maximum(1, spare - 2))
    num_valid = np.where(
        three, np.clip(np.rint((spare - num_test) * protocol.valid_share), 1, spare - num_test - 1), 0
    )
    two = spare2 >= 2
    num_test = np.where(two, num_test, 0)
    num_train = np.where(two, spare - num_test - num_valid, windows)
    valid_from = first + num_train + span - 1
    test_from = np.where(two, first + windows - num_test, seen.shape[1])
    learned = seen & _on_stride(traces, protocol, protocol.stride)
    return Split(
        train=learned & (now < (first + num_train)[:, None]),
        valid=learned & (now >= valid_from[:, None]) & (now < (valid_from + num_valid)[:, None]),
        adapt=np.zeros_like(seen),
        test=seen & _on_stride(traces, protocol, protocol.test_stride) & (now >= test_from[:, None]),
    )


def _split_netllm(traces: TraceSet, protocol: NetLLM, roles: Roles) -> Split:
    """Whole sessions to phases, each window with enough of its session left."""
    phases = _split_sessions(traces, protocol, roles)
    last = traces.valid.shape[1] - 1 - traces.valid[:, ::-1].argmax(axis=1)
    left_s = (last[:, None] - 1 - np.arange(traces.valid.shape[1])[None, :]) / traces.rate_hz
    tail = left_s >= protocol.tail_s - _SLACK_S
    valid, test = phases.valid & tail, phases.test & tail
    lead = phases.lead & (valid | test).any(axis=1, keepdims=True)
    return Split(phases.train & tail, valid, phases.adapt, test, lead)
