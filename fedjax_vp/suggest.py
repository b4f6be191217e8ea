"""The nearest right name, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggestion(name: str, names: Iterable[str]) -> str:
    """What to do about a name that is none of `names`.

    >>> suggestion("fedagv", ["fedavg", "fedsgd"])
    'did you mean fedavg?'
    >>> suggestion("x", ["fedavg", "fedsgd"])
    'choose one of fedavg, fedsgd'
    """
    names = list(names)
    near = difflib.get_close_matches(name, names, 1, 0.6) or [one for one in names if name and name in one]
    return f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}"
