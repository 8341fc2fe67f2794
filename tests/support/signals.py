"""Signals, as programs meet them that somebody starts by hand."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["heeding_interrupts"]


@contextmanager
def heeding_interrupts() -> Iterator[None]:
    """Let the programs that are started meanwhile have SIGINT at its default, whatever this process inherited.

    What a shell without job control runs in its background has SIGINT ignored, and so has every program started by it:
    a test that interrupts one would wait for ever. A signal that is handled here is at its default in a new program.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
