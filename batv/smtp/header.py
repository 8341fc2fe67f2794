"""The header of a message on its way: a field put before it, fields of that name taken out, the Message-ID read.

Both classes take what a DataScanner gives back: every line ends with CRLF, and dots are stuffed, so that a line which
the next hop sees as `X-Batv-Status: ...` may come here as `.X-Batv-Status: ...`. The header ends at the first empty
line. Where a message has none, all of it counts as header, so that a field hidden behind a line that is no field
does not get past.

Source: RFC 5322 sections 2.2, 3.6.4 and 4.5; RFC 5321 section 4.5.2.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

__all__ = ["PEEK_OCTETS", "HeaderPeek", "StatusField", "field_value", "header_end"]

# The end of the header, or a field of ours: obsolete syntax lets any white space stand before the colon, and some
# readers unfold lines first, so that the colon may stand on the next one.
_STOP = re.compile(rb"(?im)^(?:(\r\n)|\.?X-Batv-Status[ \t]*+(?::[^\n]*+\n|\r\n))")
_CONTINUATION = re.compile(rb"(?:\.?[ \t][^\n]*+\n)*+")
_OURS_SO_FAR = re.compile(rb"(?i)\.?X-Batv-Status[ \t]*+(?::|\Z)")
_CONTINUES = re.compile(rb"\.?[ \t]")

_UNDECIDED_OCTETS: Final = 2048
"""Octets of a line without an end that are held back; more than enough to see whose field it is."""

PEEK_OCTETS: Final = 65_536
"""Enough for a hundred Received fields, and a bound for what a message costs that is all header."""

_TENANT = re.compile(rb"(?m)^\.?x-ms-exchange-crosstenant-id[ \t]*+:[ \t]*+(?:\r\n[ \t]++)?([^\r\n]*+)")
_SENDER_FIELDS: Final = (b"\nfrom", b"\nsender", b"\nreply-to", b"\ndisposition-notification-to")
_VALUE = re.compile(rb"[ \t]*+:([^\r\n]*+(?:\r\n[ \t][^\r\n]*+)*+)")
_MESSAGE_ID = re.compile(rb"(?im)^\.?Message-ID[ \t]*+:[ \t]*+(?:\r\n[ \t]++)?([^\r\n]{1,998})")


class StatusField:
    """Puts `X-Batv-Status: <status>` before a message and takes out the fields of that name that it came with.

    Args:
        status: value of the field to put on; None to take out only.
    """

    __slots__ = ("_body", "_held", "_in_line", "_prefix", "_taking")

    MAX_OCTETS: ClassVar = len(b"X-Batv-Status: invalid, bad-signature\r\n")
    """By how much a message grows at most."""

    def __init__(self, status: bytes | None) -> None:
        self._prefix = b"X-Batv-Status: %b\r\n" % status if status is not None else b""
        self._held = b""
        self._in_line = False  # the octets to come continue a line whose fate is decided
        # The field under way is taken out; a message that begins with white space would go on with ours.
        self._taking = status is not None
        self._body = False

    def feed(self, octets: bytes) -> bytes:
        """Return what to send on of the octets."""
        if self._body:
            return octets
        out = [self._prefix]
        octets = self._held + octets
        self._prefix = self._held = b""
        at = self._rest_of_line(octets, out) if self._in_line else 0
        last = octets.rfind(b"\r\n", at)
        if last >= 0:
            at = self._whole_lines(octets, at, last + 2, out)
        if at < len(octets) and not self._in_line:
            self._begun_line(octets[at:], out)
        return b"".join(out)

    def finish(self) -> bytes:
        """Return what was held back, or the field where no octets came."""
        held, self._held = self._prefix + self._held, b""
        self._prefix = b""
        return held

    def _rest_of_line(self, octets: bytes, out: list[bytes]) -> int:
        """Go on with a line whose fate is decided; return where the next one begins."""
        end = octets.find(b"\r\n")
        self._in_line = end < 0
        if end < 0:
            self._held = b"\r" if octets.endswith(b"\r") else b""
        stop = end + 2 if end >= 0 else len(octets)
        if not self._taking:
            out.append(octets[: stop - len(self._held)])
        return stop

    def _whole_lines(self, octets: bytes, at: int, end: int, out: list[bytes]) -> int:
        """Let lines through that end before `end`, but for fields of ours; return how far that went."""
        if self._taking:
            at = self._skipped(octets, at, end)
        while at < end:
            stop = _STOP.search(octets, at, end)
            if stop is None:
                out.append(octets[at:end])
                return end
            if stop[1] is not None:
                self._body = True
                out.append(octets[at:])
                return len(octets)
            out.append(octets[at : stop.start()])
            at = self._skipped(octets, stop.end(), end)
        return at

    def _skipped(self, octets: bytes, at: int, end: int) -> int:
        continuation = _CONTINUATION.match(octets, at, end)
        at = continuation.end() if continuation is not None else at
        self._taking = at == end
        return at

    def _begun_line(self, octets: bytes, out: list[bytes]) -> None:
        """Hold a line back whose end has not come, unless it is long enough to decide about it."""
        if len(octets) <= _UNDECIDED_OCTETS:
            self._held = octets
            return
        self._taking = bool(_OURS_SO_FAR.match(octets) or (self._taking and _CONTINUES.match(octets)))
        self._in_line = True
        self._held = b"\r" if octets.endswith(b"\r") else b""
        if not self._taking:
            out.append(octets[: len(octets) - len(self._held)])


class HeaderPeek:
    """Reads a few fields out of the header of a message, or of its first octets where the header is longer.

    Args:
        limit: how many octets are looked at.

    Attributes:
        message_id: value of Message-ID; empty if there is none.
        hops: how many Received fields there are.
        tenants: values of X-MS-Exchange-CrossTenant-Id, in lower case; read on `read_tenants` only, and only where the
            limit leaves out nothing of the header.
        senders: values of the first From, Sender, Reply-To and Disposition-Notification-To, whom replies may go to, in
            lower case; read on `read_senders` only.
        done: whether all was seen that is looked at.
    """

    __slots__ = (
        "_limit",
        "_reads_senders",
        "_reads_tenants",
        "_seen",
        "done",
        "hops",
        "message_id",
        "senders",
        "tenants",
    )

    def __init__(self, limit: int = PEEK_OCTETS, *, read_tenants: bool = False, read_senders: bool = False) -> None:
        self.message_id = b""
        self.senders: tuple[bytes, ...] = ()
        self.hops = 0
        self.tenants: frozenset[bytes] = frozenset()
        self.done = False
        self._limit = limit
        self._reads_tenants = read_tenants
        self._reads_senders = read_senders
        self._seen = b""

    def feed(self, octets: bytes) -> None:
        """Look at the next octets of the message."""
        if self.done:
            return
        seen = self._seen + octets[: self._limit] if self._seen else octets[: self._limit]
        end = header_end(seen, len(self._seen))
        self._seen = seen
        if end >= 0 or len(seen) >= self._limit:
            self._read(seen if end < 0 else seen[:end], whole=end >= 0)

    def finish(self) -> None:
        """Take what was seen as all there is."""
        if not self.done:
            self._read(self._seen)

    def _read(self, header: bytes, *, whole: bool = True) -> None:
        self.done = True
        self._seen = b""
        folded = b"\n" + header.lower()
        # A pattern costs as much as the relay of the message, so it is begun where the name was found.
        at = folded.find(b"message-id")
        match = _MESSAGE_ID.search(header, max(at - 2, 0)) if at >= 0 else None
        if match is not None:
            self.message_id = match[1].strip(b" \t")
        self.hops = folded.count(b"\nreceived:") + folded.count(b"\n.received:")
        if self._reads_senders:
            found = (field_value(folded, name) for name in _SENDER_FIELDS)
            self.senders = tuple(value for value in found if value)
        # Behind what was looked at another tenant might be named.
        if self._reads_tenants and whole:
            self.tenants = frozenset(value.strip(b" \t") for value in _TENANT.findall(folded))


def header_end(octets: bytes | bytearray, seen: int = 0) -> int:
    """Return how many octets of a message are its header, the last line end among them; -1 where it has no end yet.

    Args:
        octets: the first octets of the message.
        seen: how many of them were looked through before.
    """
    if octets.startswith(b"\r\n"):
        return 0
    end = octets.find(b"\r\n\r\n", max(seen - 3, 0))
    return end + 2 if end >= 0 else -1


def field_value(folded: bytes, name: bytes) -> bytes:
    """Return the value of the first field of a name, folds and all; nothing where there is none.

    Args:
        folded: a header in lower case, a line feed before it.
        name: a line feed and the name in lower case.
    """
    at = folded.find(name)
    while at >= 0:
        match = _VALUE.match(folded, at + len(name))
        if match is not None:
            return match[1]
        at = folded.find(name, at + 1)
    return b""
