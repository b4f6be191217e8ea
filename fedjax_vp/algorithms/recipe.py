"""What a named method is: a mapping of settings, laid under the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Recipe:
    """A published method, or one of the project's own, as choices in the slots.

    Attributes:
        name: What configs call it (`algorithm: NAME`).
        title: One line for lists.
        settings: Contribution to any section of a config; what it leaves out keeps its default, and whatever
            the user sets wins over it.
    """

    name: str
    title: str
    settings: Mapping[str, Any]
