"""SMTP replies: a value, and a parser that takes octets as they arrive.

Grammar, RFC 5321 section 4.2::

    Reply-line = *( Reply-code "-" [ textstring ] CRLF ) Reply-code [ SP textstring ] CRLF
    Reply-code = %x32-35 %x30-35 %x30-39
    textstring = 1*(%d09 / %d32-126)                ; and UTF-8 after RFC 6531

Rules:

1. What a reply may cost is bounded, since a next hop can be broken or taken over (a line that never ends, lines
   that never end).
2. A reply that breaks the grammar is an error, never a guess: a bare line feed inside could be read as a second reply.

Source: RFC 5321 sections 4.2 and 4.5.3.1.5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from batv.errors import ReplyError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Reply", "ReplyParser"]

_MAX_LINE_OCTETS: Final = 2048
"""RFC 5321 section 4.5.3.1.5 says 512; servers that explain a policy write more. aiosmtplib's bound is 8192."""

_MAX_REPLY_OCTETS: Final = 65_536
"""An EHLO reply with every registered extension has about 2000."""

_MAX_CACHED_OCTETS: Final = 512
"""RFC 5321 section 4.5.3.1.5."""

# The second digit goes up to 9 in the field (Exim's and Microsoft's 5yz for custom policies).
_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([\t -~\x80-\xff]*))?")


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply, of ours or of a peer.

    Attributes:
        code: three digits, 200 to 599.
        texts: the text of each line, without code and line end; at least one.
        octets: the reply as it goes over the wire.
        positive: whether this is 2yz: done.
        intermediate: whether this is 3yz: go on.
    """

    code: int
    texts: tuple[bytes, ...]
    octets: bytes = field(init=False, repr=False, compare=False)
    positive: bool = field(init=False, repr=False, compare=False)
    intermediate: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Work out what is asked again and again: most replies say what the one before said."""
        *before, last = self.texts
        lines = [b"%d-%b\r\n" % (self.code, text) for text in before]
        lines.append(b"%d %b\r\n" % (self.code, last))
        object.__setattr__(self, "octets", b"".join(lines))
        object.__setattr__(self, "positive", self.code < 300)  # noqa: PLR2004 -- RFC 5321 section 4.2.1
        object.__setattr__(self, "intermediate", 300 <= self.code < 400)  # noqa: PLR2004 -- RFC 5321 section 4.2.1

    @classmethod
    def of(cls, code: int, *texts: str) -> Reply:
        """Return a reply of ours; texts are ASCII, the enhanced code included."""
        return cls(code, tuple(text.encode("ascii") for text in texts))

    @property
    def transient(self) -> bool:
        """Whether this is 4yz: try again later."""
        return 400 <= self.code < 500  # noqa: PLR2004 -- RFC 5321 section 4.2.1

    @property
    def permanent(self) -> bool:
        """Whether this is 5yz: do not try again."""
        return self.code >= 500  # noqa: PLR2004 -- RFC 5321 section 4.2.1

    def __str__(self) -> str:
        """Return the reply in one line, for the log."""
        return f"{self.code} " + " ".join([text.decode("utf-8", "backslashreplace") for text in self.texts])


class ReplyParser:
    """Takes octets as they arrive and gives back whole replies."""

    def __init__(self) -> None:
        self._buffer = b""
        self._code = 0
        self._texts: list[bytes] = []
        self._octets = 0

    @property
    def idle(self) -> bool:
        """Whether nothing of a reply is under way."""
        return not self._buffer and not self._texts

    def feed(self, octets: bytes) -> Iterable[Reply]:
        """Return each reply that is now whole, one after the other.

        Raises:
            ReplyError: the octets are no reply, or too long for one; nothing that follows can be trusted. It comes
                after the replies before it.
        """
        if not self._buffer and not self._texts and octets.find(b"\r\n") == len(octets) - 2:
            reply = _one_line(octets[:-2])
            if reply is not None:
                return (reply,)
        return self._replies(octets)

    def _replies(self, octets: bytes) -> Iterator[Reply]:
        *lines, self._buffer = (self._buffer + octets).split(b"\r\n")
        for line in lines:
            reply = (None if self._texts else _one_line(line)) or self._line(line)
            if reply is not None:
                yield reply
        if b"\n" in self._buffer:
            raise ReplyError("a reply line ends with a bare line feed")
        # A CR at the end may be half of the line end.
        if len(self._buffer) > _MAX_LINE_OCTETS and len(self._buffer.removesuffix(b"\r")) > _MAX_LINE_OCTETS:
            raise ReplyError(f"a reply line is longer than {_MAX_LINE_OCTETS} octets")

    def _line(self, line: bytes) -> Reply | None:
        match = _LINE.fullmatch(line)
        if match is None or len(line) > _MAX_LINE_OCTETS:
            raise ReplyError("a reply line does not follow RFC 5321")
        code, separator, text = int(match[1]), match[2], match[3] or b""
        if self._texts and code != self._code:
            raise ReplyError("the lines of a reply have different codes")
        self._octets += len(line)
        if self._octets > _MAX_REPLY_OCTETS:
            raise ReplyError(f"a reply is longer than {_MAX_REPLY_OCTETS} octets")
        self._code = code
        self._texts.append(text)
        if separator == b"-":
            return None
        reply = Reply(code, tuple(self._texts))
        self._texts = []
        self._octets = 0
        return reply


@lru_cache(maxsize=128)
def _one_line(line: bytes) -> Reply | None:
    """Return the reply that a line without its end is, from a server that says much the same all day; else None."""
    match = _LINE.fullmatch(line)
    if match is None or match[2] != b" " or len(line) > _MAX_CACHED_OCTETS:
        return None
    return Reply(int(match[1]), (match[3] or b"",))
