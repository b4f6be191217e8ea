"""Resident memory of this process."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path


def peak_bytes() -> int:
    """Most memory this process has had resident since `forget_peak`; 0 where the system does not say."""
    try:
        kib = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return 1024 * int(kib.group(1)) if kib else 0


def forget_peak() -> None:
    """Starts the peak anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
