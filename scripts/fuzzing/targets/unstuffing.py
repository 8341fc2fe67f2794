"""Messages that are kept: their dots are as the author wrote them, however the octets come."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Final

from batv.smtp.data import Unstuffer
from scripts.fuzzing.pieces import ways
from tests.support import reference

__all__ = ["check", "checking"]

_END: Final = b"\r\n.\r\n"


def check(octets: bytes) -> None:
    """Take the dots off a message.

    Args:
        octets: what a client sends after the 354; the end is put behind it.
    """
    message = reference.scanned(octets + _END).message
    assert message is not None
    wanted = reference.unstuffed(message)
    for pieces in ways(message):
        unstuffer = Unstuffer()
        assert b"".join(map(unstuffer.feed, pieces)) + unstuffer.finish() == wanted
        assert unstuffer.finish() == b""


checking = partial(nullcontext, check)
