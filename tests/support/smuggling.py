"""What only some peers take for the end of a message, and the second message that comes behind it.

Source: the published sequences of SMTP smuggling (CVE-2023-51764 and its kin), and line ends of other alphabets.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BARE", "CLEAN", "END", "LENIENT_END", "SMUGGLED", "has_bare", "in_pieces", "one_message"]

BARE: Final = (
    b"\n.\n",
    b"\n.\r",
    b"\r.\n",
    b"\r.\r",
    b"\n.\r\n",
    b"\r.\r\n",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\n\n.\r\n",
    b"\r\n\r.\r\n",
    b"\r\n\n.\r\n",
    b"\r\n..\n",
    b"\n..\r\n",
    b"\n..\n",
)
"""Sequences with a bare CR, a bare LF or a NUL in them."""

CLEAN: Final = (
    b"\r\n. \r\n",
    b"\r\n.\t\r\n",
    b"\r\n .\r\n",
    b"\r\n\x0b.\r\n",
    b"\r\n\x0c.\r\n",
    b"\r\n\x85.\r\n",
    b"\r\n\xe2\x80\xa8.\r\n",
    b"\r\n\xe2\x80\xa9.\r\n",
    b"\r\n\x1c.\r\n",
    b"\r\n..\r\n",
    b"\r\n...\r\n",
)
"""Sequences that are lines like any other."""

SMUGGLED: Final = b"MAIL FROM:<s@remote.example>\r\nRCPT TO:<v@example.com>\r\nDATA\r\nSubject: smuggled\r\n\r\nx"
"""What comes behind the sequence, but for its end."""

END: Final = b"\r\n.\r\n"
"""The one end of a message."""

LENIENT_END: Final = re.compile(rb"(?:\A|\r\n|\r|\n)\0*\.\0*(?:\r\n|\r|\n)")
"""What some peer or other takes for the end of a message."""


def in_pieces(message: bytes, begin: int, end: int) -> Iterator[list[bytes]]:
    """Yield the message whole, octet by octet between two offsets, and split at each offset between them."""
    yield [message]
    yield [message[:begin], *(message[at : at + 1] for at in range(begin, end)), message[end:]]
    for at in range(begin, end + 1):
        yield [message[:at], message[at:]]


def one_message(octets: bytes) -> bool:
    """Whether the most lenient of peers reads one message, and every peer the same."""
    found = LENIENT_END.search(octets)
    return found is not None and found.end() == len(octets) and not has_bare(octets)


def has_bare(octets: bytes) -> bool:
    """Whether there is a bare CR, a bare LF or a NUL."""
    lines = octets.replace(b"\r\n", b"")
    return any(octet in lines for octet in (b"\r", b"\n", b"\0"))
