"""Numbers in sentences: one message, two messages."""

from __future__ import annotations

__all__ = ["counted"]


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the singular for one; the plural is that with an s."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
