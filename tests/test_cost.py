"""Costs by depth of the hierarchy, counted by hand."""

from __future__ import annotations

import probe

from fedjax_vp.cost import by_depth
from fedjax_vp.federated.settings import Level, Method, Mixing

BODY, HEAD = 3 * 4, 3 * 3 * 4  # bytes of the probe's parameters
LEVELS = (
    Level("global", owns=("*",)),
    Level("video", by="video", owns=("head/*",)),  # three videos
    Level("user", by="user", owns=("body",)),  # four users
)


def test_bytes_by_depth() -> None:
    found = by_depth(probe.sim(Method(levels=LEVELS, local=probe.local())))
    assert found.level == ["global", "video", "user"]
    assert found.groups == [1, 3, 4]
    both = BODY + HEAD
    assert found.server_bytes == [both, both + 3 * HEAD, both + 3 * HEAD + 4 * BODY]
    assert found.headset_bytes == [both] * 3  # one composed model
    assert found.sent_bytes == [both] * 3
    assert all(0 < latency < 1 for latency in found.latency_s)


def test_prefixes_that_are_mixed_are_kept_apart() -> None:
    found = by_depth(probe.sim(Method(levels=LEVELS, local=probe.local(), mixing=Mixing("mixture"))))
    assert found.headset_bytes == [BODY + HEAD, BODY + 2 * HEAD, 2 * (BODY + HEAD)]


def test_what_stays_on_the_headset_is_neither_stored_nor_sent() -> None:
    levels = (Level("global", owns=("body",)), Level("user", by="user", owns=("head/*",)))
    found = by_depth(probe.sim(Method(levels=levels, client="user", local=probe.local())))
    assert found.server_bytes == found.sent_bytes == [BODY, BODY]
    assert found.headset_bytes == [BODY, BODY + HEAD]
