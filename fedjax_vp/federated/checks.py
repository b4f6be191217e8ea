"""Checks that settings make of themselves; the config loader turns their errors into one line."""

from __future__ import annotations

import math


def require(condition: bool, message: str) -> None:
    """Refuses a setting with what is wrong with it.

    Raises:
        ValueError: The condition does not hold.
    """
    if not condition:
        raise ValueError(message)


def require_rate(lr: float, where: str) -> None:
    """Refuses a learning rate that is not a number above 0."""
    require(math.isfinite(lr) and lr > 0, f"{where}.lr is {lr}: give a number above 0")


def require_share(value: float, where: str) -> None:
    """Refuses a share outside [0, 1)."""
    require(0 <= value < 1, f"{where} is {value}: give a number in [0, 1)")
