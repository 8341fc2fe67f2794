"""The message: its end is where the reference finds it, and nothing that is sent on looks like an end to anybody."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Final

from batv.smtp.data import DataScanner
from scripts.fuzzing.pieces import ways
from tests.support import reference

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["check", "checking"]

_END: Final = b"\r\n.\r\n"
_MOST_HELD_OCTETS: Final = 4


def check(octets: bytes) -> None:
    """Read octets as a message, in pieces of several sizes.

    Args:
        octets: what a client sends after the 354.
    """
    wanted = reference.scanned(octets)
    for pieces in ways(octets):
        found, sent, held = _scan(pieces)
        assert found == wanted
        if wanted.message is None:
            # Whatever comes next, what was sent on must have been right: so if the end comes next.
            whole = reference.scanned(octets + _END).message
            assert whole is not None
            assert whole.startswith(sent)
            assert held <= _MOST_HELD_OCTETS
    message = wanted.message
    if message is None:
        return
    assert message.count(b"\r") == message.count(b"\n") == message.count(b"\r\n"), "a bare line end"
    assert b"\0" not in message
    lenient = (b"\r\n" + message).replace(b"\r\n", b"\n")
    assert b"\n.\n" not in lenient, "an end within the message"
    if not wanted.bare:
        assert message == octets[: len(message)], "a clean message was changed"


def _scan(pieces: Sequence[bytes]) -> tuple[reference.Scanned, bytes, int]:
    """Return what was found, what was sent on, and how many octets are held back."""
    scanner = DataScanner()
    sent = left = b""
    came = 0
    for piece in pieces:
        if scanner.done:
            left += piece
        else:
            came += len(piece)
            sent += scanner.feed(piece)
    if not scanner.done:
        assert scanner.rest == b""
        return reference.Scanned(None, b"", 0, bare=False), sent, came - scanner.octets
    return reference.Scanned(sent, scanner.rest + left, scanner.octets, scanner.bare), sent, 0


checking = partial(nullcontext, check)
