"""Authentication towards a next hop: the mechanisms PLAIN and LOGIN, and the file that holds user and password.

Both mechanisms show the password to the server, so they belong inside TLS. Nothing here is ever logged: neither the
text of an error nor the repr of a Credentials holds a password.

Source: RFC 4954 (AUTH); RFC 4616 (PLAIN); RFC 4422 section 3.1 (names of mechanisms); LOGIN has no standard, the
expired draft-murchison-sasl-login describes what servers do.
"""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from batv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Credentials",
    "Mechanism",
    "auth_lines",
    "choose",
    "login_responses",
    "mechanisms",
    "parse_credentials",
    "plain_response",
]

Mechanism = Literal["PLAIN", "LOGIN"]
"""What we can speak."""

_MECHANISM = re.compile(rb"[0-9A-Z_-]{1,20}")

_MAX_OCTETS: Final = 255
"""Longest user, and longest password. Source: RFC 4616 section 2."""

_MAX_COMMAND_OCTETS: Final = 510
"""Longest command without its line end; AUTH has no longer one. Source: RFC 4954 section 4."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password that PLAIN can carry.

    Attributes:
        user: who we are to the server, 1 to 255 octets in UTF-8.
        password: the same limits; never shown.

    Raises:
        ConfigError: one of them is empty, too long, holds a NUL or is not UTF-8.
    """

    user: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        for what, text in (("user", self.user), ("password", self.password)):
            # A lone surrogate has no octets: it counts as one that is wrong, without the text in a traceback.
            octets = text.encode("utf-8", "surrogatepass")
            if not octets:
                raise ConfigError(f"the {what} for the next hop is empty", f"give the {what}")
            if len(octets) > _MAX_OCTETS:
                raise ConfigError(
                    f"the {what} for the next hop has more than {_MAX_OCTETS} octets", "choose a shorter one"
                )
            if b"\0" in octets or octets.decode("utf-8", "ignore") != text:
                raise ConfigError(f"the {what} for the next hop holds a NUL or is not UTF-8", "choose another one")


def mechanisms(value: bytes) -> tuple[str, ...]:
    """Return the mechanisms that a server offers, in upper case and its order.

    Args:
        value: what follows AUTH in the server's EHLO reply; what is no name of a mechanism is passed over.
    """
    return tuple(name.decode() for name in value.upper().split() if _MECHANISM.fullmatch(name))


def choose(offered: Iterable[str]) -> Mechanism | None:
    """Return the mechanism to use of those offered: PLAIN, the standard, before LOGIN; None if we speak none."""
    names = set(offered)
    if "PLAIN" in names:
        return "PLAIN"
    return "LOGIN" if "LOGIN" in names else None


def plain_response(credentials: Credentials) -> bytes:
    """Return the one response of PLAIN, in base64; the user acts as itself. Source: RFC 4616 section 2."""
    return b64encode(f"\0{credentials.user}\0{credentials.password}".encode())


def login_responses(credentials: Credentials) -> tuple[bytes, bytes]:
    """Return the two responses of LOGIN, in base64: user and password."""
    return b64encode(credentials.user.encode()), b64encode(credentials.password.encode())


def auth_lines(mechanism: Mechanism, credentials: Credentials) -> tuple[bytes, ...]:
    """Return what to send, without line ends: the AUTH command, and a line more after each 334.

    PLAIN takes one line, which saves a round trip, unless that would be longer than a command may be.
    Any other reply than 334 ends the exchange: 235 is success, and the rest must not be sent.
    """
    if mechanism == "LOGIN":
        return b"AUTH LOGIN", *login_responses(credentials)
    response = plain_response(credentials)
    command = b"AUTH PLAIN " + response
    return (command,) if len(command) <= _MAX_COMMAND_OCTETS else (b"AUTH PLAIN", response)


def parse_credentials(text: str, filename: str = "the file of credentials") -> Credentials:
    """Return what a file of two lines holds: the user, and the password.

    The last line may go without its end. Spaces belong to the password.

    Args:
        text: what is in the file.
        filename: how errors call it.

    Raises:
        ConfigError: there are not two lines, or one of them holds what a user or password cannot hold.
    """
    # Editors elsewhere end lines with CRLF and begin with a mark, which no password has ever been meant to hold.
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").removesuffix("\n").split("\n")
    if len(lines) != 2:  # noqa: PLR2004 -- user and password
        raise ConfigError(
            f"{filename} does not hold two lines", "write the user on the first line and the password on the second"
        )
    try:
        return Credentials(*lines)
    except ConfigError as error:
        raise ConfigError(f"{filename}: {error.what}", error.remedy) from error
