"""Mailboxes: what is one, what is none, and that octets stay as written."""

from __future__ import annotations

import pytest

from batv.address import NULL_REVERSE_PATH, ForwardPath, Mailbox, ReversePath, fold
from batv.errors import AddressError

HUNDRED_KIB = 102_400

VALID = [
    b"user@example.com",
    b"u+tag@example.com",
    b"u=x@example.com",
    b"a.b-c_d'e@example.com",
    b"!#$%&'*+-/=?^_`{|}~.0azAZ9@example.com",
    b"a..b@example.com",
    b".a@example.com",
    b"a.@example.com",
    b".@example.com",
    b'""@example.com',
    b'"a b"@example.com',
    b'"a\\"b"@example.com',
    b'"a\\\\"@example.com',
    b'"\\ "@example.com',
    b'"a@b"@example.com',
    b'"a>b<c"@example.com',
    b'"(,:;[])"@example.com',
    b"=?utf-8?q?a=0D=0AQUIT?=@example.com",
    b"prvs=0787abcdef=u@example.com",
    b"u@localhost",
    b"u@EXAMPLE.Com",
    b"u@a-b.c_d.1",
    b"u@_dmarc.example.com",
    b"u@xn--exmple-cua.com",
    b"u@[127.0.0.1]",
    b"u@[IPv6:::1]",
    b"u@[x-tag:anything!]",
    "jörg@exämple.com".encode(),
    '"jörg b"@exämple.com'.encode(),
    "ö@ö".encode(),
    "\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff@\u0080\u07ff.example".encode(),
    b"x" * 1000 + b"@" + b"y" * 1000,
]

INVALID = [
    b"",
    b"@",
    b"user",
    b"user@",
    b"@example.com",
    b"user@@example.com",
    b"user@example.com@example.org",
    b"<user@example.com>",
    b" user@example.com",
    b"user@example.com ",
    b"user @example.com",
    b"user@ example.com",
    b"us er@example.com",
    b"user@example.com\n",
    b"user@example.com\r\n",
    b"user\r@example.com",
    b"user\n@example.com",
    b"user\0@example.com",
    b"user\t@example.com",
    b"user\x01@example.com",
    b"user\x7f@example.com",
    b"user(c)@example.com",
    b"u,v@example.com",
    b"u:v@example.com",
    b"u;v@example.com",
    b"u[v@example.com",
    b"u\\v@example.com",
    b"u>v@example.com",
    b'u"v@example.com',
    b'"@example.com',
    b'"u@example.com',
    b'u"@example.com',
    b'"u"v@example.com',
    b'v"u"@example.com',
    b'"u"."v"@example.com',
    b'"a"b"@example.com',
    b'"a\\"@example.com',
    b'"a\\\\\\"@example.com',
    b'"a\r"@example.com',
    b'"a\n"@example.com',
    b'"a\0"@example.com',
    b'"a\tb"@example.com',
    b'"a\\\tb"@example.com',
    b'"a\\\rb"@example.com',
    b'"a\\\xc3\xb6"@example.com',
    b'"a\x7f"@example.com',
    b"u@example.com.",
    b"u@.example.com",
    b"u@example..com",
    b"u@.",
    b"u@-example.com",
    b"u@example-.com",
    b"u@example.-com",
    b"u@example.com-",
    b"u@-",
    b"u@exa mple.com",
    b"u@example.com\0.example.org",
    b"u@a[b]",
    b"u@[",
    b"u@[]",
    b"u@[a",
    b"u@[a]b",
    b"u@[a b]",
    b"u@[a[b]",
    b"u@[a\\]b]",
    b"u@[127.0.0.1]]",
    b"u@[\xc3\xb6]",
    b"u@=?utf-8?q?example.com?=",
    b"u@exa(c)mple.com",
    b"u@example.com>",
    b"u@a,b",
]

# RFC 3629 section 3 and 10: what a lax decoder takes for a character that the strict one would refuse.
NOT_UTF8 = [
    b"\xff",
    b"\xfe",
    b"\x80",
    b"\xbf",
    b"\xc3",
    b"\xc3x",
    b"\xc0\x80",
    b"\xc0\xae",
    b"\xc1\xbf",
    b"\xe0\x80\x80",
    b"\xe0\x9f\xbf",
    b"\xe0\x80\xaf",
    b"\xe2\x82",
    b"\xe2\x82x",
    b"\xed\xa0\x80",
    b"\xed\xbf\xbf",
    b"\xed\xa0\xbd\xed\xb8\x80",
    b"\xf0\x80\x80\x80",
    b"\xf0\x8f\xbf\xbf",
    b"\xf0\x9f\x98",
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80",
]


@pytest.mark.parametrize("octets", VALID)
def test_a_mailbox_keeps_its_octets(octets: bytes) -> None:
    """What is forwarded has to be what was judged, octet for octet."""
    mailbox = Mailbox.parse(octets)
    assert mailbox.octets == octets
    assert mailbox.local + b"@" + mailbox.domain == octets
    assert mailbox.domain == octets.rpartition(b"@")[2]
    assert mailbox.quoted is octets.startswith(b'"')
    assert mailbox.ascii is octets.isascii()


@pytest.mark.parametrize("octets", INVALID)
def test_octets_that_no_grammar_allows_are_refused(octets: bytes) -> None:
    """Two programs that read such octets differently can be played against each other."""
    with pytest.raises(AddressError, match="is no mail address: give it as local@domain"):
        Mailbox.parse(octets)


@pytest.mark.parametrize("octets", NOT_UTF8)
@pytest.mark.parametrize("form", [b"%b@example.com", b"a%bz@example.com", b'"%b"@example.com', b"u@%b", b"u@a%bz.com"])
def test_octets_that_are_no_utf8_are_refused_everywhere(octets: bytes, form: bytes) -> None:
    """Overlong forms and surrogates are how a dot or a bracket is smuggled past a check."""
    with pytest.raises(AddressError):
        Mailbox.parse(form % octets)


def test_every_utf8_character_beyond_ascii_is_taken() -> None:
    """The pattern is written by hand, so it is compared with the decoder: first and last two of each block."""
    for start in range(0x80, 0x110000, 0x40):
        for point in (start, start + 1, start + 0x3E, start + 0x3F):
            if not 0xD800 <= point <= 0xDFFF:
                character = chr(point).encode()
                assert Mailbox.parse(character + b"@" + character).local == character


def test_every_single_octet_is_taken_where_rfc_5321_has_it() -> None:
    """Sets of characters are easily one too wide: atext with the dot, qtext, quoted pairs, labels, literals."""
    letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    printable = bytes(range(33, 127))
    allowed = {
        b"a%bz@example.com": letters + b"!#$%&'*+-/=?^_`{|}~.",
        b'"a%b"@example.com': b" " + bytes(set(printable) - set(b'"\\')),
        b'"a\\%bz"@example.com': b" " + printable,
        b"u@a%bz": letters + b"-_.",
        b"u@[a%bz]": bytes(set(printable) - set(b"[\\]")),
    }
    for form, octets in allowed.items():
        taken = []
        for octet in range(256):
            try:
                Mailbox.parse(form % bytes((octet,)))
            except AddressError:
                continue
            taken.append(octet)
        # A second @ inside is no mailbox, and `a@z@example.com` is none either.
        assert set(taken) == set(octets), form


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "octets",
    [
        b"a" * HUNDRED_KIB,
        b"." * HUNDRED_KIB,
        b"a." * HUNDRED_KIB,
        b'"' + b"a" * HUNDRED_KIB,
        b'"' + b"\\a" * HUNDRED_KIB,
        b'"' + b"\\\\" * HUNDRED_KIB + b'\\"@d',
        "ö".encode() * HUNDRED_KIB,
        "aö".encode() * HUNDRED_KIB,
        b'"' + "aö\\a".encode() * HUNDRED_KIB,
        b"u@" + b"a" * HUNDRED_KIB + b"-",
        b"u@" + b"a-" * HUNDRED_KIB,
        b"u@" + b"-" * HUNDRED_KIB,
        b"u@" + b"a." * HUNDRED_KIB,
        b"u@" + b"a-." * HUNDRED_KIB,
        b"u@" + "ö".encode() * HUNDRED_KIB + b"-",
        b"u@[" + b"!" * HUNDRED_KIB,
        b"u@[" + b"[" * HUNDRED_KIB,
        b"@" * HUNDRED_KIB,
        b"a@" * HUNDRED_KIB,
    ],
    ids=range(19),
)
def test_long_hostile_octets_are_refused_at_once(octets: bytes) -> None:
    """A pattern that backtracks would stop the service for minutes on a single line; the timeout would show it."""
    with pytest.raises(AddressError):
        Mailbox.parse(octets)


def test_only_ascii_letters_are_folded() -> None:
    """Peers fold ASCII; to fold more would make one tag fit two users."""
    every = bytes(range(256))
    assert fold(every) == every[:65] + b"abcdefghijklmnopqrstuvwxyz" + every[91:]
    assert fold("ÖRG\u212a".encode()) == "Örg\u212a".encode()


def test_a_mailbox_is_safe_to_print() -> None:
    """A log line must not be broken, coloured or turned round by an address."""
    assert str(Mailbox.parse(b"user@example.com")) == "user@example.com"
    assert str(Mailbox.parse("jörg@example.com".encode())) == "jörg@example.com"
    assert str(Mailbox.parse("a\u202eb\u2028\x85c@example.com".encode())) == "a\\u202eb\\u2028\\x85c@example.com"
    assert str(Mailbox(b"a\xff\x1b[1m\r\n", b"d")) == "a\\xff\\x1b[1m\\r\\n@d"
    with pytest.raises(AddressError) as caught:
        Mailbox.parse(b"a\r\n\x1b[1m\xff")
    assert str(caught.value) == "'a\\r\\n\\x1b[1m\\xff' is no mail address: give it as local@domain"


def test_the_null_path_has_no_mailbox() -> None:
    """It is what makes a message a bounce."""
    assert NULL_REVERSE_PATH.null
    assert NULL_REVERSE_PATH.octets == b"<>"
    assert not ReversePath(b"<u@d>", Mailbox(b"u", b"d")).null


def test_a_path_takes_another_mailbox_and_keeps_the_rest() -> None:
    """A source route before the mailbox is the client's own business."""
    new = Mailbox.parse(b"prvs=0787abcdef=u@d.example")
    old = Mailbox.parse(b"u@d.example")
    assert ReversePath(b"<u@d.example>", old).with_mailbox(new).octets == b"<prvs=0787abcdef=u@d.example>"
    routed = ReversePath(b"<@a,@b:u@d.example>", old).with_mailbox(new)
    assert routed == ReversePath(b"<@a,@b:prvs=0787abcdef=u@d.example>", new)
    assert ForwardPath(b"<@a:u@d.example>", old).with_mailbox(new) == ForwardPath(b"<@a:" + new.octets + b">", new)
    assert ReversePath(b"<" + new.octets + b">", new).with_mailbox(old) == ReversePath(b"<u@d.example>", old)
    assert NULL_REVERSE_PATH.with_mailbox(old) == ReversePath(b"<u@d.example>", old)


def test_a_source_route_is_seen() -> None:
    """Inbound, a route asks us to relay."""
    mailbox = Mailbox.parse(b"u@d")
    assert ForwardPath(b"<@a:u@d>", mailbox).routed
    assert not ForwardPath(b"<u@d>", mailbox).routed
    assert not ForwardPath(b"<Postmaster>", None).routed
