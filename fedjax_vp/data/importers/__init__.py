"""Published layouts of head traces: where their files lie and how their rows become directions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjax_vp.data.resample import RawSession, Rules


class Layout(NamedTuple):
    """One data set as its authors publish it."""

    name: str
    title: str
    license: str
    pattern: re.Pattern[str]  # of the session files' paths
    expected: str  # that path in words, for messages
    num_files: int  # in the complete data set, for the progress bar
    rules: Rules  # what the publication is known to need
    parse: Callable[[str, re.Match[str], bytes], list[RawSession]]  # (source, match of the path, content)


def layouts() -> dict[str, Layout]:
    """The known layouts by data set name."""
    from fedjax_vp.data.importers import avtrack, david, netllm

    known = (netllm.WU, netllm.JIN, david.DAVID, avtrack.AVTRACK)
    return {layout.name: layout for layout in known}


def looks_like_radians(*columns_deg: np.ndarray) -> bool:
    """Whether angles that are declared as degrees never leave one turn in radians.

    A head that stays within 6.3 degrees in every angle for a whole file is no viewer of a 360-degree video.
    """
    largest = max((float(np.nanmax(np.abs(c), initial=0.0)) for c in columns_deg), default=0.0)
    return 0 < largest <= 2 * np.pi + 1e-3
