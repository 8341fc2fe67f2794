"""The arguments of MAIL and RCPT: what is taken, what is refused, and that octets stay as written."""

from __future__ import annotations

import pytest

from batv.address import NULL_REVERSE_PATH, Mailbox
from batv.errors import PathError
from batv.smtp.path import keywords, parameter, parse_mail, parse_rcpt

HUNDRED_KIB = 102_400

PATHS = [
    b"<u@local.example>",
    b"<U+Tag@Local.Example>",
    b'<"a b"@local.example>',
    b'<"a\\"b"@local.example>',
    b'<"a@b"@local.example>',
    b'<"a>b"@local.example>',
    b'<"<>"@local.example>',
    b"<a..b@local.example>",
    b"<.a@local.example>",
    b"<a.@local.example>",
    b"<u@[127.0.0.1]>",
    b"<u@[IPv6:::1]>",
    b"<u@localhost>",
    b"<postmaster@local.example>",
    b"<prvs=0787abcdef=u@local.example>",
    b'<"prvs=0787abcdef=a b"@local.example>',
    b"<=?utf-8?q?prvs=3D0123abcdef=3Du?=@local.example>",
    b"<=?utf-8?q?a=0D=0AQUIT?=@local.example>",
    "<jörg@exämple.com>".encode(),
]
ROUTED = [b"<@a:u@local.example>", b"<@hop1,@hop2.example:u@local.example>", b'<@[127.0.0.1]:"a b"@local.example>']

# Each of these some parser takes for an address, some for another one.
NO_PATHS = [
    b"",
    b"<",
    b">",
    b"<@",
    b"<@a:",
    b"<@a:>",
    b"<u@[",
    b"<u@[a>]",
    b'"',
    b"=@[",
    b"<@[\t",
    b"<u>",
    b"<u@>",
    b"<@local.example>",
    b"u@local.example",
    b"<u@local.example",
    b"u@local.example>",
    b"<<u@local.example>>",
    b"<u@local.example>>",
    b"<u@local.example> >",
    b"<u@local.example>SIZE=1",
    b"<u@local.example>\tSIZE=1",
    b"(c)<u@local.example>",
    b"<(c)user@local.example>",
    b"<user(c)@local.example>",
    b"<u@local.example(x)>",
    b"<user @local.example>",
    b"<user@ local.example>",
    b"< user@local.example>",
    b"<user@local.example >",
    b"<u\t@local.example>",
    b'<"a@local.example>',
    b'<"@local.example>',
    b"<u,v@local.example>",
    b"<u:v@local.example>",
    b"<u;v@local.example>",
    b"<u@a[b]>",
    b"<u@local.example.>",
    b"<u@local.example\0.remote.example>",
    b"<u\r@local.example>",
    b'<"x\r<victim@remote.example>"@local.example>',
    b"<u\0@local.example>",
    b"<u\x01@local.example>",
    b"<u\x7f@local.example>",
    b"<u\xff@local.example>",
    b"<u@=?utf-8?q?local.example?=>",
    b"<=?utf-8?q?x=0D<victim@remote.example>?=@local.example>",
    b"<@a,@b,:u@local.example>",
    b"<@a;u@local.example>",
    b"<a:u@local.example>",
    b"<u@local.example>\r\n",
    b"< >",
    b"<> <>",
    b"Joe <u@local.example>",
]


@pytest.mark.parametrize("path", PATHS + ROUTED)
@pytest.mark.parametrize("keyword", [b":", b": "])
def test_a_path_keeps_its_octets(path: bytes, keyword: bytes) -> None:
    """What the next hop gets is what was judged, octet for octet."""
    mailbox = Mailbox.parse(path[1:-1].rpartition(b":@")[2] if path in PATHS else path[1:-1].partition(b":")[2])
    mail = parse_mail(b"FROM" + keyword + path)
    assert (mail.path.octets, mail.path.mailbox, mail.parameters) == (path, mailbox, b"")
    rcpt = parse_rcpt(b"TO" + keyword + path)
    assert (rcpt.path.octets, rcpt.path.mailbox, rcpt.parameters) == (path, mailbox, b"")
    assert rcpt.path.routed is (path in ROUTED)


@pytest.mark.parametrize("path", NO_PATHS)
def test_what_no_grammar_allows_is_refused(path: bytes) -> None:
    """To guess is to judge one address and to send another."""
    with pytest.raises(PathError, match="the argument of MAIL is no reverse path"):
        parse_mail(b"FROM:" + path)
    with pytest.raises(PathError, match="the argument of RCPT is no forward path"):
        parse_rcpt(b"TO:" + path)


def test_the_keyword_is_read_in_either_case_and_must_be_there() -> None:
    """One space before the path is taken, since many senders write it; more is not."""
    for start in (b"FROM:", b"from:", b"From: "):
        assert parse_mail(start + b"<u@d>").path.octets == b"<u@d>"
    for start in (b"TO:", b"to:", b"To: "):
        assert parse_rcpt(start + b"<u@d>").path.octets == b"<u@d>"
    for start in (b"", b"FROM", b"FROM :", b"FROM:  ", b" FROM:", b"TO:", b"FROM:\t", b"FRO\xc5\xbf:"):
        with pytest.raises(PathError):
            parse_mail(start + b"<u@d>")
    for start in (b"", b"TO", b"TO :", b"TO:  ", b" TO:", b"FROM:", b"TO:\t"):
        with pytest.raises(PathError):
            parse_rcpt(start + b"<u@d>")


def test_the_null_path_is_for_senders_only() -> None:
    """It makes a message a bounce; nobody can receive mail under it."""
    assert parse_mail(b"FROM:<>").path is NULL_REVERSE_PATH
    assert parse_mail(b"FROM:<> RET=HDRS").parameters == b" RET=HDRS"
    with pytest.raises(PathError):
        parse_rcpt(b"TO:<>")


def test_postmaster_without_a_domain_is_for_recipients_only() -> None:
    """Each server has one, in any case."""
    for octets in (b"<Postmaster>", b"<postmaster>", b"<POSTMASTER>"):
        found = parse_rcpt(b"TO:" + octets + b" NOTIFY=NEVER")
        assert (found.path.octets, found.path.mailbox, found.parameters) == (octets, None, b" NOTIFY=NEVER")
        with pytest.raises(PathError):
            parse_mail(b"FROM:" + octets)


@pytest.mark.parametrize(
    "parameters",
    [
        b"",
        b" SIZE=1",
        b" SIZE=1 SIZE=2",
        b" SIZE",
        b" SIZE=",
        b" SIZE=-1 BODY=8BITMIME SMTPUTF8",
        b" RET=HDRS ENVID=ab+3Dc",
        b" ORCPT=rfc822;User+40d NOTIFY=SUCCESS,FAILURE",
        b" AUTH=<>",
        b" MT-PRIORITY=3",
        b" BY=60;R",
        b" X-FOO=1=2==",
        b" SIZE=\xb2",
        b" A=<x@y>",
        b"  SIZE=1   BODY=7BIT",
        b" X=" + b"a" * 2000,
    ],
)
def test_parameters_keep_their_octets_and_order(parameters: bytes) -> None:
    """DSN parameters are case-sensitive, and a next hop may know more than we do."""
    assert parse_mail(b"FROM:<u@d>" + parameters).parameters == parameters
    assert parse_rcpt(b"TO:<u@d>" + parameters + b" ").parameters == parameters


@pytest.mark.parametrize(
    "parameters", [b" =1", b" -X=1", b" =", b" SIZE\t=1", b" <v@d>", b" A= B=<x> <y>", b" ;", b" \xc3\xb6=1"]
)
def test_what_does_not_begin_like_a_parameter_is_refused(parameters: bytes) -> None:
    """Nothing after a path may be taken for another one."""
    with pytest.raises(PathError):
        parse_mail(b"FROM:<u@d>" + parameters)
    with pytest.raises(PathError):
        parse_rcpt(b"TO:<u@d>" + parameters)


@pytest.mark.parametrize(
    ("argument", "trick"),
    [
        (b"TO:<victim@remote.example@local.example>", True),
        (b"TO:<a@b@c@local.example> NOTIFY=NEVER", True),
        (b'TO:<"a b"@remote.example@local.example>', True),
        (b"TO:<victim@@local.example>", False),
        (b"TO:<victim@local.example", False),
        (b"TO:nonsense", False),
        (b"nonsense", False),
    ],
)
def test_a_second_at_sign_counts_as_an_attempt_to_relay(argument: bytes, *, trick: bool) -> None:
    """It is answered like one, not like a slip of the pen."""
    with pytest.raises(PathError) as caught:
        parse_rcpt(argument)
    assert caught.value.relay_trick is trick


def test_keywords_come_in_upper_case_and_order() -> None:
    """Keywords are case-insensitive, their values are not."""
    assert keywords(b"") == []
    assert keywords(b" size=1 BODY=8bitmime SmtpUtf8  X=a=b") == [b"SIZE", b"BODY", b"SMTPUTF8", b"X"]


def test_a_parameter_is_found_by_its_keyword() -> None:
    """The first of its kind, empty where it has no value; one that is not there is told from that."""
    parameters = b" size=1 SIZE=2 BODY=8bitMIME SMTPUTF8 X=a=b Y="
    assert parameter(parameters, b"SIZE") == b"1"
    assert parameter(parameters, b"BODY") == b"8bitMIME"
    assert parameter(parameters, b"SMTPUTF8") == b""
    assert parameter(parameters, b"X") == b"a=b"
    assert parameter(parameters, b"Y") == b""
    assert parameter(parameters, b"Z") is None


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "octets",
    [
        b"<" + b"a" * HUNDRED_KIB,
        b'<"' + b"\\a" * HUNDRED_KIB,
        b"<" + b"@a," * HUNDRED_KIB,
        b"<" + b"@a.b," * HUNDRED_KIB + b"@a:u@d",
        b"<" + b"@a" * HUNDRED_KIB,
        b"<u" + b"@a.b" * HUNDRED_KIB,
        b"<@" + b"a." * HUNDRED_KIB,
        b"<@[" + b"!" * HUNDRED_KIB + b"]:u@d",
        b"<u@d> " + b" " * HUNDRED_KIB + b"!",
        b"<u@d>" + b" a" * HUNDRED_KIB + b" !",
        b"<u@d>" + b" a=" * HUNDRED_KIB + b" !",
        b"<u@d>" + b"  a=b" * HUNDRED_KIB + b" =",
        b"<u@d> " + b"a" * HUNDRED_KIB + b"!",
        b"<" * HUNDRED_KIB,
        b"<>" * HUNDRED_KIB,
    ],
    ids=range(15),
)
def test_long_hostile_arguments_are_refused_at_once(octets: bytes) -> None:
    """A pattern that backtracks would stop the service for minutes on one line; the timeout would show it."""
    with pytest.raises(PathError):
        parse_mail(b"FROM:" + octets)
    with pytest.raises(PathError):
        parse_rcpt(b"TO:" + octets)
