"""Message ends that only some peers take for one, each through a proxy towards a next hop that takes them all.

After each of them the client goes on with the commands of a second message. One message must come out, or none.
Source: the published sequences of SMTP smuggling (CVE-2023-51764 and its kin), and line ends of other alphabets.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final

import pytest

from batv.observe.event import Direction
from tests.support.recorder import recorded
from tests.support.relay import LOOPS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# With a bare CR, a bare LF or a NUL in them.
BARE: Final = (
    b"\n.\n",
    b"\n.\r",
    b"\r.\n",
    b"\r.\r",
    b"\n.\r\n",
    b"\r.\r\n",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\n\n.\r\n",
    b"\r\n\r.\r\n",
    b"\r\n\n.\r\n",
    b"\r\n..\n",
    b"\n..\r\n",
    b"\n..\n",
)

# Lines like any other.
CLEAN: Final = (
    b"\r\n. \r\n",
    b"\r\n.\t\r\n",
    b"\r\n .\r\n",
    b"\r\n\x0b.\r\n",
    b"\r\n\x0c.\r\n",
    b"\r\n\x85.\r\n",
    b"\r\n\xe2\x80\xa8.\r\n",
    b"\r\n\xe2\x80\xa9.\r\n",
    b"\r\n\x1c.\r\n",
    b"\r\n..\r\n",
    b"\r\n...\r\n",
)

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

SMUGGLED: Final = b"MAIL FROM:<s@remote.example>\r\nRCPT TO:<v@example.com>\r\nDATA\r\nSubject: smuggled\r\n\r\nx"
END: Final = b"\r\n.\r\n"

# What some peer or other takes for the end of a message.
LENIENT_END = re.compile(rb"(?:\A|\r\n|\r|\n)\0*\.\0*(?:\r\n|\r|\n)")

MODES: Final[dict[str, tuple[dict[str, Any], bytes]]] = {
    "normalize": ({}, b"<ann@peer.example>"),
    "reject": ({"smtp": {"bare_newlines": "reject"}}, b"<ann@peer.example>"),
    "mark": ({"domains": {"example.com": {"on_forged": "mark"}}}, b"<>"),
    "mark-and-reject": (
        {
            "smtp": {"bare_newlines": "reject"},
            "domains": {"example.com": {"on_forged": "mark"}},
        },
        b"<>",
    ),
}


def in_pieces(message: bytes, begin: int, end: int) -> Iterator[list[bytes]]:
    """Yield the message whole, octet by octet between two offsets, and split at each offset between them."""
    yield [message]
    yield [message[:begin], *(message[at : at + 1] for at in range(begin, end)), message[end:]]
    for at in range(begin, end + 1):
        yield [message[:at], message[at:]]


def one_message(octets: bytes) -> bool:
    """Whether the most lenient of peers reads one message, and every peer the same."""
    found = LENIENT_END.search(octets)
    return found is not None and found.end() == len(octets) and not has_bare(octets)


def has_bare(octets: bytes) -> bool:
    """Whether there is a bare CR, a bare LF or a NUL."""
    lines = octets.replace(b"\r\n", b"")
    return any(octet in lines for octet in (b"\r", b"\n", b"\0"))


@pytest.mark.parametrize(
    ("mode", "loop"),
    [(mode, loop) for mode in MODES for loop in LOOPS if loop == "asyncio" or mode in {"normalize", "mark"}],
)
def test_one_message_or_none(mode: str, loop: str, tmp_path: Path) -> None:
    """However the octets are cut, no part of a message becomes another one, and the session stays in step."""
    changes, sender = MODES[mode]
    refuses = "reject" in mode

    async def run() -> None:
        async with recorded(tmp_path, Direction.INBOUND, changes) as (client, recorder, _):
            for opening, sequence in ((opening, sequence) for sequence in BARE + CLEAN for opening in OPENINGS):
                message = opening + sequence + SMUGGLED + END
                if END in b"\r\n" + message[: -len(END)]:
                    continue  # together they are the true end
                begin = max(len(opening) - 2, 0)
                end = len(opening) + len(sequence) + 2
                cuts = in_pieces(message, begin, end) if opening is OPENINGS[0] else [[message]]
                refused = refuses and has_bare(message)
                for pieces in cuts:
                    await client.pieces([b"MAIL FROM:%b\r\nRCPT TO:<joe@example.com>\r\nDATA\r\n" % sender])
                    replies = [(await client.reply())[:3] for _ in range(3)]
                    assert replies == [b"250", b"250", b"354"]
                    await client.pieces([piece for piece in pieces if piece])
                    reply = await client.reply()
                    assert (pieces, reply[:10]) == (pieces, b"550 5.6.11" if refused else b"250 2.0.0 ")
                    assert len(recorder.commands) == 2
                    assert len(recorder.messages) == (0 if refused else 1)
                    if not refused:
                        got = recorder.messages[0]
                        assert (pieces, got, one_message(got)) == (pieces, got, True)
                        assert got.endswith(b"Subject: smuggled\r\n\r\nx" + END)
                        if sequence in CLEAN and opening == OPENINGS[0]:
                            assert got.removeprefix(b"X-Batv-Status: invalid, missing\r\n") == message
                    recorder.clear()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(run())


def test_the_lenient_peer_takes_every_published_sequence() -> None:
    """A peer that is not lenient would show nothing."""
    assert [sequence for sequence in BARE[:15] if LENIENT_END.search(b"x" + sequence + b"MAIL") is None] == []
