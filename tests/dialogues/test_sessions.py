"""What takes more than one client, or more octets than a page holds: limits, draining, sessions side by side."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import pytest

from batv.observe.event import Direction, TransactionEnded
from tests.support.recorder import Client, Recorder, recorded
from tests.support.relay import LOOPS, running, signed

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

OPENING: Final = b"MAIL FROM:<ann@peer.example>\r\nRCPT TO:<joe@example.com>\r\nDATA"
GROUP: Final = (b"250 2.0.0 Ok\r\n", b"250 2.0.0 Ok\r\n", b"354 go\r\n")


def on(loop: str, test: Coroutine[Any, Any, None]) -> None:
    """Run a test on an event loop."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test)


async def another(port: int) -> Client:
    """Return a client that has not heard the greeting yet."""
    return Client(*await asyncio.open_connection("127.0.0.1", port))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_client"])
def test_a_connection_too_many_is_sent_away(limit: str, loop: str, tmp_path: Path) -> None:
    """The one too many hears 421, those that are there go on, and when one leaves there is room again."""

    async def test() -> None:
        changes = {"smtp": {limit: 2}}
        async with recorded(tmp_path, Direction.INBOUND, changes) as (client, _, relay):
            second = await another(relay.port)
            assert (await second.reply())[:4] == b"220 "
            third = await another(relay.port)
            assert await third.reply() == b"421 4.7.0 Too many connections\r\n"
            assert await third.reply() == b""
            assert await client.say(b"NOOP") == b"250 2.0.0 Ok\r\n"
            assert await second.say(b"QUIT") == b"221 2.0.0 Bye\r\n"
            assert await second.reply() == b""
            fourth = await another(relay.port)
            assert (await fourth.reply())[:4] == b"220 "
            for each in (second, third, fourth):
                each.close()

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("direction", list(Direction), ids=str)
def test_a_message_beyond_the_bound_is_refused_when_it_is_over(direction: Direction, loop: str, tmp_path: Path) -> None:
    """The next hop has none of it, the client hears 552, and the session goes on."""

    async def test() -> None:
        changes = {"smtp": {"max_message_octets": 1 << 20}}
        async with recorded(tmp_path, direction, changes) as (client, recorder, _):
            line = b"x" * 998 + b"\r\n"
            largest = line * 1048 + b"y" * 574 + b"\r\n"
            assert len(largest) == 1 << 20
            assert (await client.say(OPENING), await client.reply(), await client.reply()) == GROUP
            assert await client.say(b"z" + largest + b".") == b"552 5.3.4 Message too big\r\n"
            assert recorder.messages == []
            assert (await client.say(OPENING), await client.reply(), await client.reply()) == GROUP
            assert await client.say(largest + b".") == b"250 2.0.0 queued\r\n"
            assert recorder.messages == [largest + b".\r\n"]

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("argument", "shown", "reply"),
    [
        (b"TO:<ann@x.example@example.com>", "<ann@x.example@example.com>", "550 5.7.1 Relaying denied"),
        (b"to: <joe@example..com>", "<joe@example..com>", "501 5.1.3 Bad recipient address syntax"),
        (b"FROM:<joe@example.com>", "FROM:<joe@example.com>", "501 5.1.3 Bad recipient address syntax"),
        (b"TO:<j\xc3\xb6rg@example.com>", "<j\xf6rg@example.com>", "501 5.1.3 Bad recipient address syntax"),
        (b"TO:<joe>@" + b"a" * 2000, "<joe>@" + "a" * 1018 + "...", "501 5.1.3 Bad recipient address syntax"),
        (b"TO:<" + signed(b"joe@example.com") + b">>", "******=joe@example.com>>", "501 5.1.3 Bad recipient"),
    ],
)
def test_the_log_tells_why_a_recipient_was_none(
    argument: bytes, shown: str, reply: str, loop: str, tmp_path: Path
) -> None:
    """Its sender says that the proxy refused it; of many the first is told, cut short, with no tag in it."""

    async def test() -> None:
        async with recorded(tmp_path, Direction.INBOUND) as (client, _, relay):
            await client.say(b"MAIL FROM:<>")
            for each in (argument, b"TO:<another@@example.com>"):
                assert (await client.say(b"RCPT " + each))[:1] == b"5"
            await client.say(b"RSET")
            (event,) = (event for event in relay.events if isinstance(event, TransactionEnded))
            assert event.unnamed == 2
            assert event.misnamed is not None
            assert event.misnamed.argument.endswith(shown)
            assert event.misnamed.reply.startswith(reply)

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_draining_lets_a_transaction_end_and_sends_the_others_away(loop: str, tmp_path: Path) -> None:
    """A stop of the service costs no message that is under way, and waits for nobody who has none."""

    async def test() -> None:
        async with recorded(tmp_path, Direction.INBOUND) as (client, recorder, relay):
            idle = await another(relay.port)
            assert (await idle.reply())[:4] == b"220 "
            assert (await client.say(OPENING), await client.reply(), await client.reply()) == GROUP
            stop = asyncio.create_task(relay.drain())
            assert await idle.reply() == b"421 4.3.2 Shutting down\r\n"
            assert await idle.reply() == b""
            with pytest.raises(ConnectionRefusedError):
                await another(relay.port)
            assert await client.say(b"Subject: last\r\n.") == b"250 2.0.0 queued\r\n"
            assert await client.reply() == b"421 4.3.2 Shutting down\r\n"
            assert await client.reply() == b""
            await stop
            assert recorder.messages == [b"Subject: last\r\n.\r\n"]
            idle.close()

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_the_answer_to_a_message_comes_before_the_good_bye(loop: str, tmp_path: Path) -> None:
    """A client that reads 421 where the answer to its message belongs sends again what was delivered."""

    async def test() -> None:
        taken = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 next.example\r\n")
            while (line := await reader.readline()) and not taken.is_set():
                writer.write(b"354 go\r\n" if line == b"DATA\r\n" else b"250 2.0.0 Ok\r\n")
                if line == b"DATA\r\n":
                    await reader.readuntil(b"\r\n.\r\n")
                    writer.write(b"250 2.0.0 queued\r\n")
                    # The next MAIL is not answered: the client has sent it already, and hears both replies together.
                    await reader.readline()
                    taken.set()
            writer.close()

        next_hop = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = next_hop.sockets[0].getsockname()[1]
        async with running(tmp_path, Direction.INBOUND, port, {"smtp": {"drain_seconds": 0.1}}) as relay:
            client = await another(relay.port)
            assert (await client.reply())[:4] == b"220 "
            assert (await client.say(b"EHLO client.example"))[:4] == b"250-"
            assert [await client.say(OPENING), *[await client.reply() for _ in GROUP[1:]]] == list(GROUP)
            await client.pieces([b"Subject: x\r\n.\r\n" + OPENING + b"\r\n"])
            await taken.wait()
            await relay.drain()
            assert await client.reply() == b"250 2.0.0 queued\r\n"
            assert await client.reply() == b"421 4.3.2 Shutting down\r\n"
            client.close()
        next_hop.close()

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_that_has_not_said_who_it_is_does_not_hold_the_end_up(loop: str, tmp_path: Path) -> None:
    """Load balancers keep connections open on which nobody has come yet: each restart would take the whole time."""

    async def test() -> None:
        changes = {"inbound": {"proxy_protocol_from": ["127.0.0.2/32"]}, "smtp": {"drain_seconds": 60}}
        async with recorded(tmp_path, Direction.INBOUND, changes) as (_, _, relay):
            balancer = Client(*await asyncio.open_connection("127.0.0.1", relay.port, local_addr=("127.0.0.2", 0)))
            await balancer.pieces([b"PROXY TCP4 "])
            async with asyncio.timeout(10):
                await relay.drain()
            assert await balancer.reply() == b"421 4.3.2 Shutting down\r\n"
            assert await balancer.reply() == b""
            balancer.close()

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_message_that_came_just_before_the_limit_passed_is_answered(loop: str, tmp_path: Path) -> None:
    """After a machine stood still both are there at once: what is delivered must not be answered by 421."""

    async def test() -> None:
        async with recorded(tmp_path, Direction.INBOUND) as (client, recorder, relay):
            assert [await client.say(OPENING), *[await client.reply() for _ in GROUP[1:]]] == list(GROUP)
            (proxy,) = relay.service._proxies
            (connection,) = proxy.door.connections
            connection.data_received(b"Subject: x\r\n.\r\n")
            connection._timeout_cb()
            assert await client.reply() == b"250 2.0.0 queued\r\n"
            assert len(recorder.messages) == 1
            assert await client.say(b"NOOP") == b"250 2.0.0 Ok\r\n"

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_server_that_lacks_what_one_message_needs_serves_the_others(loop: str, tmp_path: Path) -> None:
    """A forged bounce with a parameter that is offered no more must not move everybody's mail to another server."""

    async def test() -> None:
        first, second = Recorder(offers=[b"8BITMIME"]), Recorder()
        servers = [await asyncio.start_server(each.serve, "127.0.0.1", 0) for each in (first, second)]
        ports = [server.sockets[0].getsockname()[1] for server in servers]
        changes = {"inbound": {"next_hop": [f"127.0.0.1:{port}" for port in ports]}}
        async with running(tmp_path, Direction.INBOUND, ports[0], changes) as relay:
            client = await another(relay.port)
            await client.reply()
            await client.say(b"EHLO client.example")
            assert await client.say(b"MAIL FROM:<> BODY=8BITMIME") == b"250 2.0.0 Ok\r\n"
            first.offers = ()
            assert (await client.say(b"RCPT TO:<joe@example.com>"))[:3] == b"451"
            assert await client.say(b"RSET") == b"250 2.0.0 Ok\r\n"
            assert [await client.say(OPENING), *[await client.reply() for _ in GROUP[1:]]] == list(GROUP)
            assert await client.say(b"Subject: x\r\n.") == b"250 2.0.0 queued\r\n"
            assert (len(first.messages), second.commands) == (1, [])
            client.close()
        for server in servers:
            server.close()

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_messages_side_by_side_keep_their_recipients_and_octets(loop: str, tmp_path: Path) -> None:
    """Connections to the next hop are reused: no recipient and no octet of one message may come into another."""

    async def send(port: int, name: int) -> None:
        client = await another(port)
        await client.reply()
        await client.say(b"EHLO client.example")
        for turn in range(4):
            user = b"u%d-%d" % (name, turn)
            tagged = signed(user + b"@example.com")
            forged = name % 2
            await client.say(b"MAIL FROM:<>")
            assert await client.say(b"RCPT TO:<" + tagged + b">") == b"250 2.1.5 Ok\r\n"
            if forged:
                assert await client.say(b"RCPT TO:<forged@example.com>") == b"250 2.1.5 Ok\r\n"
            if turn == 2:
                assert await client.say(b"RSET") == b"250 2.0.0 Ok\r\n"
                continue
            assert (await client.say(b"DATA"))[:3] == b"354"
            await client.pieces([b"For: ", user, b"\r\n"])
            assert await client.say(b".") == b"250 2.0.0 Ok\r\n"
        assert (await client.say(b"QUIT"))[:3] == b"221"
        client.close()

    async def test() -> None:
        async with recorded(tmp_path, Direction.INBOUND) as (_, recorder, relay):
            await asyncio.gather(*(send(relay.port, name) for name in range(20)))
            expected = {b"u%d-%d" % (name, turn) for name in range(20) for turn in (0, 1, 3)}
            assert sorted(recorder.messages) == sorted(b"For: " + user + b"\r\n.\r\n" for user in expected)
            delivered = sorted(recorder.envelopes)
            assert delivered == sorted(((b"RCPT TO:<%b@example.com>\r\n" % user,), user) for user in expected)

    on(loop, test())
