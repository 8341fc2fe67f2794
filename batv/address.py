r"""Mailboxes and the two kinds of path, with their octets kept as written.

A Mailbox is a local part and a domain. A ReversePath is what MAIL FROM names: a mailbox, or null. A ForwardPath
is what RCPT TO names: a mailbox, or `<Postmaster>` without a domain. Each keeps the octets that came, so that
what is forwarded is what was judged, and a changed mailbox is put into the same octets.

Grammar, RFC 5321 section 4.1.2 with RFC 6531 section 3.3::

    Mailbox        = Local-part "@" ( Domain / address-literal )
    Local-part     = Dot-string / Quoted-string
    Quoted-string  = DQUOTE *QcontentSMTP DQUOTE
    QcontentSMTP   = qtextSMTP / quoted-pairSMTP
    quoted-pairSMTP = %d92 %d32-126

Wider than the grammar, because real senders are: dots may stand anywhere in an unquoted local part (`a..b@`, `.a@`
and `a.@` are assigned by Japanese carriers), a domain label may hold an underscore, and no length is
enforced but that of the command line (RFC 5321 section 4.5.3.1: impose no limits where possible).

Source: RFC 5321 sections 4.1.2 and 4.1.3; RFC 6531 section 3.3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from batv.errors import AddressError

__all__ = [
    "DOMAIN",
    "LOCAL_PART",
    "MAX_LOCAL_PART_OCTETS",
    "MAX_MAILBOX_OCTETS",
    "NULL_REVERSE_PATH",
    "ForwardPath",
    "Mailbox",
    "ReversePath",
    "fold",
]

MAX_LOCAL_PART_OCTETS: Final = 64
"""Longest local part that every system must take. Source: RFC 5321 section 4.5.3.1.1."""

MAX_MAILBOX_OCTETS: Final = 254
"""Longest mailbox: a path has 256 octets with its brackets. Source: RFC 5321 section 4.5.3.1.3."""

# UTF8-non-ascii, RFC 6531 section 3.3: shortest forms only, no surrogates, nothing above U+10FFFF.
_UTF8 = (
    rb"(?:[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    rb"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})"
)
# Possessive quantifiers throughout: hostile octets cost linear time.
_DOT_STRING = rb"(?:[!#-'*+\-./-9=?A-Z^-~]++|" + _UTF8 + rb")++"  # atext and dots
_QUOTED = rb'"(?:[ !#-\[\]-~]++|\\[ -~]|' + _UTF8 + rb')*+"'

LOCAL_PART: Final = rb"(?:" + _DOT_STRING + rb"|" + _QUOTED + rb")"
"""Pattern of a local part; quoted or not."""

# sub-domain = Let-dig [Ldh-str]; with an underscore, see above. Labels have no empty neighbour and no final dot.
_LABEL = rb"(?!-)(?:[0-9A-Za-z_-]++|" + _UTF8 + rb")++(?<!-)"
# address-literal = "[" ( IPv4 / IPv6: / Standardized-tag ":" 1*dcontent ) "]"; dcontent = %d33-90 / %d94-126
_LITERAL = rb"\[[!-Z^-~]+\]"

DOMAIN: Final = rb"(?:" + _LABEL + rb"(?:\." + _LABEL + rb")*|" + _LITERAL + rb")"
"""Pattern of a domain or an address literal."""

_MAILBOX = re.compile(rb"(" + LOCAL_PART + rb")@(" + DOMAIN + rb")")


def fold(octets: bytes) -> bytes:
    """Return the octets with the ASCII letters in lower case, every other octet as it is."""
    return octets.lower()


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A local part and a domain, octets as written.

    Attributes:
        local: the local part, with its quotes where it is a quoted string.
        domain: the domain or address literal.
    """

    local: bytes
    domain: bytes

    @classmethod
    def parse(cls, octets: bytes) -> Self:
        """Return the mailbox that is written `local@domain`, without brackets.

        Raises:
            AddressError: the octets are no mailbox.
        """
        match = _MAILBOX.fullmatch(octets)
        if match is None:
            raise AddressError(f"'{_printable(octets)}' is no mail address", "give it as local@domain")
        return cls(match[1], match[2])

    @property
    def octets(self) -> bytes:
        """The mailbox as `local@domain`."""
        return self.local + b"@" + self.domain

    @property
    def quoted(self) -> bool:
        """Whether the local part is a quoted string."""
        return self.local[:1] == b'"'

    @property
    def ascii(self) -> bool:
        """Whether the mailbox needs no SMTPUTF8."""
        return self.local.isascii() and self.domain.isascii()

    def __str__(self) -> str:
        """Return the mailbox as text that is safe to print."""
        return _printable(self.octets)


@dataclass(frozen=True, slots=True)
class ReversePath:
    """What MAIL FROM names, with its brackets; null where bounces must not be answered.

    Attributes:
        octets: the path as written, from `<` to `>`.
        mailbox: the mailbox in it; None for the null path.
    """

    octets: bytes
    mailbox: Mailbox | None

    @property
    def null(self) -> bool:
        """Whether this is `<>`: a message that must not be bounced. Source: RFC 5321 section 4.5.5."""
        return self.mailbox is None

    def with_mailbox(self, mailbox: Mailbox) -> ReversePath:
        """Return the path with another mailbox; a source route before it stays."""
        return ReversePath(_replaced(self.octets, self.mailbox, mailbox), mailbox)


NULL_REVERSE_PATH: Final = ReversePath(b"<>", None)
"""The reverse path of a bounce."""


@dataclass(frozen=True, slots=True)
class ForwardPath:
    """What RCPT TO names, with its brackets.

    Attributes:
        octets: the path as written, from `<` to `>`.
        mailbox: the mailbox in it; None for `<Postmaster>` without a domain.
    """

    octets: bytes
    mailbox: Mailbox | None

    @property
    def routed(self) -> bool:
        """Whether the path begins with a source route (`<@relay:user@domain>`). Source: RFC 5321 appendix C."""
        return self.octets.startswith(b"<@")

    def with_mailbox(self, mailbox: Mailbox) -> ForwardPath:
        """Return the path with another mailbox; a source route before it stays."""
        return ForwardPath(_replaced(self.octets, self.mailbox, mailbox), mailbox)


def _replaced(octets: bytes, old: Mailbox | None, new: Mailbox) -> bytes:
    replaced = len(old.local) + len(old.domain) + 2 if old is not None else 1
    return b"%b%b@%b>" % (octets[:-replaced], new.local, new.domain)


def _printable(octets: bytes) -> str:
    text = octets.decode("utf-8", "backslashreplace")
    return "".join(ch if ch.isprintable() else ch.encode("unicode_escape").decode("ascii") for ch in text)
