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
    near = nearest(name, names)
    return f"did you mean {near}?" if near else f"choose one of {', '.join(names)}"


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, if one of them is near.

    >>> nearest("fedagv", ["fedavg", "fedsgd"])
    'fedavg'
    """
    names = list(names)
    near = difflib.get_close_matches(name, names, 1, 0.6) or [one for one in names if name and name in one]
    return near[0] if near else None
