"""Several next hops in order, and what goes before a message: what takes the clock, or octets that differ each time."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import pytest

from batv.observe.event import Direction, TransactionEnded
from tests.support.next_hop import CLOSE, RESET, SILENCE, Answer, Failure, RecordingNextHop, Stage
from tests.support.recorder import Client, recorded
from tests.support.relay import LOOPS, Relay, merged, running, signed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

PATIENCE: Final = {"next_hop": {"connect_seconds": 0.4, "command_seconds": 3, "backoff_seconds": 1}}
TAGGED: Final = b"FROM:<" + signed(b"joe@example.com") + b">"


def on(loop: str, test: Coroutine[Any, Any, None]) -> None:
    """Run a test on an event loop."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test)


async def sent(relay: Relay, text: bytes, helo: bytes = b"client.example") -> list[bytes]:
    """Send a message in a session of its own, and return the replies from MAIL on."""
    client = Client(*await asyncio.open_connection("127.0.0.1", relay.port))
    with closing(client):
        await client.reply()
        await client.say(b"EHLO " + helo)
        replies = [await client.say(b"MAIL FROM:<joe@example.com>"), await client.say(b"RCPT TO:<bob@peer.example>")]
        if replies[-1][:1] == b"2":
            replies.append(await client.say(b"DATA"))
        if replies[-1][:1] == b"3":
            replies.append(await client.say(b"Subject: " + text + b"\r\n\r\n."))
        return replies


def subjects(hop: RecordingNextHop) -> list[bytes]:
    """Return what the messages are called that a next hop has."""
    return [message.content.partition(b"\r\n")[0].removeprefix(b"Subject: ") for message in hop.messages]


def refusing(hop: RecordingNextHop) -> None:
    """Let nobody listen there."""
    hop.stop_listening()


def failing(stage: Stage, failure: Failure) -> Callable[[RecordingNextHop], None]:
    """Return what lets a next hop fail."""
    return lambda hop: hop.fail(stage, failure)


@contextmanager
def black_hole(hop: RecordingNextHop) -> Iterator[None]:
    """Let connections to a next hop be neither taken nor refused: its queue of them is full."""
    hop.stop_listening()
    with socket.socket() as server, socket.socket() as first, socket.socket() as second, socket.socket() as third:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", hop.port))
        server.listen(0)
        for client in (first, second, third):
            client.settimeout(0)
            with suppress(BlockingIOError):
                client.connect(("127.0.0.1", hop.port))
        yield


FAILURES: Final = {
    "refuses connections": refusing,
    "closes at once": failing(Stage.BANNER, CLOSE),
    "resets at once": failing(Stage.BANNER, RESET),
    "is silent": failing(Stage.BANNER, SILENCE),
    "greets with 554": failing(Stage.BANNER, Answer(b"554 5.3.2 not in service\r\n")),
    "closes at EHLO": failing(Stage.EHLO, CLOSE),
    "closes at MAIL": failing(Stage.MAIL, CLOSE),
    "resets at MAIL": failing(Stage.MAIL, RESET),
    "goes away at MAIL": failing(Stage.MAIL, Answer(b"421 4.3.2 going down\r\n", then_close=True)),
}


async def goes_on_and_comes_back(relay: Relay, first: RecordingNextHop, second: RecordingNextHop, mend: Any) -> None:  # noqa: ANN401 -- any function
    """Send messages while the first next hop fails, mend it, and send until one reaches it."""
    said = [b"250 2.1.0 sender noted\r\n", b"250 2.1.5 recipient noted\r\n", b"354 go on\r\n"]
    texts = [b"while-%d" % number for number in range(3)]
    tried = 0
    for text in texts:
        replies = await sent(relay, text)
        assert replies[:-1] == said, replies
        assert replies[-1].startswith(b"250 "), replies
        # Once is enough to learn that it is out of reach; a used connection may have been tried besides.
        tried = tried or len(first.connections)
        assert len(first.connections) == tried
    assert subjects(second) == texts
    mend()
    while not first.messages:
        assert len(texts) < 10_000
        texts.append(b"after-%d" % len(texts))
        assert (await sent(relay, texts[-1]))[-1].startswith(b"250 ")
    assert subjects(second) + subjects(first) == texts
    assert {message.mail for message in (*first.messages, *second.messages)} == {TAGGED.removeprefix(b"FROM:")}
    relays = [event.relay for event in relay.events if isinstance(event, TransactionEnded)]
    assert relays == [second.address] * len(second.messages) + [first.address]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES)
def test_mail_goes_on_to_the_second_next_hop_and_comes_back(
    fail: Callable[[RecordingNextHop], None], loop: str, tmp_path: Path
) -> None:
    """While the first is out of reach no client waits for it but one, and nothing is lost or doubled."""

    async def test() -> None:
        with RecordingNextHop() as first, RecordingNextHop() as second:
            fail(first)
            changes = merged(PATIENCE, {"outbound": {"next_hop": [first.address, second.address]}})
            async with running(tmp_path, Direction.OUTBOUND, 1, changes) as relay:

                def mend() -> None:
                    first.heal()
                    if not first.listening:
                        first.listen()

                await goes_on_and_comes_back(relay, first, second, mend)
            assert relay.errors == []

    on(loop, test())


LATE_FAILURES: Final = {
    "closes at RCPT": (Stage.FIRST_RCPT, CLOSE),
    "goes away at RCPT": (Stage.FIRST_RCPT, Answer(b"421 4.3.2 going down\r\n", then_close=True)),
    "resets at DATA": (Stage.DATA, RESET),
    "closes in the message": (Stage.BODY, CLOSE),
    "talks nonsense at the dot": (Stage.DOT, Answer(b"nonsense\r\n")),
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("failure", LATE_FAILURES.values(), ids=LATE_FAILURES)
def test_a_client_that_tries_again_meets_a_next_hop_that_serves(
    failure: tuple[Stage, Failure], loop: str, tmp_path: Path
) -> None:
    """What the first breaks down at stays with the client; its next try goes to the second."""

    async def test() -> None:
        with RecordingNextHop() as first, RecordingNextHop() as second:
            first.fail(*failure)
            slow = merged(PATIENCE, {"next_hop": {"backoff_seconds": 3600}})
            changes = merged(slow, {"outbound": {"next_hop": [first.address, second.address]}})
            async with running(tmp_path, Direction.OUTBOUND, 1, changes) as relay:
                assert (await sent(relay, b"first try"))[-1] == b"451 4.3.0 Temporary failure, try again later\r\n"
                assert (await sent(relay, b"second try"))[-1].startswith(b"250 ")
                assert subjects(second) == [b"second try"]
            assert relay.errors == []

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_refusal_is_no_reason_to_pass_a_next_hop_over(loop: str, tmp_path: Path) -> None:
    """What one server refuses is not offered to the next one: it might take what is not wanted."""

    async def test() -> None:
        with RecordingNextHop(rejects=frozenset({b"bob"})) as first, RecordingNextHop() as second:
            slow = merged(PATIENCE, {"next_hop": {"backoff_seconds": 3600}})
            changes = merged(slow, {"outbound": {"next_hop": [first.address, second.address]}})
            async with running(tmp_path, Direction.OUTBOUND, 1, changes) as relay:
                for _ in range(3):
                    assert (await sent(relay, b"unwanted"))[-1] == b"550 5.1.1 no such user here\r\n"
            assert (second.connections, second.messages) == ([], [])

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("identity", "offers"), [("xclient", b"XFORWARD ADDR"), ("xforward", b"XFORWARD NAME")])
def test_a_next_hop_that_cannot_be_told_of_clients_as_wanted_is_passed_over(
    identity: str, offers: bytes, loop: str, tmp_path: Path
) -> None:
    """It would take all mail for the proxy's own, and let in whom it should not; another one need not suffer for it."""

    async def test() -> None:
        wanted = identity.upper().encode() + b" ADDR"
        with RecordingNextHop(offers=(offers,)) as first, RecordingNextHop(offers=(wanted,)) as second:
            servers = [first.address, second.address]
            changes = merged(PATIENCE, {"outbound": {"next_hop": servers, "next_hop_identity": identity}})
            async with running(tmp_path, Direction.OUTBOUND, 1, changes) as relay:
                assert (await sent(relay, b"told"))[-1].startswith(b"250 ")
                assert subjects(second) == [b"told"]
                assert any(line.startswith(identity.upper().encode()) for line in second.commands)
                assert first.commands == []
                assert relay.errors == []

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("identity", ["xclient", "xforward"])
def test_where_no_next_hop_can_be_told_of_clients_as_wanted_the_log_says_what_to_do(
    identity: str, loop: str, tmp_path: Path
) -> None:
    """Clients keep their mail, and nobody but the administrator can help them."""

    async def test() -> None:
        with RecordingNextHop() as hop:
            changes = merged(PATIENCE, {"outbound": {"next_hop": hop.address, "next_hop_identity": identity}})
            async with running(tmp_path, Direction.OUTBOUND, 1, changes) as relay:
                assert (await sent(relay, b"untold"))[0] == b"451 4.3.0 Temporary failure, try again later\r\n"
                (event,) = (event for event in relay.events if isinstance(event, TransactionEnded))
            assert hop.commands == []
            assert event.cause == (
                f'the next hop does not offer {identity.upper()}, and next_hop_identity = "{identity}" wants it: let it'
                f" offer that to this host (Postfix: smtpd_authorized_{identity}_hosts), or set another"
            )

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("way", [b"XCLIENT", b"XFORWARD"])
def test_a_client_that_a_next_hop_refuses_keeps_it_from_nobody_else(way: bytes, loop: str, tmp_path: Path) -> None:
    """One client in a list of a server's would turn all mail away from it; and what it refuses goes to no other."""

    async def test() -> None:
        offers = (way + b" ADDR HELO",)
        with RecordingNextHop(offers=offers) as first, RecordingNextHop(offers=offers) as second:
            first.strangers = frozenset({b"HELO=bad.example"})
            changes = merged(PATIENCE, {"outbound": {"next_hop": [first.address, second.address]}})
            async with running(tmp_path, Direction.OUTBOUND, 1, changes) as relay:
                for _ in range(2):
                    later = b"451 4.3.0 Temporary failure, try again later\r\n"
                    assert (await sent(relay, b"bad", b"bad.example"))[0] == later
                    assert (await sent(relay, b"good"))[-1].startswith(b"250 ")
                assert (subjects(first), second.connections) == ([b"good", b"good"], [])
                causes = {event.cause for event in relay.events if isinstance(event, TransactionEnded) and event.cause}
                assert causes == {f"the next hop answered {way.decode()} with 550 5.7.1 not of that client"}

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_next_hop_that_swallows_connections_is_passed_over(loop: str, tmp_path: Path) -> None:
    """One client waits for it for `connect_seconds`, the others do not."""

    async def test() -> None:
        with RecordingNextHop() as first, RecordingNextHop() as second:
            changes = merged(PATIENCE, {"outbound": {"next_hop": [first.address, second.address]}})
            async with running(tmp_path, Direction.OUTBOUND, 1, changes) as relay:
                with black_hole(first):
                    begin = asyncio.get_running_loop().time()
                    assert (await sent(relay, b"first"))[-1].startswith(b"250 ")
                    waited = asyncio.get_running_loop().time() - begin
                    assert (await sent(relay, b"second"))[-1].startswith(b"250 ")
                    assert 0.4 <= waited < 2
                    assert subjects(second) == [b"first", b"second"]
                second.messages.clear()
                relay.events.clear()
                await goes_on_and_comes_back(relay, first, second, first.listen)
            assert relay.errors == []

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_where_every_next_hop_is_out_of_reach_all_are_tried(loop: str, tmp_path: Path) -> None:
    """The client keeps its message, and is served by the first that comes back, whenever that is."""

    async def test() -> None:
        with RecordingNextHop() as first, RecordingNextHop() as second:
            first.stop_listening()
            second.fail(Stage.BANNER, CLOSE)
            slow = merged(PATIENCE, {"next_hop": {"backoff_seconds": 3600}})
            changes = merged(slow, {"outbound": {"next_hop": [first.address, second.address]}})
            async with running(tmp_path, Direction.OUTBOUND, 1, changes) as relay:
                for _ in range(2):
                    later = b"451 4.3.0 Temporary failure, try again later\r\n"
                    assert await sent(relay, b"not yet") == [later, b"503 5.5.1 Bad sequence of commands\r\n"]
                (event, _) = (event for event in relay.events if isinstance(event, TransactionEnded))
                assert event.relay == f"{first.address},{second.address}"
                assert first.address in event.cause
                assert second.address in event.cause
                second.heal()
                assert (await sent(relay, b"now"))[-1].startswith(b"250 ")
                assert (subjects(first), subjects(second)) == ([], [b"now"])

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_message_that_the_first_next_hop_may_have_goes_to_no_other(loop: str, tmp_path: Path) -> None:
    """A server that closes at the final dot may have the message: the client decides what to do, not we."""

    async def test() -> None:
        with RecordingNextHop() as first, RecordingNextHop() as second:
            first.fail(Stage.DOT, CLOSE)
            changes = merged(PATIENCE, {"outbound": {"next_hop": [first.address, second.address]}})
            async with running(tmp_path, Direction.OUTBOUND, 1, changes) as relay:
                assert (await sent(relay, b"once"))[-1] == b"451 4.3.0 Temporary failure, try again later\r\n"
            assert subjects(second) == []

    on(loop, test())


RECEIVED: Final = re.compile(
    rb"Received: from ([^ ]+) \(\[([^]]+)\]\)\r\n"
    rb"\tby proxy\.example with ([A-Z]+) id [0-9a-f]{12}\.[0-9]+;\r\n"
    rb"\tTue, 10 Mar 2026 12:00:00 \+0000\r\n"
)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("before", "told"),
    [
        ([b"EHLO client.example"], (b"client.example", b"127.0.0.1", b"ESMTP")),
        ([b"HELO client.example"], (b"client.example", b"127.0.0.1", b"SMTP")),
        ([b"EHLO (a) comment\xff"], (b"unknown", b"127.0.0.1", b"ESMTP")),
        ([b"EHLO [192.0.2.1]"], (b"[192.0.2.1]", b"127.0.0.1", b"ESMTP")),
        ([b"EHLO " + b"a" * 256], (b"unknown", b"127.0.0.1", b"ESMTP")),
        (
            [b"XFORWARD ADDR=IPV6:2001:db8::7 HELO=mx.client.example PROTO=SMTP"],
            (b"mx.client.example", b"IPv6:2001:db8::7", b"SMTP"),
        ),
        ([b"XFORWARD ADDR=[UNAVAILABLE]"], (b"unknown", b"unknown", b"SMTP")),
    ],
)
def test_a_received_field_says_whom_a_message_came_from(
    before: list[bytes], told: tuple[bytes, bytes, bytes], loop: str, tmp_path: Path
) -> None:
    """With `add_received` it goes before the message, which is not changed otherwise."""

    async def test() -> None:
        changes = {"smtp": {"add_received": True}, "outbound": {"xforward_from": ["127.0.0.1/32"]}}
        async with recorded(tmp_path, Direction.OUTBOUND, changes) as (client, recorder, _):
            for line in before:
                assert (await client.say(line))[:3] == b"250"
            for line in (b"MAIL FROM:<joe@example.com>", b"RCPT TO:<bob@peer.example>", b"DATA"):
                await client.say(line)
            text = b"Received: by one.example\r\nSubject: x\r\n\r\ntext\r\n.."
            assert (await client.say(text + b"\r\n."))[:3] == b"250"
            (message,) = recorder.messages
            match = RECEIVED.match(message)
            assert match is not None, message
            assert match.groups() == told
            assert message[match.end() :] == text + b"\r\n.\r\n"

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_our_received_field_stands_before_the_status_field(loop: str, tmp_path: Path) -> None:
    """Trace fields are the first of a message, and an offer of SIZE leaves room for all that is put before it."""

    async def test() -> None:
        changes = {"smtp": {"add_received": True}, "domains": {"example.com": {"on_forged": "mark"}}}
        offers = (b"SIZE 100000",)
        async with recorded(tmp_path, Direction.INBOUND, changes, offers) as (client, recorder, _):
            ehlo = await client.say(b"EHLO client.example")
            size = int(re.findall(rb"SIZE ([0-9]+)", ehlo)[0])
            for line in (b"MAIL FROM:<>", b"RCPT TO:<joe@example.com>", b"DATA"):
                await client.say(line)
            text = b"Subject: x\r\n\r\n"
            text += b"y" * 98 + b"\r\n"
            text *= 1 + (size - len(text)) // len(text)
            assert (await client.say(text + b"."))[:3] == b"250"
            (message,) = recorder.messages
            match = RECEIVED.match(message)
            assert match is not None, message[:200]
            assert message[match.end() :] == b"X-Batv-Status: invalid, missing\r\n" + text + b".\r\n"
            assert len(message) - len(b".\r\n") <= 100_000

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_the_next_hop_hears_our_name_for_a_message(loop: str, tmp_path: Path) -> None:
    """With it an administrator finds the line of ours for a line of the next hop's; each message has its own."""

    async def test() -> None:
        offers = (b"PIPELINING", b"XFORWARD ident")
        async with recorded(tmp_path, Direction.OUTBOUND, None, offers) as (client, recorder, relay):
            for _ in range(2):
                await client.say(b"MAIL FROM:<ann@peer.example>")
                await client.say(b"RSET")
            ended = [event for event in relay.events if isinstance(event, TransactionEnded)]
            announced = [b"XFORWARD IDENT=%b\r\n" % event.transaction.encode() for event in ended]
            assert [line for line in recorder.commands if line.startswith(b"XFORWARD")] == announced
            assert len(set(announced)) == 2

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_long_message_that_goes_round_never_gets_its_dot(loop: str, tmp_path: Path) -> None:
    """What was on its way before that was seen is cut."""

    async def test() -> None:
        async with recorded(tmp_path, Direction.INBOUND, {"smtp": {"max_hops": 10}}) as (client, recorder, _):
            for line in (b"MAIL FROM:<ann@peer.example>", b"RCPT TO:<joe@example.com>", b"DATA"):
                await client.say(line)
            message = b"Received: by one.example\r\n" * 11 + b"\r\n" + b"x" * 70 + b"\r\n"
            assert await client.say(message + b"01234567\r\n" * 100_000 + b".") == b"554 5.4.6 Too many hops\r\n"
            assert recorder.messages == []
            assert await client.say(b"NOOP") == b"250 2.0.0 Ok\r\n"

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 25\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\2\7\xc6\x33\x64\1\x12\x67\0\x19",
    ],
    ids=["line", "octets"],
)
def test_a_proxy_header_may_come_in_pieces(header: bytes, loop: str, tmp_path: Path) -> None:
    """And what comes behind it belongs to the client, to the octet."""

    async def test() -> None:
        changes = {"outbound": {"proxy_protocol_from": ["127.0.0.1/32"], "clients": ["192.0.2.7/32"]}}
        with RecordingNextHop() as hop:
            async with running(tmp_path, Direction.OUTBOUND, hop.port, changes) as relay:
                client = Client(*await asyncio.open_connection("127.0.0.1", relay.port))
                with closing(client):
                    stream = header + b"EHLO client.example\r\nMAIL FROM:<ann@peer.example>\r\nRSET\r\n"
                    await client.pieces([stream[at : at + 1] for at in range(len(stream))])
                    codes = [(await client.reply())[:3] for _ in range(4)]
                    assert codes == [b"220", b"250", b"250", b"250"]
                (event,) = (event for event in relay.events if isinstance(event, TransactionEnded))
                assert (event.client, event.helo) == ("192.0.2.7", "client.example")

    on(loop, test())
