"""EHLO keywords: which of the next hop's we can carry, and what we offer a client.

A relay may offer only what both it and its next hop can do (RFC 5321 section 2.2.2). PIPELINING is our own. Extensions
that change the message, the session's identity or a promise that only the next hop could keep are hidden, and their
parameters refused: the next hop would take `BODY=BINARYMIME`, and we could not send BDAT.

Source: RFC 5321 section 4.1.1.1; RFC 1870 (SIZE); RFC 2920 (PIPELINING); RFC 3461 (DSN); RFC 6152 (8BITMIME); RFC 6531.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batv.smtp.path import keywords

if TYPE_CHECKING:
    from batv.smtp.reply import Reply

__all__ = ["Capabilities", "hidden_parameter"]

_CARRIED: Final = (b"8BITMIME", b"SMTPUTF8", b"DSN", b"ENHANCEDSTATUSCODES")

# SIZE without a number: no limit is known.
_EVERYTHING: Final = dict.fromkeys((b"SIZE", *_CARRIED), b"")

_HIDDEN_PARAMETERS: Final = frozenset(
    {
        b"AUTH",  # RFC 4954
        b"BY",  # DELIVERBY, RFC 2852
        b"HOLDFOR",  # FUTURERELEASE, RFC 4865
        b"HOLDUNTIL",
        b"MT-PRIORITY",  # RFC 6710
        b"REQUIRETLS",  # RFC 8689
        b"RRVS",  # RFC 7293
    }
)

# Which extension a parameter belongs to, of those that are carried.
_EXTENSION_OF: Final = {
    b"SIZE": b"SIZE",
    b"BODY": b"8BITMIME",
    b"SMTPUTF8": b"SMTPUTF8",
    b"RET": b"DSN",
    b"ENVID": b"DSN",
    b"NOTIFY": b"DSN",
    b"ORCPT": b"DSN",
}


def hidden_parameter(parameters: bytes) -> bool:
    """Whether a parameter belongs to an extension that is hidden from clients."""
    # Each of a kind counts: we cannot know which of two the next hop goes by.
    return any(
        keyword in _HIDDEN_PARAMETERS or (keyword == b"BODY" and value == b"BINARYMIME")
        for keyword, _, value in (each.partition(b"=") for each in parameters.upper().split())
    )


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server said it can do.

    Attributes:
        keywords: EHLO keywords in upper case, each with its parameters as written.
    """

    keywords: dict[bytes, bytes]

    @classmethod
    def of(cls, reply: Reply) -> Capabilities:
        """Return what an EHLO reply says; its first line is the server's name."""
        found: dict[bytes, bytes] = {}
        for text in reply.texts[1:]:
            keyword, _, values = text.partition(b" ")
            found.setdefault(keyword.upper(), values)
        return cls(found)

    @classmethod
    def everything(cls) -> Capabilities:
        """Return all that can be carried, for a client of a next hop that cannot be asked.

        A client decides by EHLO alone that a message cannot be sent here, and bounces it. Once it says MAIL, it hears
        451 for as long as the next hop is away.
        """
        return cls(dict(_EVERYTHING))

    def __contains__(self, keyword: object) -> bool:
        """Whether the keyword was offered."""
        return keyword in self.keywords

    def offered(self, max_octets: int, added_octets: int = 0) -> list[bytes]:
        """Return the keyword lines for our own EHLO reply.

        Args:
            max_octets: our own bound for a message.
            added_octets: what we may add to a message: the next hop's SIZE is lowered by it.
        """
        lines = [b"PIPELINING"]
        size = self.keywords.get(b"SIZE")
        if size is not None:
            # SIZE without a number, or 0, means that there is no fixed limit.
            limit = int(size) if size.isdigit() and len(size) < 20 else 0  # noqa: PLR2004 -- RFC 1870: 20 digits
            limit = min(limit - added_octets, max_octets) if limit > added_octets else max_octets
            lines.append(b"SIZE %d" % limit)
        lines.extend(keyword for keyword in _CARRIED if keyword in self.keywords)
        return lines

    def carries(self, parameters: bytes, offered: Capabilities) -> bool:
        """Whether this server takes each parameter of an extension that was offered to the client.

        False when a capability that the client was told of is gone on this connection.
        """
        wanted = {_EXTENSION_OF[keyword] for keyword in keywords(parameters) if keyword in _EXTENSION_OF}
        return all(extension in self.keywords for extension in wanted if extension in offered.keywords)
