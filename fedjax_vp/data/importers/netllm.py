"""Wu et al. (MMSys 2017) and Jin et al. (MM 2022, "Where Are You Looking?") as NetLLM publishes them.

Files ``data/viewports/<Wu2017|Jin2022>/video<j>/5Hz/simple_5Hz_user<i>.csv``: playback time, roll, pitch,
yaw. The three angles are intrinsic z-x'-y'' Euler angles of the headset's orientation R in a left-handed
frame with y up; (pitch, yaw) is *not* (latitude, longitude). The viewer looks along R e_z.
Channel "euler" keeps the published degrees, which NetLLM's own error is taken over.
"""

from __future__ import annotations

import re

import numpy as np

from fedjax_vp.data.head import direction_of_euler, quaternion_of_euler
from fedjax_vp.data.importers import Layout, looks_like_radians
from fedjax_vp.data.resample import BadTrace, RawSession, Rules
from fedjax_vp.data.sources import read_matrix

_COLUMNS = ("playback time", "roll", "pitch", "yaw")
_JIN_CLIP_S = 60.0
_JIN_CLIPS = 9  # shown in one sitting, with the clock running on
_RULES = Rules(mend_order=True, mend_holes=True, start_slack_s=0.05)


def _parse(name: str, source: str, match: re.Match[str], content: bytes) -> list[RawSession]:
    rows = read_matrix(source, content, _COLUMNS)
    if looks_like_radians(*rows[:, 1:].T):
        raise BadTrace(
            "angles", f"{source}: roll, pitch and yaw all lie within 6.3: radians where degrees belong"
        )
    euler = np.radians(rows[:, 1:])
    time_s = rows[:, 0]
    if name == "jin_mmsys22":
        time_s = time_s - _JIN_CLIP_S * ((int(match["video"]) - 1) % _JIN_CLIPS)
    return [
        RawSession(
            user=match["user"],
            video=match["video"],
            source=source,
            row=np.arange(1, len(rows) + 1),
            time_s=time_s,
            direction=direction_of_euler(euler, name),
            channels={"quaternion": quaternion_of_euler(euler), "euler": rows[:, 1:]},
        )
    ]


def _layout(name: str, folder: str, title: str, num_files: int) -> Layout:
    file = r"/video(?P<video>\d+)/5Hz/simple_5Hz_user(?P<user>\d+)\.csv$"
    return Layout(
        name=name,
        title=title,
        license="MIT (repository)",
        pattern=re.compile(rf"(?:^|/){folder}{file}"),
        expected=f"{folder}/video<j>/5Hz/simple_5Hz_user<i>.csv",
        num_files=num_files,
        rules=_RULES,
        parse=lambda source, match, content: _parse(name, source, match, content),
    )


WU = _layout("wu_mmsys17", "Wu2017", "Wu et al., MMSys 2017: 48 users x 18 videos", 864)
JIN = _layout("jin_mmsys22", "Jin2022", "Jin et al., MM 2022: 84 users x 27 videos", 2268)
