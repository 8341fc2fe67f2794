"""Message ends that only some peers take for one, each through a proxy towards a next hop that takes them all.

After each of them the client goes on with the commands of a second message. One message must come out, or none.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from batv.observe.event import Direction
from tests.support.recorder import Client, recorded
from tests.support.relay import LOOPS, signed
from tests.support.smuggling import BARE, CLEAN, END, LENIENT_END, SMUGGLED, has_bare, in_pieces, one_message

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.conftest import Sample
    from tests.support.recorder import Recorder

OPENINGS: Final = (
    b"Subject: one\r\n\r\nx",
    b"no separator",
    b"",
    b"..",
    b"\r\n",
    b"X-Batv-Status: valid",
    b"\n",
    b"\r",
)


class Mode(NamedTuple):
    """One way in which a proxy treats messages.

    Attributes:
        direction: which proxy.
        settings: what differs from the usual settings.
        sender: the reverse-path with which a message is treated so.
        recipient: a forward-path.
        refuses: whether a message with a bare line end or a NUL is refused.
        marks: whether a header field is put before the message.
    """

    direction: Direction
    settings: dict[str, Any]
    sender: bytes
    recipient: bytes
    refuses: bool = False
    marks: bool = False

    @property
    def commands(self) -> bytes:
        """The commands before a message, to be sent together."""
        return b"MAIL FROM:%b\r\nRCPT TO:%b\r\nDATA\r\n" % (self.sender, self.recipient)


_REJECT: Final = {"smtp": {"bare_newlines": "reject"}}
_MARK: Final = {"domains": {"example.com": {"on_forged": "mark"}}}

MODES: Final = {
    "normalize": Mode(Direction.INBOUND, {}, b"<ann@peer.example>", b"<joe@example.com>"),
    "reject": Mode(Direction.INBOUND, _REJECT, b"<ann@peer.example>", b"<joe@example.com>", refuses=True),
    "mark": Mode(Direction.INBOUND, _MARK, b"<>", b"<joe@example.com>", marks=True),
    "mark-and-reject": Mode(
        Direction.INBOUND, {**_REJECT, **_MARK}, b"<>", b"<joe@example.com>", refuses=True, marks=True
    ),
    "outbound": Mode(Direction.OUTBOUND, {}, b"<joe@example.com>", b"<ann@peer.example>"),
    "outbound-and-reject": Mode(Direction.OUTBOUND, _REJECT, b"<joe@example.com>", b"<ann@peer.example>", refuses=True),
}

_STATUS: Final = b"X-Batv-Status: invalid, missing\r\n"

# Longest line and a command's line, a page, what is written at once, what is read at once, and two of those.
EDGES: Final = (1001, 4096, 16_384, 65_536, 131_072)

# Where the sequence begins, seen from the edge: the edge comes to lie before it, behind each octet of it, or after it.
_ABOUT: Final = range(-8, 3)
_LINE_OCTETS: Final = 1000


def filled(begin: bytes, octets: int, *, letter: bytes = b"x") -> bytes:
    """Return a message's beginning of so many octets, in lines; its last line is open and has something in it."""
    line = letter * (_LINE_OCTETS - 2) + b"\r\n"
    lines, rest = divmod(octets - len(begin) - _LINE_OCTETS // 2, _LINE_OCTETS)
    return begin + line * lines + letter * (rest + _LINE_OCTETS // 2)


def at_line_ends(begin: bytes, sequence: bytes, end: bytes) -> Iterator[list[bytes]]:
    """Yield a message whole, and cut between CR and LF wherever they stand in the sequence or at its first octet."""
    message = begin + sequence + end
    yield [message]
    cuts = {at + 1 for at in range(len(sequence)) if sequence[at : at + 2] == b"\r\n"} | {1}
    for at in sorted(cuts):
        yield [message[: len(begin) + at], message[len(begin) + at :]]


async def attack(client: Client, recorder: Recorder, mode: Mode, pieces: Sequence[bytes]) -> bytes | None:
    """Send a message in pieces; return what the next hop got of it, one message or none."""
    message = b"".join(pieces)
    refused = mode.refuses and has_bare(message)
    shown = [(piece[-40:], len(piece)) for piece in pieces]
    await client.pieces([mode.commands])
    replies = [(await client.reply())[:3] for _ in range(3)]
    assert replies == [b"250", b"250", b"354"]
    await client.pieces([piece for piece in pieces if piece])
    reply = await client.reply()
    assert (shown, reply[:10]) == (shown, b"550 5.6.11" if refused else b"250 2.0.0 ")
    assert len(recorder.commands) == 2
    assert len(recorder.messages) == (0 if refused else 1)
    got = recorder.messages[0] if recorder.messages else None
    recorder.clear()
    if got is not None:
        assert (shown, got[-200:], one_message(got)) == (shown, got[-200:], True)
        assert got.endswith(b"Subject: smuggled\r\n\r\nx" + END)
    return got


@pytest.mark.parametrize(
    ("mode", "loop"),
    [(mode, loop) for mode in MODES for loop in LOOPS if loop == "asyncio" or not MODES[mode].refuses],
)
def test_one_message_or_none(mode: str, loop: str, tmp_path: Path) -> None:
    """However the octets are cut, no part of a message becomes another one, and the session stays in step."""
    treated = MODES[mode]

    async def run() -> None:
        async with recorded(tmp_path, treated.direction, treated.settings) as (client, recorder, _):
            for opening, sequence in ((opening, sequence) for sequence in BARE + CLEAN for opening in OPENINGS):
                message = opening + sequence + SMUGGLED + END
                if END in b"\r\n" + message[: -len(END)]:
                    continue  # together they are the true end
                begin = max(len(opening) - 2, 0)
                end = len(opening) + len(sequence) + 2
                cuts = in_pieces(message, begin, end) if opening is OPENINGS[0] else [[message]]
                for pieces in cuts:
                    got = await attack(client, recorder, treated, pieces)
                    if got is not None and sequence in CLEAN and opening == OPENINGS[0]:
                        assert got.removeprefix(_STATUS if treated.marks else b"") == message

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(run())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("edge", EDGES)
def test_no_edge_of_a_buffer_makes_two_messages_of_one(edge: int, mode: str, tmp_path: Path, sample: Sample) -> None:
    """What is looked for across two pieces is found wherever a buffer ends, and nothing else is."""
    treated = MODES[mode]
    begins = [b"Subject: one\r\n\r\n", b"X-Long: a\r\n "] if treated.marks else [b"Subject: one\r\n\r\n"]
    cases = [(sequence, begin, edge + about) for sequence in BARE + CLEAN for begin in begins for about in _ABOUT]

    async def run() -> None:
        async with recorded(tmp_path, treated.direction, treated.settings) as (client, recorder, _):
            for sequence, begin, octets in sample(cases, 5):
                opening = filled(begin, octets)
                assert len(opening) == octets
                for pieces in at_line_ends(opening, sequence, SMUGGLED + END):
                    got = await attack(client, recorder, treated, pieces)
                    if got is not None and sequence in CLEAN:
                        assert got.removeprefix(_STATUS if treated.marks else b"") == b"".join(pieces)

    asyncio.run(run())


@pytest.mark.parametrize("mode", MODES)
def test_honest_messages_about_an_attack_pass_octet_for_octet(mode: str, tmp_path: Path) -> None:
    """Before and after it in the same session, and in another one that begins before it and ends after it."""
    treated = MODES[mode]
    honest = (
        b"Subject: honest\r\n\r\n..\r\n..dot\r\n \t\r\n\xff\x80\xe2\x80\xa8\r\n" + b"z" * 998 + b"\r\n.x\r\n\r\nend\r\n"
    )
    as_sent = (_STATUS if treated.marks else b"") + honest + b".\r\n"
    sender = signed(b"joe@example.com") if treated.direction is Direction.OUTBOUND else treated.sender.strip(b"<>")
    envelope = [b"MAIL FROM:<%b>\r\n" % sender, b"RCPT TO:%b\r\n" % treated.recipient]

    async def begin(client: Client) -> None:
        await client.pieces([treated.commands])
        assert [(await client.reply())[:3] for _ in range(3)] == [b"250", b"250", b"354"]

    async def finish(client: Client, octets: bytes) -> None:
        await client.pieces([octets])
        assert (await client.reply())[:10] == b"250 2.0.0 "

    async def run() -> None:
        async with recorded(tmp_path, treated.direction, treated.settings) as (client, recorder, relay):
            other = Client(*await asyncio.open_connection("127.0.0.1", relay.port))
            await other.reply()
            await other.say(b"EHLO honest.example")
            for sequence in BARE + CLEAN:
                for at in range(len(honest) // 2 - 1, len(honest) // 2 + 2):
                    await begin(client)
                    await finish(client, honest + b".\r\n")
                    await begin(other)
                    await other.pieces([honest[:at]])
                    assert [recorder.messages, recorder.commands] == [[as_sent], envelope * 2]
                    recorder.clear()
                    await attack(client, recorder, treated, [OPENINGS[0] + sequence[:1], sequence[1:] + SMUGGLED + END])
                    await finish(other, honest[at:] + b".\r\n")
                    await begin(client)
                    await finish(client, honest + b".\r\n")
                    assert [recorder.messages, recorder.commands] == [[as_sent] * 2, envelope]
                    recorder.clear()
            other.close()

    asyncio.run(run())


def test_the_lenient_peer_takes_every_published_sequence() -> None:
    """A peer that is not lenient would show nothing."""
    assert [sequence for sequence in BARE[:15] if LENIENT_END.search(b"x" + sequence + b"MAIL") is None] == []
