"""A time limit that is set anew for each command and hardly ever met."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Deadline"]


class Deadline:
    """Calls a function once a time limit has passed, unless it was lifted or set anew before.

    The event loop's own timers cost as much as the relay of a command, and there are several limits a command. So a
    timer that is set stays, and looks whether the limit still stands when it goes off.

    Args:
        loop: the event loop.
        passed: called when the limit has passed.
    """

    __slots__ = ("_at", "_goes_off", "_loop", "_passed", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, passed: Callable[[], object]) -> None:
        self._loop = loop
        self._passed = passed
        self._at: float | None = None
        self._goes_off = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Let the limit be so many seconds from now."""
        self._at = at = self._loop.time() + seconds
        if self._timer is None or at < self._goes_off:
            if self._timer is not None:
                self._timer.cancel()
            self._start(at)

    def lift(self) -> None:
        """Let there be no limit."""
        self._at = None

    def close(self) -> None:
        """Lift the limit for good, and let nothing of it stay in the event loop."""
        self._at = None
        self._passed = _nothing  # whose method it was may go at once, without the collector
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, at: float) -> None:
        self._goes_off = at
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._at is None:
            return
        if self._at <= self._goes_off:
            self._at = None
            self._passed()
        else:
            self._start(self._at)


def _nothing() -> None:
    pass
