"""The header of a message on its way: a field put before it, fields of that name taken out, the Message-ID read.

The header ends at the first empty line. Where a message has none, all of it counts as header, so that a field hidden
behind a line that is no field does not get past. Both classes take what a DataScanner gives back: there every line
ends with CRLF.

Source: RFC 5322 sections 2.2 and 3.6.4.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["HeaderPeek", "StatusField"]

_NAME: Final = b"x-batv-status"
# Some readers unfold lines first, so that the colon may come after a line end.
_OURS = re.compile(rb"(?i)X-Batv-Status[ \t]*(?::|\r\n)")
# Longest run of a line's first octets that may still turn out to be the field: its name and the white space after it
# (RFC 5322 section 4.5 lets any amount stand there; more than this is nobody's).
_UNDECIDED_OCTETS: Final = 256

_PEEK_OCTETS: Final = 16_384
_MESSAGE_ID = re.compile(rb"(?im)^Message-ID[ \t]*:[ \t]*(?:\r\n[ \t]+)?([^\r\n]{1,998})")


class StatusField:
    """Puts `X-Batv-Status: <status>` before a message and takes out the fields of that name that it came with.

    Args:
        status: value of the field to put on; None to take out only.
    """

    __slots__ = ("_body", "_held", "_in_line", "_prefix", "_taking")

    def __init__(self, status: bytes | None) -> None:
        self._prefix = b"X-Batv-Status: %b\r\n" % status if status is not None else b""
        self._held = b""
        self._in_line = False  # the octets to come continue a line that is let through or taken out
        # The field under way is taken out; a message that begins with white space would go on with ours.
        self._taking = status is not None
        self._body = False

    @property
    def added_octets(self) -> int:
        """Octets by which the message grows at most."""
        return len(self._prefix)

    def feed(self, octets: bytes) -> bytes:
        """Return what to send on of the octets."""
        if self._body:
            return octets
        out = [self._prefix] if self._prefix else []
        self._prefix = b""
        octets = self._held + octets
        self._held = b""
        at = 0
        while at < len(octets):
            if not self._in_line and not self._starts(octets, at):
                break
            if self._body:
                out.append(octets[at:])
                return b"".join(out)
            end = octets.find(b"\r\n", at)
            stop = end + 2 if end >= 0 else len(octets)
            if end < 0 and octets.endswith(b"\r"):
                stop -= 1
                self._held = b"\r"
            if not self._taking:
                out.append(octets[at:stop])
            self._in_line = end < 0
            if self._held:
                break
            at = stop
        return b"".join(out)

    def finish(self) -> bytes:
        """Return what was held: the start of a last line that was cut short."""
        held, self._held = self._prefix + self._held, b""
        self._prefix = b""
        return b"" if self._taking and self._in_line else held

    def _starts(self, octets: bytes, at: int) -> bool:
        """Decide what the line that starts here is; False if more octets are needed, which are then held."""
        if octets.startswith(b"\r\n", at):
            self._body = True
            return True
        head = octets[at : at + _UNDECIDED_OCTETS]
        if head[:1] in {b" ", b"\t"}:
            return True  # continues the field before it, and shares its fate
        if _OURS.match(head):
            self._taking = True
            return True
        if len(head) < _UNDECIDED_OCTETS and b"\r\n" not in head and _may_be_ours(head):
            self._held = head
            return False
        self._taking = False
        return True


def _may_be_ours(head: bytes) -> bool:
    if head == b"\r":
        return True
    name = head.rstrip(b" \t\r")[: len(_NAME)].lower()
    return _NAME.startswith(name) and (len(name) < len(_NAME) or not head[len(_NAME) :].strip(b" \t\r"))


class HeaderPeek:
    """Reads the Message-ID out of the first 16 KiB of a message."""

    __slots__ = ("_seen", "message_id")

    def __init__(self) -> None:
        self._seen: bytes | None = b""
        self.message_id = ""

    def feed(self, octets: bytes) -> None:
        """Look at the next octets of the message."""
        if self._seen is None:
            return
        seen = self._seen + octets[:_PEEK_OCTETS]
        end = 0 if seen.startswith(b"\r\n") else seen.find(b"\r\n\r\n")
        if end < 0 and len(seen) < _PEEK_OCTETS:
            self._seen = seen
            return
        self._seen = None
        self._read(seen if end < 0 else seen[: end + 2])

    def finish(self) -> None:
        """Take what was seen as all there is."""
        if self._seen is not None:
            self._read(self._seen)
            self._seen = None

    def _read(self, header: bytes) -> None:
        match = _MESSAGE_ID.search(header)
        if match is not None:
            self.message_id = match[1].strip().decode("utf-8", "backslashreplace")
