"""A client that is handed on: what a front server may tell of it, and what a next hop is told."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest
from aiosmtpd.proxy_protocol import AF, PROTO, V2_CMD, ProxyData, get_proxy

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

HUNDRED_KIB = 102_400

CLIENT = Origin(
    address="192.0.2.7",
    port=41_000,
    name="mail.peer.example",
    helo="peer.example",
    protocol="ESMTP",
    login="user+x@local.example",
    destination_address="198.51.100.1",
    destination_port=25,
)
V6 = Origin("2001:db8::7", 41_000, destination_address="2001:db8::1", destination_port=25)
V2_LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"

ILL_FORMED = [
    b"",
    b" ",
    b"NAME",
    b"NAME=",
    b"=peer.example",
    b"=",
    b"WHO=peer.example",
    b"N\xc3\xa4ME=a",
    b"NAME=a.example NAME=a.example",
    b"NAME=a.example name=b.example",
    b"NAME=a.example\tPORT=25",
    b"NAME=a.example\r\nRSET",
    b"HELO=a+0D+0ARSET",
    b"HELO=a\0",
    b"HELO=a+00",
    b"HELO=a+7F",
    b"HELO=a+C2+85",
    b"HELO=a+E2+80+A8b",
    b"HELO=a+E2+80+AEb",
    b"HELO=a+",
    b"HELO=a+4",
    b"HELO=a+4G",
    b"HELO=a++40",
    b"HELO=\xc3\xb6",
    b"HELO=+FF",
    b"HELO=+ED+A0+80",
    b"HELO=" + b"a" * 256,
    b"NAME=a..example",
    b"NAME=-a.example",
    b"NAME=a_b-.example",
    b"NAME=192.0.2.7",
    b"NAME=[192.0.2.7]",
    b"NAME=a+20b",
    b"NAME=a<b",
    b"NAME=" + b"a" * 64,
    b"ADDR=peer.example",
    b"ADDR=192.0.2",
    b"ADDR=192.0.2.256",
    b"ADDR=192.0.2.07",
    b"ADDR=[192.0.2.7]",
    b"ADDR=IPV6:192.0.2.7",
    b"ADDR=IPV6:",
    b"ADDR=IPV4:192.0.2.7",
    b"ADDR=IPV6:fe80::1%eth0",
    b"ADDR=IPV6:IPV6:::1",
    b"ADDR=+C4+B1pv6:::1",
    b"ADDR=+EF+BC+911.0.0.1",
    b"ADDR=unix:/run/x",
    b"ADDR=3221225991",
    b"PORT=65536",
    b"PORT=-1",
    b"PORT=+2B1",
    b"PORT=smtp",
    b"PORT=1.0",
    b"PORT=000025",
    b"PORT=+D9+A1",
]


def read_proxy(header: bytes) -> ProxyData:
    """Return the header as a server with the PROXY protocol reads it."""

    async def read() -> ProxyData:
        reader = asyncio.StreamReader()
        reader.feed_data(header)
        reader.feed_eof()
        found = await get_proxy(reader)
        assert await reader.read() == b""
        return found

    return asyncio.run(read())


def test_xclient_tells_all_of_a_client() -> None:
    """The next server judges it as if it had come itself."""
    argument = (
        b"NAME=mail.peer.example ADDR=192.0.2.7 PORT=41000 PROTO=ESMTP HELO=peer.example "
        b"LOGIN=user+2Bx@local.example DESTADDR=198.51.100.1 DESTPORT=25"
    )
    assert parse_xclient(argument, Origin()) == CLIENT
    assert xclient_commands(CLIENT, XCLIENT_ATTRIBUTES) == [
        (
            b"XCLIENT DESTADDR=198.51.100.1 DESTPORT=25 PORT=41000 HELO=peer.example PROTO=ESMTP "
            b"NAME=mail.peer.example ADDR=192.0.2.7 LOGIN=user+2Bx@local.example"
        )
    ]


def test_xforward_tells_all_of_a_message() -> None:
    """The names of the message and its source are for XFORWARD alone, login and destination for XCLIENT alone."""
    origin = Origin(
        "2001:db8::7", 41_000, "mail.peer.example", "peer.example", "ESMTP", "", "4Rk7", source=Source.LOCAL
    )
    argument = (
        b"NAME=mail.peer.example ADDR=IPV6:2001:db8::7 PORT=41000 PROTO=ESMTP HELO=peer.example IDENT=4Rk7 SOURCE=LOCAL"
    )
    assert parse_xforward(argument, Origin()) == origin
    assert xforward_commands(origin, XFORWARD_ATTRIBUTES) == [
        (
            b"XFORWARD NAME=mail.peer.example ADDR=IPV6:2001:db8::7 PORT=41000 PROTO=ESMTP HELO=peer.example "
            b"IDENT=4Rk7 SOURCE=LOCAL"
        )
    ]
    for argument in (b"IDENT=4Rk7", b"SOURCE=LOCAL"):
        with pytest.raises(OriginError):
            parse_xclient(argument, Origin())
    for argument in (b"LOGIN=u", b"DESTADDR=192.0.2.1", b"DESTPORT=25"):
        with pytest.raises(OriginError):
            parse_xforward(argument, Origin())


def test_our_own_announcement_names_what_is_read() -> None:
    """A front server sends what it was offered, and nothing else."""
    assert XCLIENT_ATTRIBUTES == (b"NAME", b"ADDR", b"PORT", b"PROTO", b"HELO", b"LOGIN", b"DESTADDR", b"DESTPORT")
    assert XFORWARD_ATTRIBUTES == (b"NAME", b"ADDR", b"PORT", b"PROTO", b"HELO", b"IDENT", b"SOURCE")


def test_attributes_and_words_are_read_in_either_case() -> None:
    """Postfix's documents say that case means nothing; what is kept is kept in one case."""
    found = parse_xclient(b"name=A.example  Addr=ipv6:2001:DB8::7 proto=smtp HeLo=Peer", Origin())
    assert found == Origin(address="2001:db8::7", name="A.example", protocol="SMTP", helo="Peer")
    assert parse_xforward(b"source=remote proto=qmqp", Origin()) == Origin(protocol="QMQP", source=Source.REMOTE)


@pytest.mark.parametrize(
    ("written", "address"),
    [
        (b"192.0.2.7", "192.0.2.7"),
        (b"IPV6:2001:db8:0:0::7", "2001:db8::7"),
        (b"2001:db8::7", "2001:db8::7"),
        (b"IPV6:::1", "::1"),
        (b"IPV6:::ffff:192.0.2.7", "192.0.2.7"),
        (b"::ffff:c000:207", "192.0.2.7"),
        (b"IPV6+3A2001:db8::7", "2001:db8::7"),
    ],
)
def test_an_address_is_kept_in_one_form(written: bytes, address: str) -> None:
    """Lists of networks know an address in one form: a client behind another one would get past them."""
    assert parse_xclient(b"ADDR=" + written, Origin()).address == address
    assert parse_xclient(b"DESTADDR=" + written, Origin()).destination_address == address
    assert parse_xforward(b"ADDR=" + written, Origin()).address == address


@pytest.mark.parametrize(
    "mark", [b"[UNAVAILABLE]", b"[unavailable]", b"[TEMPUNAVAIL]", b"[TempUnavail]", b"+5BUNAVAILABLE+5D"]
)
def test_what_is_unavailable_is_unknown(mark: bytes) -> None:
    """A mark is no value: nobody is logged in as one, and no message is local by one."""
    for attribute in XCLIENT_ATTRIBUTES:
        assert parse_xclient(attribute + b"=" + mark, Origin()) == Origin()
    known = Origin("192.0.2.7", 1, "a.example", "a", "SMTP", "", "x", source=Source.LOCAL)
    every = b" ".join(attribute + b"=" + mark for attribute in XFORWARD_ATTRIBUTES)
    assert parse_xforward(every, known) == Origin()


@pytest.mark.parametrize("argument", ILL_FORMED)
def test_what_a_front_server_cannot_mean_is_refused(argument: bytes) -> None:
    """Half of a client is another client."""
    with pytest.raises(OriginError, match="XCLIENT"):
        parse_xclient(argument, CLIENT)
    with pytest.raises(OriginError, match="XFORWARD"):
        parse_xforward(argument, CLIENT)


@pytest.mark.parametrize(
    "argument", [b"PROTO=QMQP", b"PROTO=+C5+BFMTP", b"PROTO=ESMTP+20", b"DESTPORT=x", b"DESTADDR=x"]
)
def test_xclient_takes_the_protocols_that_postfix_takes(argument: bytes) -> None:
    """XFORWARD may tell of a message that came some other way; an SMTP session cannot."""
    with pytest.raises(OriginError):
        parse_xclient(argument, Origin())


@pytest.mark.parametrize("argument", [b"SOURCE=BOTH", b"SOURCE=", b"PROTO=a+20b", b"PROTO=" + b"x" * 65])
def test_xforward_takes_two_sources_and_short_protocols(argument: bytes) -> None:
    """Whether a message is local decides who may send it: no third word stands for either."""
    with pytest.raises(OriginError):
        parse_xforward(argument, Origin())


def test_errors_name_the_attribute_but_hold_no_octets_of_the_peer() -> None:
    """They go to the log."""
    with pytest.raises(OriginError, match=r"^XCLIENT has an ill-formed PORT$"):
        parse_xclient(b"port=x<y>", Origin())
    with pytest.raises(OriginError, match=r"^XFORWARD names an attribute that is not offered$"):
        parse_xforward(b"x<y>=1", Origin())


def test_values_of_users_come_through_whatever_they_hold() -> None:
    """A user's name may hold a space or an umlaut, a HELO anything that can be printed."""
    origin = Origin("192.0.2.7", helo="[x]<\"='+ö>", login="jörg müller+tag")
    (command,) = xclient_commands(origin, XCLIENT_ATTRIBUTES)
    assert b" HELO=[x]<\"+3D'+2B+C3+B6> " in command
    assert command.endswith(b" LOGIN=j+C3+B6rg+20m+C3+BCller+2Btag")
    assert parse_xclient(command.partition(b" ")[2], Origin()) == origin
    assert parse_xclient(b"HELO=a=b+c3+b6", Origin()).helo == "a=bö"


def test_the_next_client_over_a_connection_does_not_inherit_a_name_or_login() -> None:
    """A front server may serve many clients over one connection, and say LOGIN only for those that have one."""
    found = parse_xclient(b"ADDR=203.0.113.9", CLIENT)
    assert (found.address, found.name, found.login) == ("203.0.113.9", "", "")
    assert (found.destination_address, found.destination_port) == ("198.51.100.1", 25)
    assert parse_xclient(b"ADDR=[UNAVAILABLE]", CLIENT).login == ""
    assert parse_xclient(b"LOGIN=[UNAVAILABLE]", CLIENT) == replace(CLIENT, login="")


def test_further_commands_add_to_the_first() -> None:
    """A client may need more than one command."""
    first = parse_xclient(b"NAME=a.example ADDR=192.0.2.7", Origin())
    assert parse_xclient(b"PROTO=SMTP HELO=a", first) == Origin("192.0.2.7", None, "a.example", "a", "SMTP")
    first = parse_xforward(b"NAME=a.example ADDR=192.0.2.7", Origin())
    second = parse_xforward(b"HELO=a NAME=[UNAVAILABLE]", first)
    assert second == Origin("192.0.2.7", helo="a")


def test_a_server_is_told_what_it_offers_to_hear() -> None:
    """Exim takes neither PROTO nor HELO; Postfix refuses the whole command for one attribute that it does not know."""
    exim = [b"ADDR", b"name", b"PORT", b"LOGIN", b"DESTADDR", b"DESTPORT", b"REVERSE_NAME"]
    assert xclient_commands(CLIENT, exim) == [
        (
            b"XCLIENT DESTADDR=198.51.100.1 DESTPORT=25 PORT=41000 NAME=mail.peer.example ADDR=192.0.2.7 "
            b"LOGIN=user+2Bx@local.example"
        )
    ]
    assert xclient_commands(CLIENT, []) == []
    assert xforward_commands(CLIENT, [b"WHO"]) == []
    assert xforward_commands(CLIENT, [b"NAME", b"ADDR"]) == [b"XFORWARD NAME=mail.peer.example ADDR=192.0.2.7"]


def test_what_is_unknown_is_said_to_be() -> None:
    """Or the server goes on with what it knows of us; PROTO and SOURCE it would refuse, or take for LOCAL."""
    assert xclient_commands(Origin(), XCLIENT_ATTRIBUTES) == [
        (
            b"XCLIENT DESTADDR=[UNAVAILABLE] DESTPORT=[UNAVAILABLE] PORT=[UNAVAILABLE] HELO=[UNAVAILABLE] "
            b"NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE] LOGIN=[UNAVAILABLE]"
        )
    ]
    assert xforward_commands(Origin(), XFORWARD_ATTRIBUTES) == [
        (
            b"XFORWARD NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE] PORT=[UNAVAILABLE] PROTO=[UNAVAILABLE] "
            b"HELO=[UNAVAILABLE] IDENT=[UNAVAILABLE]"
        )
    ]


@pytest.mark.parametrize(
    "origin",
    [
        Origin("/run/batv.sock", 0, "192.0.2.7", "a\r\nRSET", "LMTP", "a\0b", destination_port=65_536),
        Origin("peer.example", -1, "a b", "\ud800", "\r\n", "x" * 256, destination_address="[::1]"),
        Origin("192.0.2", 65_536, "a.example.", "+" * 86, "esmtp", "\u2028", destination_address="::1::"),
    ],
)
def test_what_cannot_be_said_is_unknown(origin: Origin) -> None:
    """A client writes its own HELO: it gets no second command past us, nor the command refused."""
    assert xclient_commands(origin, XCLIENT_ATTRIBUTES) == xclient_commands(Origin(), XCLIENT_ATTRIBUTES)


def test_an_address_of_ours_that_has_a_scope_goes_out_without() -> None:
    """The name of an interface means nothing on another host."""
    assert xclient_commands(Origin("fe80::1%eth0"), [b"ADDR"]) == [b"XCLIENT ADDR=IPV6:fe80::1"]
    assert xforward_commands(Origin("::ffff:192.0.2.7"), [b"ADDR"]) == [b"XFORWARD ADDR=192.0.2.7"]


def test_long_values_go_in_several_commands_and_the_client_is_in_the_last() -> None:
    """Postfix takes no more commands once it sees another client, and forgets the login of all but the last."""
    origin = Origin(
        "2001:db8::7", 41_000, "a.example", "h" * 255, "ESMTP", "l" * 255, destination_address="2001:db8::1"
    )
    first, second = xclient_commands(origin, XCLIENT_ATTRIBUTES)
    assert first.startswith(b"XCLIENT DESTADDR=IPV6:2001:db8::1 ")
    assert second == b"XCLIENT PROTO=ESMTP NAME=a.example ADDR=IPV6:2001:db8::7 LOGIN=" + b"l" * 255
    assert parse_xclient(second[8:], parse_xclient(first[8:], Origin())) == origin
    longest = ".".join(["n" * 60] * 4)
    *_, last = xclient_commands(replace(origin, name=longest), XCLIENT_ATTRIBUTES)
    assert last == b"XCLIENT ADDR=IPV6:2001:db8::7 LOGIN=" + b"l" * 255


@pytest.mark.parametrize(("octets", "fits"), [(234, True), (235, True), (236, False)])
def test_a_command_is_filled_to_its_last_octet(octets: int, *, fits: bool) -> None:
    """A command less is a round trip less."""
    origin = Origin(helo="h" * 255, login="l" * octets)
    commands = xclient_commands(origin, [b"HELO", b"LOGIN", b"PROTO"])
    assert len(commands) == (1 if fits else 2), list(map(len, commands))


def test_the_proxy_header_tells_of_both_ends() -> None:
    """Version 1 is the line of the specification's example, version 2 the same in octets."""
    assert proxy_v1(CLIENT) == b"PROXY TCP4 192.0.2.7 198.51.100.1 41000 25\r\n"
    assert proxy_v2(CLIENT) == (
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c" + bytes([192, 0, 2, 7, 198, 51, 100, 1]) + b"\xa0\x28\x00\x19"
    )
    for header in (proxy_v1(CLIENT), proxy_v2(CLIENT)):
        found = read_proxy(header)
        assert (found.valid, found.family, found.protocol) == (True, AF.INET, PROTO.STREAM)
        assert (found.src_addr, found.src_port) == (IPv4Address("192.0.2.7"), 41_000)
        assert (found.dst_addr, found.dst_port) == (IPv4Address("198.51.100.1"), 25)
    for header in (proxy_v1(V6), proxy_v2(V6)):
        found = read_proxy(header)
        assert (found.valid, found.family, found.protocol) == (True, AF.INET6, PROTO.STREAM)
        assert (found.src_addr, found.src_port) == (IPv6Address("2001:db8::7"), 41_000)
        assert (found.dst_addr, found.dst_port) == (IPv6Address("2001:db8::1"), 25)


def test_the_longest_line_of_the_proxy_header_is_as_long_as_allowed() -> None:
    """A reader may hold 107 octets, and no more."""
    address = ":".join(["ffff"] * 8)
    assert len(proxy_v1(Origin(address, 65_535, destination_address=address, destination_port=65_535))) == 104


@pytest.mark.parametrize("address", ["", "/run/batv.sock", "peer.example", "192.0.2"])
def test_the_proxy_header_of_an_unknown_client_tells_of_nobody(address: str) -> None:
    """UNKNOWN and LOCAL are what a server takes without being told who it is."""
    origin = Origin(address, 41_000, destination_address="198.51.100.1", destination_port=25)
    assert proxy_v1(origin) == b"PROXY UNKNOWN\r\n"
    assert proxy_v2(origin) == V2_LOCAL
    assert read_proxy(proxy_v1(origin)).valid
    found = read_proxy(proxy_v2(origin))
    assert (found.valid, found.command, found.family) == (True, V2_CMD.LOCAL, AF.UNSPEC)


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        (Origin("192.0.2.7"), b"PROXY TCP4 192.0.2.7 0.0.0.0 0 0\r\n"),
        (Origin("::1", 65_536), b"PROXY TCP6 %b0001 %b0000 0 0\r\n" % (b"0000:" * 7, b"0000:" * 7)),
        (
            Origin("::ffff:192.0.2.7", 1, destination_address="::ffff:198.51.100.1", destination_port=2),
            b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
        ),
        (
            Origin("192.0.2.7", 1, destination_address="2001:db8::1", destination_port=2),
            b"PROXY TCP4 192.0.2.7 0.0.0.0 1 2\r\n",
        ),
        (
            Origin("2001:db8::7", 1, destination_address="127.0.0.1", destination_port=2),
            b"PROXY TCP6 2001:0db8:%b0007 %b0000 1 2\r\n" % (b"0000:" * 5, b"0000:" * 7),
        ),
    ],
)
def test_a_client_that_is_known_is_told_of_whatever_else_is_missing(origin: Origin, line: bytes) -> None:
    """A header without the client has the server trust it as it trusts us."""
    assert proxy_v1(origin) == line
    one, two = read_proxy(line), read_proxy(proxy_v2(origin))
    assert one.valid
    assert two.valid
    assert (two.family, two.src_addr, two.src_port) == (one.family, one.src_addr, one.src_port)
    assert (two.dst_addr, two.dst_port) == (one.dst_addr, one.dst_port)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "argument",
    [
        b"HELO=" + b"+4" * HUNDRED_KIB,
        b"HELO=" + b"+41" * HUNDRED_KIB,
        b" " * HUNDRED_KIB,
        b"A=b " * HUNDRED_KIB,
        b"HELO=a " * HUNDRED_KIB,
        b"=" * HUNDRED_KIB,
        b"NAME=" + b"a." * 126 + b"-",
    ],
    ids=range(7),
)
def test_long_hostile_arguments_are_refused_at_once(argument: bytes) -> None:
    """One line must not stop the service; the timeout would show it."""
    with pytest.raises(OriginError):
        parse_xclient(argument, Origin())
