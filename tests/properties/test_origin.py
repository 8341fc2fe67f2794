"""A client that is handed on arrives as the same client, and nothing else arrives with it."""

from __future__ import annotations

import string
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from batv.errors import OriginError
from batv.smtp.origin import (
    XCLIENT_ATTRIBUTES,
    XFORWARD_ATTRIBUTES,
    Origin,
    Source,
    parse_xclient,
    parse_xforward,
    proxy_v1,
    proxy_v2,
    xclient_commands,
    xforward_commands,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MARKS = ("[UNAVAILABLE]", "[TEMPUNAVAIL]")


def _usual_form(address: str) -> str:
    parsed = ip_address(address)
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def _fits(text: str) -> bool:
    return text.isprintable() and text.upper() not in MARKS


_addresses = st.just("") | st.ip_addresses().map(str).map(_usual_form)
_ports = st.none() | st.integers(1, 65_535)
# Short enough that name, address and login fit in one command: name and address belong together.
_label = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=50)
_names = st.just("") | st.lists(_label, min_size=1, max_size=3).map(lambda labels: ".".join([*labels, "example"]))
_texts = (
    st.text(string.printable, max_size=80) | st.text(max_size=20) | st.sampled_from(["+40", "a=b", "[192.0.2.7]", " "])
).filter(_fits)
# The longest values there are, so that one command does not hold them.
_long = st.integers(200, 255).map(lambda length: "x" * length) | st.integers(60, 85).map(lambda length: "+" * length)

clients = st.builds(
    Origin,
    address=_addresses,
    port=_ports,
    name=_names,
    helo=_texts | _long,
    protocol=st.sampled_from(["", "SMTP", "ESMTP"]),
    login=_texts | _long,
    destination_address=_addresses,
    destination_port=_ports,
)
messages = st.builds(
    Origin,
    address=_addresses,
    port=_ports,
    name=_names,
    helo=_texts | _long,
    protocol=st.sampled_from(["", "SMTP", "ESMTP", "QMQP", "LMTP"]),
    ident=_texts | _long,
    source=st.none() | st.sampled_from(Source),
)
_anything = st.text(max_size=300) | st.text(st.characters(categories=["Cc", "Cs", "Zl", "Zs"]), max_size=5) | _texts
anybody = st.builds(
    Origin,
    address=_anything | _addresses,
    port=st.none() | st.integers(),
    name=_anything | _names,
    helo=_anything | _long,
    protocol=_anything,
    login=_anything | _long,
    ident=_anything | _long,
    destination_address=_anything | _addresses,
    destination_port=st.none() | st.integers(),
    source=st.none() | st.sampled_from(Source),
)

_pieces = st.lists(
    st.binary(max_size=6)
    | st.sampled_from([*XCLIENT_ATTRIBUTES, *XFORWARD_ATTRIBUTES, b"=", b" ", b"+", b"+0D", b"IPV6:", b"::1", b"25"])
    | st.sampled_from([b"192.0.2.7", b"[UNAVAILABLE]", b"[tempunavail]", b"LOCAL", b"SMTP", b"a.example"]),
    max_size=20,
).map(b"".join)
_pairs = st.lists(
    st.tuples(st.sampled_from([*XCLIENT_ATTRIBUTES, *XFORWARD_ATTRIBUTES]), st.binary(max_size=6)), max_size=4
).map(lambda pairs: b" ".join(b"%b=%b" % pair for pair in pairs))
arguments = st.binary(max_size=40) | _pieces | _pairs


def heard(parse: Callable[[bytes, Origin], Origin], commands: list[bytes]) -> Origin:
    """Return what a server makes of the commands."""
    origin = Origin()
    for command in commands:
        origin = parse(command.partition(b" ")[2], origin)
    return origin


@settings(max_examples=300, deadline=None)
@given(origin=clients)
def test_xclient_brings_every_client_as_it_was(origin: Origin) -> None:
    """Policies and logs of the next server are about this client, not about one that looks like it."""
    assert heard(parse_xclient, xclient_commands(origin, XCLIENT_ATTRIBUTES)) == origin


@settings(max_examples=300, deadline=None)
@given(origin=messages)
def test_xforward_brings_every_message_as_it_was(origin: Origin) -> None:
    """As above, for what is told with each message."""
    assert heard(parse_xforward, xforward_commands(origin, XFORWARD_ATTRIBUTES)) == origin


@settings(max_examples=300, deadline=None)
@given(origin=anybody, offered=st.lists(st.sampled_from([*XCLIENT_ATTRIBUTES, *XFORWARD_ATTRIBUTES, b"X"])))
def test_no_client_writes_a_command_of_its_own(origin: Origin, offered: list[bytes]) -> None:
    """Each line is one that we can read ourselves, within its length, and without a control character."""
    for parse, commands in (
        (parse_xclient, xclient_commands(origin, offered)),
        (parse_xforward, xforward_commands(origin, offered)),
    ):
        for command in commands:
            assert len(command) <= 510
            assert all(0x20 <= octet < 0x7F for octet in command)
        heard(parse, commands)


@settings(max_examples=300, deadline=None)
@given(origin=anybody)
def test_no_client_writes_a_proxy_header_of_its_own(origin: Origin) -> None:
    """One line of 107 octets at most, or a block whose length is what it says."""
    line = proxy_v1(origin)
    assert len(line) <= 107
    assert line.endswith(b"\r\n")
    assert line.count(b"\n") == line.count(b"\r") == 1
    header = proxy_v2(origin)
    assert len(header) == 16 + int.from_bytes(header[14:16])


@settings(max_examples=500, deadline=None)
@given(argument=arguments)
def test_any_octets_are_a_client_or_an_error(argument: bytes) -> None:
    """Any other exception would end the connection, or the service."""
    for parse in (parse_xclient, parse_xforward):
        with suppress(OriginError):
            found = parse(argument, Origin())
            assert all(text.isprintable() for text in (found.name, found.helo, found.login, found.ident))
