"""AVTrack360 (Fremerey et al., MMSys 2018).

Files ``Head_rotation/<user>.json``: for each video the headset's pitch and yaw in whole degrees about ten
times a second, yaw positive to the right and pitch positive downwards.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from fedjax_vp.data.head import direction_of_angles
from fedjax_vp.data.importers import Layout, looks_like_radians
from fedjax_vp.data.resample import BadTrace, RawSession, Rules


def _parse(source: str, match: re.Match[str], content: bytes) -> list[RawSession]:
    try:
        entries = json.loads(content)["data"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadTrace(
            "format", f"{source}: not the JSON of AVTrack360 with a list 'data' ({error})"
        ) from error
    if not isinstance(entries, list) or not entries:
        raise BadTrace("format", f"{source}: 'data' is not a list of sessions")
    tables = [_entry(source, index, entry) for index, entry in enumerate(entries)]
    angles = np.concatenate([rows[:, 1:] for _, rows in tables])
    if looks_like_radians(*angles.T):
        raise BadTrace("angles", f"{source}: pitch and yaw all lie within 6.3: radians where degrees belong")
    return [
        RawSession(
            user=match["user"],
            video=video,
            source=f"{source}: data[{index}]",
            row=np.arange(1, len(rows) + 1),
            time_s=rows[:, 0],
            direction=direction_of_angles(-rows[:, 1], -rows[:, 2]),
        )
        for index, (video, rows) in enumerate(tables)
    ]


def _entry(source: str, index: int, entry: Any) -> tuple[str, np.ndarray]:
    """Video name and [row, (sec, yaw, pitch)] of one session."""
    try:
        video = str(entry["filename"]).rsplit(".", 1)[0]
        samples = entry["pitch_yaw_roll_data_hmd"]
        rows = np.array([(s["sec"], s["yaw"], s["pitch"]) for s in samples], np.float64)
    except (KeyError, TypeError, ValueError) as error:
        what = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
        raise BadTrace(
            "format",
            f"{source}: data[{index}]: {what}; expected filename and "
            "pitch_yaw_roll_data_hmd with sec, yaw, pitch",
        ) from error
    return video, rows.reshape(-1, 3)


AVTRACK = Layout(
    name="avtrack360",
    title="Fremerey et al., MMSys 2018: 48 users x 20 videos",
    license="GPL-3.0",
    pattern=re.compile(r"(?:^|/)Head_rotation/(?P<user>\d+)\.json$"),
    expected="Head_rotation/<user>.json",
    num_files=48,
    rules=Rules(mend_order=True, mend_holes=True),
    parse=_parse,
)
