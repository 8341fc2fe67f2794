r"""Who a message comes from, handed on between servers: XCLIENT, XFORWARD and the header of the PROXY protocol.

Grammar of the commands::

    command   = ( "XCLIENT" / "XFORWARD" ) 1*( SP attribute "=" value )
    value     = xtext                               ; RFC 3461 section 4, at most 255 octets

Rules:

1. Nothing is guessed: an attribute that we do not know, one that comes twice, a value that cannot be read are errors,
   and a command with one of them changes nothing.
2. A decoded value is printable text in UTF-8. What is not goes to no log and no header, and is never sent either.
3. An unknown value is sent as `[UNAVAILABLE]`, so that a server does not go on with what it knows of us. Two are left
   out instead. Postfix refuses an XCLIENT with `PROTO=[UNAVAILABLE]`, and reads `SOURCE=[UNAVAILABLE]` as LOCAL.

A bare IPv6 address is read as one with `IPV6:` before it, since some front servers send it. IPv6 addresses that stand
for an IPv4 address are that address.

Source: XCLIENT_README and XFORWARD_README of Postfix; RFC 3461 section 4 (xtext); HAProxy's proxy-protocol.txt.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final

from batv.errors import OriginError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "XCLIENT_ATTRIBUTES",
    "XFORWARD_ATTRIBUTES",
    "Origin",
    "Source",
    "parse_xclient",
    "parse_xforward",
    "proxy_v1",
    "proxy_v2",
    "xclient_commands",
    "xforward_commands",
]

_MAX_VALUE_OCTETS: Final = 255
"""Longest value, as written. Source: Note 1 of XFORWARD_README."""

_MAX_COMMAND_OCTETS: Final = 510
"""Longest command without its line end. Source: RFC 5321 section 4.5.3.1.4."""

_MAX_PORT: Final = 65_535

_UNAVAILABLE: Final = b"[UNAVAILABLE]"
_MARKS: Final = (_UNAVAILABLE, b"[TEMPUNAVAIL]")

# Wider than RFC 3461: `=` may stand for itself and hex digits may be small, which leaves one meaning all the same.
_XTEXT = re.compile(rb"(?:[!-*,-~]|\+[0-9A-Fa-f]{2})++")
_HEX = re.compile(rb"\+(..)")
_NO_XCHAR = re.compile(rb"[^!-*,-<>-~]")

_LABEL = r"(?!-)[0-9A-Za-z_-]{1,63}+(?<!-)"
# Digits and dots alone are no name: a reverse look-up may yield them, and Postfix refuses the command.
_HOST_NAME = re.compile(rf"(?![0-9.]*+\Z){_LABEL}(?:\.{_LABEL})*+")
_ADDRESS = re.compile(r"(?ai)(IPV6:)?([0-9a-f.:]++)")
_PORT = re.compile(r"[0-9]{1,5}")
_PROTOCOL = re.compile(r"[!-~]{1,64}")
_XCLIENT_PROTOCOLS: Final = ("SMTP", "ESMTP")

_V2_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2_LOCAL: Final = b"\x20\x00\x00\x00"
_V2_TCP4: Final = b"\x21\x11"
_V2_TCP6: Final = b"\x21\x21"


class Source(Enum):
    """Where a message comes from, seen from the server that hands it on."""

    LOCAL = "LOCAL"
    REMOTE = "REMOTE"


@dataclass(frozen=True, slots=True)
class Origin:
    """Who a message comes from, as a front server tells it; what it does not tell is empty, or None.

    Attributes:
        address: the client's IP address, without prefix and brackets; empty for a Unix socket too.
        port: the client's TCP port.
        name: the client's host name, from a reverse look-up that was verified.
        helo: what the client said after HELO or EHLO.
        protocol: `SMTP` or `ESMTP`, in upper case; XFORWARD may tell of others.
        login: the user that the client has authenticated as.
        ident: the front server's own name for the message.
        destination_address: the IP address that the client connected to.
        destination_port: the TCP port that the client connected to.
        source: whether the message comes from the front server's own host or users.
    """

    address: str = ""
    port: int | None = None
    name: str = ""
    helo: str = ""
    protocol: str = ""
    login: str = ""
    ident: str = ""
    destination_address: str = ""
    destination_port: int | None = None
    source: Source | None = None


_NOTHING: Final = Origin()


def parse_xclient(argument: bytes, origin: Origin) -> Origin:
    """Return who the client is after an XCLIENT command.

    Attributes that it does not name stay as they are, but name and login, for which a client is trusted: a command that
    names ADDR is about another client, and a front server that serves one after the other over the same connection
    must not leave it those of the one before.

    Args:
        argument: the octets after `XCLIENT `, without the line end.
        origin: who the client was taken for until now.

    Raises:
        OriginError: the octets do not follow the grammar, or a value cannot be what it is said to be.
    """
    changes = _changes("XCLIENT", argument, _XCLIENT)
    if "address" in changes:
        origin = replace(origin, name="", login="")
    return replace(origin, **changes)


def parse_xforward(argument: bytes, origin: Origin) -> Origin:
    """Return who a message comes from after an XFORWARD command.

    Args:
        argument: the octets after `XFORWARD `, without the line end.
        origin: what earlier XFORWARD commands for the same message told; `Origin()` for the first, since what is told
            must not be mixed with what is known of the front server itself.

    Raises:
        OriginError: the octets do not follow the grammar, or a value cannot be what it is said to be.
    """
    return replace(origin, **_changes("XFORWARD", argument, _XFORWARD))


def xclient_commands(origin: Origin, offered: Iterable[bytes]) -> list[bytes]:
    """Return the XCLIENT commands that tell a server who the client is, without line ends.

    More than one is needed only for very long values. After each the server greets again; what it takes for HELO
    and PROTO is then the next EHLO, so this has to say what the client said.

    Args:
        origin: the client.
        offered: the attributes that the server named after XCLIENT in its EHLO reply; others are not sent.
    """
    # The last command holds ADDR and LOGIN. Postfix asks anew after each command whether the client that it now sees
    # may say XCLIENT, and forgets the LOGIN of all but the last.
    values = [
        (b"DESTADDR", _address_value(origin.destination_address)),
        (b"DESTPORT", _port_value(origin.destination_port)),
        (b"PORT", _port_value(origin.port)),
        (b"HELO", _text_value(origin.helo)),
        (b"PROTO", origin.protocol.encode() if origin.protocol in _XCLIENT_PROTOCOLS else b""),
        (b"NAME", _name_value(origin.name)),
        (b"ADDR", _address_value(origin.address)),
        (b"LOGIN", _text_value(origin.login)),
    ]
    return _commands(b"XCLIENT", values, offered)


def xforward_commands(origin: Origin, offered: Iterable[bytes]) -> list[bytes]:
    """Return the XFORWARD commands that tell a server who a message comes from, without line ends.

    They go before MAIL, and hold for one message.

    Args:
        origin: the client.
        offered: the attributes that the server named after XFORWARD in its EHLO reply; others are not sent.
    """
    protocol = origin.protocol if _PROTOCOL.fullmatch(origin.protocol) else ""
    values = [
        (b"NAME", _name_value(origin.name)),
        (b"ADDR", _address_value(origin.address)),
        (b"PORT", _port_value(origin.port)),
        (b"PROTO", _text_value(protocol)),
        (b"HELO", _text_value(origin.helo)),
        (b"IDENT", _text_value(origin.ident)),
        (b"SOURCE", origin.source.value.encode() if origin.source is not None else b""),
    ]
    return _commands(b"XFORWARD", values, offered)


def proxy_v1(origin: Origin) -> bytes:
    """Return the PROXY header of version 1, one line with its end.

    Without an address of the client it is `PROXY UNKNOWN`: the server then takes us for the client, or ends the
    connection, as Postfix does. Version 2 has a header for this that every server takes.
    """
    ends = _ends(origin)
    if ends is None:
        return b"PROXY UNKNOWN\r\n"
    source, destination, source_port, destination_port = ends
    family = 4 if isinstance(source, IPv4Address) else 6
    return f"PROXY TCP{family} {_v1(source)} {_v1(destination)} {source_port} {destination_port}\r\n".encode()


def proxy_v2(origin: Origin) -> bytes:
    """Return the PROXY header of version 2, octets.

    Without an address of the client its command is LOCAL, which every server must take: it then takes us for the
    client. That of PROXY without a family it may refuse.
    """
    ends = _ends(origin)
    if ends is None:
        return _V2_SIGNATURE + _V2_LOCAL
    source, destination, *ports = ends
    addresses = source.packed + destination.packed + struct.pack("!HH", *ports)
    family = _V2_TCP4 if isinstance(source, IPv4Address) else _V2_TCP6
    return _V2_SIGNATURE + family + struct.pack("!H", len(addresses)) + addresses


def _changes(verb: str, argument: bytes, readers: Mapping[bytes, _Reader]) -> dict[str, Any]:
    """Return the fields of an Origin that a command sets."""
    changes: dict[str, Any] = {}
    for pair in filter(None, argument.split(b" ")):
        attribute, equals, value = pair.partition(b"=")
        reader = readers.get(attribute.upper())
        if reader is None:
            raise OriginError(f"{verb} names an attribute that is not offered")
        field, read = reader
        if field in changes:
            raise OriginError(f"{verb} names an attribute twice")
        if not equals or not value:
            raise OriginError(f"{verb} names an attribute without a value")
        text = _decoded(verb, value)
        try:
            changes[field] = read(text) if text is not None else getattr(_NOTHING, field)
        except ValueError as error:
            raise OriginError(f"{verb} has an ill-formed {attribute.upper().decode()}") from error
    if not changes:
        raise OriginError(f"{verb} names no attribute")
    return changes


def _decoded(verb: str, value: bytes) -> str | None:
    """Return the text that a value stands for; None for one of the marks that it is unknown."""
    if len(value) > _MAX_VALUE_OCTETS:
        raise OriginError(f"{verb} has a value of more than {_MAX_VALUE_OCTETS} octets")
    if _XTEXT.fullmatch(value) is None:
        raise OriginError(f"{verb} has a value that is no xtext")
    octets = _HEX.sub(lambda match: bytes([int(match[1], 16)]), value)
    # Both marks count for every attribute: nobody shall be logged in as [TEMPUNAVAIL].
    if octets.upper() in _MARKS:
        return None
    try:
        text = octets.decode()
    except UnicodeDecodeError as error:
        raise OriginError(f"{verb} has a value that is not UTF-8") from error
    if not text.isprintable():
        raise OriginError(f"{verb} has a value with a character that cannot be printed")
    return text


def _commands(verb: bytes, values: Iterable[tuple[bytes, bytes]], offered: Iterable[bytes]) -> list[bytes]:
    """Return as few commands as hold the values that are not empty, filled from the last backwards."""
    wanted = {attribute.upper() for attribute in offered}
    pairs = [b" %b=%b" % (attribute, value) for attribute, value in values if value and attribute in wanted]
    commands: list[bytes] = []
    tail = b""
    for pair in reversed(pairs):
        if len(verb) + len(pair) + len(tail) > _MAX_COMMAND_OCTETS:
            commands.append(verb + tail)
            tail = b""
        tail = pair + tail
    if tail:
        commands.append(verb + tail)
    return commands[::-1]


def _ip(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address, IPv4 where it stands for one and without a scope, which means nothing elsewhere."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _ends(origin: Origin) -> tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address, int, int] | None:
    """Return both ends of the client's connection, addresses of one family; None where the client is unknown.

    A header that tells of nobody makes the server take us for the client, and we may do what the client may not. So all
    else that is missing or does not fit is filled in: an unknown port is 0, and a destination that is unknown or of the
    other family is the unspecified address (RFC 4291 section 2.5.2). The client's own family stays as it is, since a
    Postfix without IPv6 refuses a header with IPv6 addresses.
    """
    source, destination = _ip(origin.address), _ip(origin.destination_address)
    if source is None:
        return None
    if destination is None or destination.version != source.version:
        destination = type(source)(0)
    return source, destination, _known_port(origin.port) or 0, _known_port(origin.destination_port) or 0


def _v1(address: IPv4Address | IPv6Address) -> str:
    # All digits, as the specification describes them: shorter forms differ from one version of Python to the next.
    return str(address) if isinstance(address, IPv4Address) else address.packed.hex(":", 2)


def _known_port(port: int | None) -> int | None:
    return port if port is not None and 0 < port <= _MAX_PORT else None


def _address_value(text: str) -> bytes:
    address = _ip(text)
    if address is None:
        return _UNAVAILABLE
    return (f"IPV6:{address}" if isinstance(address, IPv6Address) else str(address)).encode()


def _port_value(port: int | None) -> bytes:
    known = _known_port(port)
    return b"%d" % known if known is not None else _UNAVAILABLE


def _name_value(name: str) -> bytes:
    return _text_value(name if _HOST_NAME.fullmatch(name) else "")


def _text_value(text: str) -> bytes:
    # What cannot be printed includes surrogates, which have no octets.
    if not text.isprintable():
        return _UNAVAILABLE
    value = _NO_XCHAR.sub(lambda match: b"+%02X" % match[0][0], text.encode())
    return value if 0 < len(value) <= _MAX_VALUE_OCTETS else _UNAVAILABLE


def _read_address(text: str) -> str:
    match = _ADDRESS.fullmatch(text)
    address = _ip(match[2]) if match is not None and not (match[1] and ":" not in match[2]) else None
    if address is None:
        raise ValueError
    return str(address)


def _read_port(text: str) -> int | None:
    if _PORT.fullmatch(text) is None or int(text) > _MAX_PORT:
        raise ValueError
    return _known_port(int(text))  # Postfix writes 0 for a port that it does not know


def _read_name(text: str) -> str:
    if _HOST_NAME.fullmatch(text) is None:
        raise ValueError
    return text


def _read_protocol(text: str) -> str:
    if _PROTOCOL.fullmatch(text) is None:
        raise ValueError
    return text.upper()


def _read_xclient_protocol(text: str) -> str:
    protocol = _read_protocol(text)
    if protocol not in _XCLIENT_PROTOCOLS:
        raise ValueError
    return protocol


def _read_source(text: str) -> Source:
    return Source(text.upper())


if TYPE_CHECKING:
    # The field that an attribute sets, and what reads its text or raises ValueError.
    _Reader = tuple[str, Callable[[str], object]]

_XCLIENT: Final[dict[bytes, _Reader]] = {
    b"NAME": ("name", _read_name),
    b"ADDR": ("address", _read_address),
    b"PORT": ("port", _read_port),
    b"PROTO": ("protocol", _read_xclient_protocol),
    b"HELO": ("helo", str),
    b"LOGIN": ("login", str),
    b"DESTADDR": ("destination_address", _read_address),
    b"DESTPORT": ("destination_port", _read_port),
}
_XFORWARD: Final[dict[bytes, _Reader]] = {
    b"NAME": ("name", _read_name),
    b"ADDR": ("address", _read_address),
    b"PORT": ("port", _read_port),
    b"PROTO": ("protocol", _read_protocol),
    b"HELO": ("helo", str),
    b"IDENT": ("ident", str),
    b"SOURCE": ("source", _read_source),
}

XCLIENT_ATTRIBUTES: Final = tuple(_XCLIENT)
"""What our own EHLO reply names after XCLIENT."""

XFORWARD_ATTRIBUTES: Final = tuple(_XFORWARD)
"""What our own EHLO reply names after XFORWARD."""
