"""The arguments of MAIL and RCPT: what is judged is what the reference reads, and what goes out reads as was meant."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from batv.address import Mailbox
from batv.errors import AddressError, PathError
from batv.smtp.path import MAX_PATH_OCTETS, MailArgument, RcptArgument, parse_mail, parse_rcpt
from tests.support import reference

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check", "checking"]

_OTHER: Final = Mailbox(b"prvs=3787abcdef=other", b"elsewhere.example")


def check(octets: bytes) -> None:
    """Read octets as the argument of MAIL, as that of RCPT, and as a mailbox.

    Args:
        octets: what follows the verb and its space.
    """
    _check_argument(octets, parse_mail, reference.mail)
    _check_argument(octets, parse_rcpt, reference.rcpt)
    found = None
    with suppress(AddressError):
        found = Mailbox.parse(octets)
    assert (None if found is None else (found.local, found.domain)) == reference.mailbox(octets)


def _check_argument(
    octets: bytes,
    parse: Callable[[bytes], MailArgument | RcptArgument],
    read: Callable[[bytes], reference.Argument | None],
) -> None:
    wanted = read(octets)
    try:
        found = parse(octets)
    except PathError as error:
        assert wanted is None, f"refused: {wanted}"
        trick = error.relay_trick
        assert trick == (read is reference.rcpt and reference.names_a_relay(octets))
        return
    assert wanted is not None, f"taken: {found}"
    path, mailbox = found.path, found.path.mailbox
    assert path.octets == wanted.path
    assert (mailbox.local if mailbox else None, mailbox.domain if mailbox else None) == (wanted.local, wanted.domain)
    assert tuple(filter(None, found.parameters.split(b" "))) == wanted.parameters
    assert octets.rstrip(b" ").endswith(path.octets + found.parameters), "not as written"
    if mailbox is None:
        return
    # What is sent in its place: the other mailbox, and the same route.
    keyword = octets[: octets.index(b":") + 1]
    said = keyword + path.with_mailbox(_OTHER).octets
    if len(said) <= MAX_PATH_OCTETS:  # what is sent may be longer than what is taken
        changed = read(said + found.parameters)
        assert changed is not None
        assert (changed.local, changed.domain) == (_OTHER.local, _OTHER.domain)
        assert changed.parameters == wanted.parameters
    assert path.with_mailbox(mailbox).octets == path.octets


checking = partial(nullcontext, check)
