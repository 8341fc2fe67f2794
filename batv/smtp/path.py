r"""The arguments of MAIL and RCPT: a path, and parameters that are never taken apart more than needed.

Grammar, RFC 5321 section 4.1.1.2 and 4.1.2::

    mail      = "MAIL FROM:" Reverse-path [SP Mail-parameters] CRLF
    rcpt      = "RCPT TO:" ( "<Postmaster@" Domain ">" / "<Postmaster>" / Forward-path ) [SP Rcpt-parameters] CRLF
    Path      = "<" [ A-d-l ":" ] Mailbox ">"
    A-d-l     = At-domain *( "," At-domain )
    At-domain = "@" Domain
    esmtp-param   = esmtp-keyword ["=" esmtp-value]
    esmtp-keyword = (ALPHA / DIGIT) *(ALPHA / DIGIT / "-")
    esmtp-value   = 1*(%d33-60 / %d62-126)          ; and UTF-8 after RFC 6531

One space before `<` is taken, since many senders write it. Parameters are kept as octets: a parameter may hold what
the next hop alone understands, and DSN parameters are case-sensitive in their values.

Source: RFC 5321 section 4.1.1; RFC 6531 section 3.3.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from batv.address import DOMAIN, LOCAL_PART, NULL_REVERSE_PATH, ForwardPath, Mailbox, ReversePath
from batv.errors import PathError

__all__ = ["MAX_PATH_OCTETS", "MailArgument", "RcptArgument", "keywords", "parameter", "parse_mail", "parse_rcpt"]

_ROUTE = rb"(?:@" + DOMAIN + rb"(?:,@" + DOMAIN + rb")*:)?"
_PATH: Final = rb"(<" + _ROUTE + rb"(" + LOCAL_PART + rb")@(" + DOMAIN + rb")>)"
MAX_PATH_OCTETS: Final = 1024
"""Four times what RFC 5321 section 4.5.3.1.3 has everybody take; against paths that only fill memory and logs."""

# The keyword follows the grammar, so that nothing after a path can be taken for another one; the value is anything.
_PARAMETERS: Final = rb"((?: +[0-9A-Za-z][0-9A-Za-z-]*+(?:=[^ ]*+)?)*) *"

_MAIL = re.compile(rb"(?i:FROM:) ?(?:(<>)|" + _PATH + rb")" + _PARAMETERS)
_RCPT = re.compile(rb"(?i:TO:) ?(?:(<(?i:Postmaster)>)|" + _PATH + rb")" + _PARAMETERS)
# A second `@` outside quotes: user@elsewhere@here, as a relay that reads from the left would take it.
_TWO_AT = re.compile(rb"(?i:TO:) ?<" + LOCAL_PART + rb"(?:@" + DOMAIN + rb"){2,}>" + _PARAMETERS)


class MailArgument(NamedTuple):
    """What follows MAIL.

    Attributes:
        path: the reverse path.
        parameters: the parameters as written, with the space before each; empty without any.
    """

    path: ReversePath
    parameters: bytes


class RcptArgument(NamedTuple):
    """What follows RCPT.

    Attributes:
        path: the forward path.
        parameters: the parameters as written, with the space before each; empty without any.
    """

    path: ForwardPath
    parameters: bytes


def parse_mail(argument: bytes) -> MailArgument:
    """Return the argument of MAIL taken apart.

    Args:
        argument: the octets after `MAIL `, without the line end.

    Raises:
        PathError: they do not follow the grammar.
    """
    match = _MAIL.fullmatch(argument)
    if match is None or match.start(5) > MAX_PATH_OCTETS:
        raise PathError("the argument of MAIL is no reverse path")
    null, path, local, domain, parameters = match.groups()
    if null is not None:
        return MailArgument(NULL_REVERSE_PATH, parameters)
    return MailArgument(ReversePath(path, Mailbox(local, domain)), parameters)


def parse_rcpt(argument: bytes) -> RcptArgument:
    """Return the argument of RCPT taken apart.

    Args:
        argument: the octets after `RCPT `, without the line end.

    Raises:
        PathError: they do not follow the grammar.
    """
    match = _RCPT.fullmatch(argument)
    if match is None or match.start(5) > MAX_PATH_OCTETS:
        relay_trick = _TWO_AT.fullmatch(argument) is not None
        raise PathError("the argument of RCPT is no forward path", relay_trick=relay_trick)
    postmaster, path, local, domain, parameters = match.groups()
    if postmaster is not None:
        return RcptArgument(ForwardPath(postmaster, None), parameters)
    return RcptArgument(ForwardPath(path, Mailbox(local, domain)), parameters)


def keywords(parameters: bytes) -> list[bytes]:
    """Return the keywords of parameters in upper case, in their order."""
    return [parameter.partition(b"=")[0] for parameter in parameters.upper().split()]


def parameter(parameters: bytes, keyword: bytes) -> bytes | None:
    """Return the value of the first parameter of that keyword, empty where it has none; None if it does not occur."""
    for each in parameters.split():
        name, _, value = each.partition(b"=")
        if name.upper() == keyword:
            return value
    return None
