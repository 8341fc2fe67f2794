"""Paths and parameters made to deceive, through both proxies, to a next hop that takes and records everything.

What is refused must not reach the next hop; what passes must reach it octet for octet.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import pytest

from batv.observe.event import Direction, TransactionEnded
from tests.support.recorder import EVERYTHING, recorded
from tests.support.relay import LOOPS, badly_tagged, expired, signed, signed_behind, unknown_key

if TYPE_CHECKING:
    from pathlib import Path

BOTH: Final = (Direction.INBOUND, Direction.OUTBOUND)

CONTROL: Final = b"500 5.5.2 "
NO_PATH: Final = b"501 5.1.3 "
NO_RELAY: Final = b"550 5.7.1 "
TAKEN: Final = b"250 2.0.0 "

# Each row: what follows `RCPT TO:`, the reply of the inbound proxy, the reply of the outbound one.
DIFFERENTIALS: Final = (
    # Octets that a parser unfolds, decodes or cuts, so that policy and next hop read different addresses.
    (b'<"x\r<victim@remote.example>"@example.com>', CONTROL, CONTROL),
    (b"<=?utf-8?q?x=0D<victim@remote.example>?=@example.com>", NO_PATH, NO_PATH),
    (b"<=?utf-8?q?a=0D=0AQUIT?=@example.com>", TAKEN, TAKEN),
    (b"<=?utf-8?q?a@example.com>=0D=0ARCPT_TO:<victim?=@example.com>", NO_PATH, NO_PATH),
    (b"<=?utf-8?b?YUBiPg0KUVVJVA==?=@example.com>", TAKEN, TAKEN),
    (b"<=?utf-8?q?prvs=3D0123abcdef=3Du?=@example.com>", TAKEN, TAKEN),
    (b'<"=?utf-8?q?a=0D=0Ab?="@example.com>', TAKEN, TAKEN),
    (b"<u@=?utf-8?q?example.com?=>", NO_PATH, NO_PATH),
    (b"<=?utf-8?q?a=00b?=@example.com>", TAKEN, TAKEN),
    (b"<=?x?q?abc?=@example.com>", TAKEN, TAKEN),
    (b'<"u\r"@example.com>', CONTROL, CONTROL),
    (b"<u\r@example.com>", CONTROL, CONTROL),
    (b"<u\0@example.com>", CONTROL, CONTROL),
    (b"<u\x01@example.com>", CONTROL, CONTROL),
    (b"<u\x7f@example.com>", CONTROL, CONTROL),
)

FRAGMENTS: Final = (
    *(
        (path, NO_PATH, NO_PATH)
        for path in (b"", b"<", b"<@", b"<@a:", b"<u@[", b"<u@[a>", b'"', b"=@[", b"<>", b"<@>")
    ),
    (b"<@[\t", CONTROL, CONTROL),
)

ALTERED_BY_OTHERS: Final = (
    (b"<(c)user@example.com>", NO_PATH, NO_PATH),
    (b"<user(c)@example.com>", NO_PATH, NO_PATH),
    (b"<user @example.com>", NO_PATH, NO_PATH),
    (b"<user@ example.com>", NO_PATH, NO_PATH),
    (b"< user@example.com>", NO_PATH, NO_PATH),
    (b"<user@example.com >", NO_PATH, NO_PATH),
    (b"<u\t@example.com>", CONTROL, CONTROL),
    (b"<user@example.com", NO_PATH, NO_PATH),
    (b'<"a', NO_PATH, NO_PATH),
    (b"<u@example.com (x", NO_PATH, NO_PATH),
    (b'<"@example.com>', NO_PATH, NO_PATH),
    (b'<"user"@example.com>', TAKEN, TAKEN),
    (b"<@hop1,@hop2:user@example.com>", NO_RELAY, TAKEN),
    (b"<u,v@example.com>", NO_PATH, NO_PATH),
    (b"<u:v@example.com>", NO_PATH, NO_PATH),
    (b"<u;v@example.com>", NO_PATH, NO_PATH),
    (b"u@example.com", NO_PATH, NO_PATH),
    (b"<u@example.com>SIZE=1", NO_PATH, NO_PATH),
    (b"<u@example.com>>", NO_PATH, NO_PATH),
    (b"<<u@example.com>>", NO_PATH, NO_PATH),
    (b"<u@a[b]>", NO_PATH, NO_PATH),
    (b"<u@example.com> <victim@remote.example>", NO_PATH, NO_PATH),
    (b"<u@example.com>,<victim@remote.example>", NO_PATH, NO_PATH),
    (b"  <u@example.com>", NO_PATH, NO_PATH),
)

LEGAL: Final = (
    *(
        (path, TAKEN, TAKEN)
        for path in (
            b'<"a b"@example.com>',
            b'<"a\\"b"@example.com>',
            b'<"\\a\\ \\\\"@example.com>',
            b'<""@example.com>',
            b"<u+tag@example.com>",
            b"<u=x@example.com>",
            b"<a.b-c_d'e@example.com>",
            b"<!#$&'*+-/=?^_`{|}~@example.com>".replace(b"!", b""),
            b"<Postmaster>",
            b"<postmaster@example.com>",
            b"<a..b@example.com>",
            b"<.a@example.com>",
            b"<a.@example.com>",
            b"<u@EXAMPLE.com>",
            b"<" + b"u" * 64 + b"@example.com>",
            b"<" + b"u" * 65 + b"@example.com>",
            b"<" + b"u" * 512 + b"@example.com>",
        )
    ),
    (b'<"a@b"@example.com>', NO_RELAY, TAKEN),
    (b"<u@[127.0.0.1]>", NO_RELAY, TAKEN),
    (b"<u@[IPv6:::1]>", NO_RELAY, TAKEN),
)

RELAY_TRICKS: Final = (
    (b"<victim%remote.example@example.com>", NO_RELAY, TAKEN),
    (b"<remote.example!victim@example.com>", NO_RELAY, TAKEN),
    (b'<"victim@remote.example"@example.com>', NO_RELAY, TAKEN),
    (b'<"victim\\@remote.example"@example.com>', NO_RELAY, TAKEN),
    (b"<@example.com:victim@remote.example>", NO_RELAY, TAKEN),
    (b"<@example.com:victim@example.com>", NO_RELAY, TAKEN),
    (b"<victim@remote.example>", NO_RELAY, TAKEN),
    (b"<victim@remote.example@example.com>", NO_RELAY, NO_PATH),
    (b"<victim@example.com@remote.example>", NO_RELAY, NO_PATH),
    (b"<prvs=0123abcdef=victim%remote.example@example.com>", NO_RELAY, TAKEN),
    (b'<"prvs=0123abcdef=victim@remote.example"@example.com>', NO_RELAY, TAKEN),
    (b"<victim%remote.example+prvs=0123abcdef@example.com>", NO_RELAY, TAKEN),
    (b"<victim@example.com.>", NO_PATH, NO_PATH),
    (b"<victim@.example.com>", NO_PATH, NO_PATH),
    (b"<victim@example.com\0.remote.example>", CONTROL, CONTROL),
    (b"<victim@sub.example.com>", NO_RELAY, TAKEN),
    (b"<victim@[127.0.0.1]>", NO_RELAY, TAKEN),
    (b"<victim@example.com.remote.example>", NO_RELAY, TAKEN),
    (b"<victim@com>", NO_RELAY, TAKEN),
)

TABLES: Final = {
    "differentials": DIFFERENTIALS,
    "fragments": FRAGMENTS,
    "altered-by-others": ALTERED_BY_OTHERS,
    "legal": LEGAL,
    "relay-tricks": RELAY_TRICKS,
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("direction", BOTH, ids=str)
@pytest.mark.parametrize("table", TABLES)
def test_a_recipient_passes_octet_for_octet_or_not_at_all(
    table: str, direction: Direction, loop: str, tmp_path: Path
) -> None:
    """What the policy read and what the next hop reads must be the same octets."""

    async def run() -> None:
        async with recorded(tmp_path, direction) as (client, recorder, _):
            assert await client.say(b"MAIL FROM:<ann@peer.example>") == b"250 2.0.0 Ok\r\n"
            recorder.clear()
            for path, inbound, outbound in TABLES[table]:
                expected = inbound if direction is Direction.INBOUND else outbound
                reply = await client.say(b"RCPT TO:" + path)
                assert (path, reply[: len(expected)]) == (path, expected)
                assert recorder.commands == ([b"RCPT TO:" + path + b"\r\n"] if expected is TAKEN else [])
                recorder.clear()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(run())


@pytest.mark.parametrize("direction", BOTH, ids=str)
def test_a_sender_elsewhere_passes_octet_for_octet_or_not_at_all(direction: Direction, tmp_path: Path) -> None:
    """As above for the reverse path: of another domain than ours, so that neither proxy may change it."""

    async def run() -> None:
        async with recorded(tmp_path, direction) as (client, recorder, _):
            for path, _, outbound in (row for table in TABLES.values() for row in table):
                if path in {b"<Postmaster>", b"<>"}:
                    continue
                sender = path.replace(b"example.com", b"far.example").replace(b"EXAMPLE.com", b"FAR.example")
                reply = await client.say(b"MAIL FROM:" + sender)
                expected = outbound.replace(b"5.1.3", b"5.1.7")
                assert (sender, reply[: len(expected)]) == (sender, expected)
                assert recorder.commands == ([b"MAIL FROM:" + sender + b"\r\n"] if outbound is TAKEN else [])
                await client.say(b"RSET")
                recorder.clear()

    asyncio.run(run())


OURS: Final = b"joe@example.com"
TAG: Final = signed(OURS)[5:15]
_JOE_UTF8: Final = "jo\u00e9@example.com".encode()


def _bit_flipped(bit: int) -> bytes:
    signature = (int(TAG[4:], 16) ^ (1 << bit)).to_bytes(3, "big").hex().encode()
    return b"prvs=" + TAG[:4] + signature + b"=" + OURS


# Each row: a mailbox, the verdict on a bounce to it, the mailbox that the next hop hears of.
JUDGED: Final = (
    (OURS, "untagged", OURS),
    (signed(OURS), "valid", OURS),
    (signed_behind(OURS), "valid", OURS),
    (b"PRVS=" + TAG + b"=" + OURS, "valid", OURS),
    (b"Prvs=" + TAG.upper() + b"=" + OURS, "valid", OURS),
    (b"prvs=" + TAG + b"=JOE@example.com", "valid", b"JOE@example.com"),
    (b"prvs=" + TAG + b"=joe@EXAMPLE.com", "valid", b"joe@EXAMPLE.com"),
    (signed(b'"a b"@example.com'), "valid", b'"a b"@example.com'),
    (b'"' + signed(OURS).replace(b"@", b'"@'), "bad-signature", b'"joe"@example.com'),
    (signed(b"SRS0=HHH=TT=dom=u@example.com"), "valid", b"SRS0=HHH=TT=dom=u@example.com"),
    (signed(b"u" * 48 + b"@example.com"), "valid", b"u" * 48 + b"@example.com"),
    (signed(OURS, days_ago=-1), "valid", OURS),
    (signed(OURS, days_ago=7), "valid", OURS),
    (signed(OURS, days_ago=8), "expired", OURS),
    (signed(OURS, days_ago=-2), "expired", OURS),
    (signed(OURS, days_ago=993), "expired", OURS),
    (signed(OURS, days_ago=1000), "valid", OURS),  # the counter has gone round: the ring, not the tag, ends a key
    (expired(OURS), "expired", OURS),
    (badly_tagged(OURS), "bad-signature", OURS),
    (unknown_key(OURS), "unknown-key", OURS),
    *((_bit_flipped(bit), "bad-signature", OURS) for bit in range(24)),
    (signed(OURS).replace(b"joe", b"ann"), "bad-signature", b"ann@example.com"),
    (b"prvs=" + TAG[:-1] + b"=" + OURS, "malformed", None),
    (b"prvs=" + TAG + b"0=" + OURS, "malformed", None),
    (b"prvs=" + TAG + b"=@example.com", "malformed", None),
    (b"prvs=" + TAG + b"@example.com", "malformed", None),
    (b"prvs=@example.com", "malformed", None),
    (b"prvs==" + OURS, "malformed", None),
    (b"prvs=" + TAG + b"==" + OURS, "bad-signature", b"=" + OURS),
    (b"prvs=" + TAG + b"=" + signed(OURS), "bad-signature", signed(OURS)),
    (b"prvs=joe=" + TAG + b"@example.com", "malformed", None),
    (b"prvs=joe/" + TAG + b"@example.com", "malformed", None),
    (b"prvs=" + TAG[:9] + b"g=" + OURS, "malformed", None),
    (b"prvs=+" + TAG[1:] + b"=" + OURS, "malformed", None),
    (b"prvs=-" + TAG[1:] + b"=" + OURS, "malformed", None),
    (b"prvs=0x" + TAG[2:] + b"=" + OURS, "malformed", None),
    (b"prvs=3_" + TAG[2:] + b"=" + OURS, "malformed", None),
    (b"prvs=\xef\xbc\x93" + TAG[1:] + b"=" + OURS, "malformed", None),
    (b"prvs=\xd9\xa3" + TAG[1:] + b"=" + OURS, "malformed", None),
    (b"btv1==" + TAG + b"==" + OURS, "untagged", None),
    (b"SRS0=HHH=TT=dom=" + signed(OURS), "untagged", None),
    (b"joe+prvs=what@example.com", "untagged", None),
    (signed(_JOE_UTF8), "valid", _JOE_UTF8),
    (signed(_JOE_UTF8).replace(b"\xc3\xa9", b"e\xcc\x81"), "bad-signature", "joe\u0301@example.com".encode()),
)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_bounce_is_judged_by_its_tag(loop: str, tmp_path: Path) -> None:
    """Every look-alike of a good tag is forged, and the next hop hears of one mailbox, one tag shorter at most."""

    async def run() -> None:
        async with recorded(tmp_path, Direction.INBOUND) as (client, recorder, relay):
            for mailbox, verdict, asked in JUDGED:
                assert await client.say(b"MAIL FROM:<> SMTPUTF8") == b"250 2.0.0 Ok\r\n"
                assert await client.say(b"RCPT TO:<" + mailbox + b">") == b"250 2.1.5 Ok\r\n"
                assert recorder.commands[-1] == b"RCPT TO:<" + (asked or mailbox) + b">\r\n"
                await client.say(b"RSET")
                ended = relay.events[-1]
                assert isinstance(ended, TransactionEnded)
                assert (mailbox, ended.recipients[0].verdict.value) == (mailbox, verdict)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(run())


@pytest.mark.parametrize("direction", BOTH, ids=str)
def test_octets_that_are_no_utf_8_are_no_path(direction: Direction, tmp_path: Path) -> None:
    """Overlong forms, surrogates and stray octets are read in as many ways as there are decoders."""

    async def run() -> None:
        async with recorded(tmp_path, direction) as (client, recorder, _):
            await client.say(b"MAIL FROM:<ann@peer.example> SMTPUTF8")
            recorder.clear()
            for octets in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xe2\x82", b"\xf4\x90\x80\x80", b"\x80"):
                for path in (b"<u" + octets + b"@example.com>", b"<u@" + octets + b"example.com>"):
                    assert (await client.say(b"RCPT TO:" + path)).startswith(NO_PATH)
            assert recorder.commands == []

    asyncio.run(run())


MAIL_PARAMETERS: Final = (
    *(
        (parameters, TAKEN)
        for parameters in (
            b"SIZE=1",
            b"SIZE=0",
            b"SIZE=-1",
            b"SIZE=\xb2",
            b"SIZE",
            b"SIZE=1 SIZE=2",
            b"BODY=7BIT",
            b"body=8BitMime",
            b"BODY=FOO",
            b"SMTPUTF8",
            b"SMTPUTF8=1",
            b"RET=HDRS",
            b"RET=FULL",
            b"RET=X",
            b"ENVID=ab+3Dc",
            b"RET=HDRS ENVID=<Ab@c>",
            b"X-FOO=1",
            b"A=",
            b"X=" + b"y" * 2000,
        )
    ),
    (b"SIZE=99999999999999999999", b"552 5.3.4 "),
    (b"=1", b"501 5.1.7 "),
    (b"A=1 (c)", b"501 5.1.7 "),
    *(
        (parameters, b"555 5.5.4 ")
        for parameters in (
            b"BODY=BINARYMIME",
            b"BODY=7BIT BODY=BINARYMIME",
            b"AUTH=<>",
            b"AUTH=u+3Dx@d",
            b"REQUIRETLS",
            b"MT-PRIORITY=3",
            b"HOLDFOR=60",
            b"HOLDUNTIL=2030-01-01T00:00:00Z",
            b"BY=60;R",
            b"SIZE=1 auth=<>",
        )
    ),
)

RCPT_PARAMETERS: Final = (
    (b"NOTIFY=NEVER", TAKEN),
    (b"NOTIFY=SUCCESS,FAILURE", TAKEN),
    (b"notify=never ORCPT=rfc822;User+40d", TAKEN),
    (b"ORCPT=rfc822;<User>", TAKEN),
    (b"X-FOO=1", TAKEN),
    (b"RRVS=2014-01-01T00:00:00Z", b"555 5.5.4 "),
    (b"=1", NO_PATH),
)


@pytest.mark.parametrize("offers", [EVERYTHING, ()], ids=["announced", "unannounced"])
@pytest.mark.parametrize("null", [False, True], ids=["mail", "bounce"])
@pytest.mark.parametrize("direction", BOTH, ids=str)
def test_parameters_pass_octet_for_octet_or_not_at_all(
    direction: Direction, offers: tuple[bytes, ...], tmp_path: Path, *, null: bool
) -> None:
    """What only the next hop understands is its own to answer; what we could not keep, we refuse."""
    sender = b"<>" if null else b"<ann@peer.example>"

    async def run() -> None:
        async with recorded(tmp_path, direction, offers=offers) as (client, recorder, _):
            for parameters, expected in MAIL_PARAMETERS:
                line = b"MAIL FROM:" + sender + b" " + parameters
                reply = await client.say(line)
                assert (parameters, reply[: len(expected)]) == (parameters, expected)
                assert recorder.commands == ([line + b"\r\n"] if expected is TAKEN else [])
                await client.say(b"RSET")
                recorder.clear()
            await client.say(b"MAIL FROM:" + sender)
            recorder.clear()
            for parameters, expected in RCPT_PARAMETERS:
                line = b"RCPT TO:<postmaster> " + parameters
                reply = await client.say(line)
                assert reply[:3] == expected[:3]
                assert recorder.commands == ([line + b"\r\n"] if expected is TAKEN else [])
                recorder.clear()

    asyncio.run(run())
