r"""The message between DATA and its final dot: found, made harmless, taken in pieces of any size.

Rules:

1. Only the client's own CRLF.CRLF ends the message (and `.` CRLF right after the 354). Peers that take other line ends
   let one message be smuggled into two; so no octets that we send on may look like an end to such a peer.
2. What goes out holds no bare CR, no bare LF and no NUL: LF becomes CRLF, CR and NUL become a space, and a line
   that begins with a dot after a bare LF, or that is a lone dot ended by one, gets a dot more (is stuffed).
3. A message without such octets goes out as it came, dots stuffed by the client included.
4. Memory does not grow with the message: at most four octets are held back, those that may begin the end.

Whole pieces are searched with `find`, `splitlines` and `replace`, which run at memory speed; a loop over lines, or a
pattern, costs twenty times as much.

Source: RFC 5321 sections 4.1.1.4, 4.5.2 and 2.3.8; the vulnerability "SMTP smuggling" (CVE-2023-51764).
"""

from __future__ import annotations

from typing import Final

__all__ = ["DataScanner", "Unstuffer"]

_END: Final = b"\r\n.\r\n"
_END_PREFIXES: Final = (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r")


class DataScanner:
    """Takes the octets after 354 and gives back what to send on, without the final dot.

    Attributes:
        done: the end has been seen.
        rest: octets after the end: the client's next commands. Empty until the end has been seen.
        octets: octets of the message so far, as received, without the final dot.
        bare: a bare CR, bare LF or NUL has been seen.
    """

    __slots__ = ("_after_bare_lf", "_held", "_virtual", "bare", "done", "octets", "rest")

    def __init__(self) -> None:
        # The line end of the DATA command counts: a dot may come first.
        self._held = b"\r\n"
        self._virtual = 2
        self._after_bare_lf = False
        self.done = False
        self.rest = b""
        self.octets = 0
        self.bare = False

    def feed(self, octets: bytes) -> bytes:
        """Return what to send on of the octets; nothing may be fed once `done`."""
        piece = self._held + octets
        end = piece.find(_END)
        if end >= 0:
            self.done = True
            self.rest = piece[end + len(_END) :]
            piece, self._held = piece[: end + 2], b""
        else:
            self._held = next((prefix for prefix in _END_PREFIXES if piece.endswith(prefix)), b"")
            if self._held:
                piece = piece[: -len(self._held)]
        if not piece:
            return b""
        virtual, self._virtual = self._virtual, 0
        self.octets += len(piece) - virtual
        if _clean(piece):
            # A held line end keeps CRLF and the dot after it in one piece, so nothing but a bare LF can have
            # made the line that this piece begins in the middle of a line of our making.
            if self._after_bare_lf and piece.startswith(b"."):
                piece = b"." + piece
            self._after_bare_lf = False
        else:
            self.bare = True
            piece = self._harmless(piece)
        return piece[virtual:] if virtual else piece

    def _harmless(self, piece: bytes) -> bytes:
        # With the NULs gone, NUL can stand for the client's own line ends while the bare ones are replaced.
        piece = piece.replace(b"\0", b" ").replace(b"\r\n", b"\0").replace(b"\r", b" ")
        if self._after_bare_lf and piece.startswith(b"."):
            piece = b"." + piece
        self._after_bare_lf = not self.done and piece.endswith(b"\n")
        piece = piece.replace(b"\n.", b"\n..").replace(b"\0.\n", b"\0..\n")
        return piece.replace(b"\n", b"\r\n").replace(b"\0", b"\r\n")


def _clean(piece: bytes) -> bool:
    """Return whether there is no bare CR, no bare LF and no NUL in a piece: each line end then has two octets."""
    lines = piece.splitlines()
    ends = len(lines) if piece[-1:] in {b"\n", b"\r"} else len(lines) - 1
    return len(b"".join(lines)) + 2 * ends == len(piece) and b"\0" not in piece


class Unstuffer:
    """Turns a message as it goes over the wire into the message itself, with line ends as they are.

    Takes what a DataScanner gives back: there every line ends with CRLF.
    """

    __slots__ = ("_at_line_start", "_held")

    def __init__(self) -> None:
        self._at_line_start = True
        self._held = b""

    def feed(self, octets: bytes) -> bytes:
        """Return the octets with the first dot of each line that has one taken away."""
        octets = self._held + octets
        # A line end, or half of one, is held until it is known whether a dot follows.
        self._held = next((tail for tail in (b"\r\n", b"\r") if octets.endswith(tail)), b"")
        if self._held:
            octets = octets[: -len(self._held)]
        if not octets:
            return b""
        if self._at_line_start and octets.startswith(b"."):
            octets = octets[1:]
        self._at_line_start = False
        return octets.replace(b"\r\n.", b"\r\n")

    def finish(self) -> bytes:
        """Return what was held."""
        held, self._held = self._held, b""
        return held
