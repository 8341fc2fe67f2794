"""The header: no spelling of a status field that came with a message gets past, and all else does."""

from __future__ import annotations

import re
from contextlib import nullcontext
from functools import partial
from typing import Final

from batv.smtp.header import HeaderPeek, StatusField
from scripts.fuzzing.pieces import ways
from tests.support import reference

__all__ = ["check", "checking"]

_END: Final = b"\r\n.\r\n"

# White space without end after the name is taken for the field, for its line is not waited for.
_ENDLESS: Final = re.compile(rb"(?i)x-batv-status[ \t]{900}")


def check(octets: bytes) -> None:
    """Put a status field before a message, or none, and look into its header.

    Args:
        octets: what a client sends after the 354; the end is put behind it.
    """
    message = reference.scanned(octets + _END).message
    assert message is not None
    if _ENDLESS.search(message) is not None:
        return
    for status in (None, b"valid"):
        wanted = reference.marked(status, message)
        for pieces in ways(message):
            field = StatusField(status)
            found = b"".join(map(field.feed, pieces)) + field.finish()
            assert found == wanted
        assert len(wanted) <= len(message) + StatusField.MAX_OCTETS
    for pieces in ways(message):
        peek = HeaderPeek(read_tenants=True)
        for piece in pieces:
            peek.feed(piece)
        peek.finish()
        assert (peek.message_id, peek.hops, peek.tenants) == reference.peeked(message)


checking = partial(nullcontext, check)
