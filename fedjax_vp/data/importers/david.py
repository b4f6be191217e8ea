"""David et al. (MMSys 2018) as resampled for TRACK (Romero Rondon et al., TPAMI 2021).

Files ``David_MMSys_18/sampled_dataset/<video>/<user>``: time, x, y, z in a frame mirrored at x = 0.
"""

from __future__ import annotations

import re

import numpy as np

from fedjax_vp.data.importers import Layout
from fedjax_vp.data.resample import RawSession, Rules
from fedjax_vp.data.sources import read_matrix

_MIRROR = np.array([-1.0, 1.0, 1.0])


def _parse(source: str, match: re.Match[str], content: bytes) -> list[RawSession]:
    rows = read_matrix(source, content, ("t", "x", "y", "z"))
    return [
        RawSession(
            user=match["user"],
            video=match["video"],
            source=source,
            row=np.arange(1, len(rows) + 1),
            time_s=rows[:, 0],
            direction=rows[:, 1:] * _MIRROR,
        )
    ]


DAVID = Layout(
    name="david_mmsys18",
    title="David et al., MMSys 2018: 57 users x 19 videos",
    license="Apache-2.0 (repository)",
    pattern=re.compile(r"(?:^|/)sampled_dataset/(?P<video>[^/]+)/(?P<user>\d+)$"),
    expected="sampled_dataset/<video>/<user>",
    num_files=1083,
    rules=Rules(mend_order=True, mend_holes=True),
    parse=_parse,
)
