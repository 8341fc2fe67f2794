"""Waits for what another process does: looks again and again until it is there, or until the time is up."""

from __future__ import annotations

import time
from threading import Event
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["until"]

_Found = TypeVar("_Found")
_SECONDS_BETWEEN_LOOKS: Final = 0.02


def until(look: Callable[[], _Found | None], what: str, seconds: float = 30.0) -> _Found:
    """Return the first thing that `look` finds.

    Args:
        look: returns what it finds, or something false.
        what: what is waited for, as a noun.
        seconds: for how long.

    Raises:
        AssertionError: nothing was found in time.
    """
    deadline = time.monotonic() + seconds
    never = Event()
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {seconds:g} s")
        never.wait(_SECONDS_BETWEEN_LOOKS)
