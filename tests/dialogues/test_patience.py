"""What keeps mail moving when a client sends much, or the next hop is slow or strict."""

from __future__ import annotations

import asyncio
import stat
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import pytest

from batv.config import Endpoint, SmtpSettings
from batv.errors import UnavailableError
from batv.net.door import Door
from batv.observe.event import Direction
from batv.proxy import service
from batv.smtp.reply import Reply
from tests.support.recorder import Client, recorded
from tests.support.relay import LOOPS, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

OK: Final = b"250 2.0.0 Ok\r\n"


def on(loop: str, test: Coroutine[Any, Any, None]) -> None:
    """Run a test on an event loop."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test)


class StrictNextHop:
    """Takes everything, counts RSETs without a message on each connection, and holds the reply to some recipients."""

    def __init__(self) -> None:
        self.resets: list[int] = []
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Listen on a port until the block ends, and then until every connection is closed."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for writer in self._writers:
                with suppress(ConnectionError):
                    await writer.wait_closed()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self._writers.append(writer)
        self.resets.append(0)
        number = len(self.resets) - 1
        writer.write(b"220 next.example\r\n")
        try:
            while (line := await reader.readline()) not in {b"", b"QUIT\r\n"}:
                if line == b"RSET\r\n":
                    self.resets[number] += 1
                elif line.startswith(b"RCPT TO:<slow"):
                    self.asked.set()
                    await self.answer.wait()
                writer.write(b"250 2.0.0 Ok\r\n")
        except ConnectionError:
            pass
        finally:
            writer.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_list_with_many_dead_addresses_is_served_to_its_end(loop: str, tmp_path: Path) -> None:
    """Refused recipients are no idling: the good ones after them would never be reached, on no retry."""

    async def test() -> None:
        changes = {"smtp": {"max_idle_commands": 20}}
        async with recorded(tmp_path, Direction.INBOUND, changes) as (client, recorder, _):
            assert await client.say(b"MAIL FROM:<list@peer.example>") == OK
            for _ in range(150):
                assert (await client.say(b"RCPT TO:<gone@elsewhere.example>"))[:3] == b"550"
            assert await client.say(b"RCPT TO:<joe@example.com>") == OK
            assert (await client.say(b"DATA"))[:3] == b"354"
            assert await client.say(b"Subject: x\r\n.") == b"250 2.0.0 queued\r\n"
            assert len(recorder.messages) == 1

    on(loop, test())


@pytest.mark.parametrize("domain", [b"example.com", b"elsewhere.example"], ids=["taken", "refused"])
@pytest.mark.parametrize("loop", LOOPS)
def test_recipients_said_at_once_are_no_idling(loop: str, domain: bytes, tmp_path: Path) -> None:
    """A client that says a hundred at once says them so again on each retry."""

    async def test() -> None:
        changes = {"smtp": {"max_idle_commands": 20}}
        async with recorded(tmp_path, Direction.INBOUND, changes) as (client, recorder, _):
            group = [b"MAIL FROM:<list@peer.example>", *(b"RCPT TO:<u%d@%b>" % (each, domain) for each in range(150))]
            await client.pieces([b"".join(line + b"\r\n" for line in group)])
            replies = [await client.reply() for _ in group]
            assert [reply[:3] for reply in replies] == [b"250"] + [b"250" if domain == b"example.com" else b"550"] * 150
            assert await client.say(b"RCPT TO:<joe@example.com>") == OK
            assert (await client.say(b"DATA"))[:3] == b"354"
            assert await client.say(b"Subject: x\r\n.") == b"250 2.0.0 queued\r\n"
            assert len(recorder.messages) == 1

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_idling_is_counted_alike_whether_commands_come_one_by_one_or_at_once(loop: str, tmp_path: Path) -> None:
    """To say a group of recipients at once must not buy time for idling."""
    recipients = [b"RCPT TO:<ann@example.com>", *[b"RCPT TO:<gone@elsewhere.example>"] * 15]
    group = [b"EHLO client.example", b"MAIL FROM:<list@peer.example>", *recipients]
    lines = [*group, *[b"NOOP"] * 30]
    for folder in ("one-by-one", "at-once"):
        (tmp_path / folder).mkdir()

    async def replies_to(pieces: list[bytes], folder: Path) -> list[bytes]:
        changes = {"smtp": {"max_idle_commands": 20}}
        replies: list[bytes] = []
        async with recorded(folder, Direction.INBOUND, changes) as (client, _, _):
            for piece in pieces:
                await client.pieces([piece])
                for _ in range(piece.count(b"\n")):
                    replies.append(await client.reply())
                    if replies[-1][:3] == b"421":
                        return replies
        return replies

    async def test() -> None:
        whole = b"".join(line + b"\r\n" for line in group)
        noops = [b"NOOP\r\n"] * 30
        one_by_one = await replies_to([*(line + b"\r\n" for line in group), *noops], tmp_path / "one-by-one")
        at_once = await replies_to([whole, *noops], tmp_path / "at-once")
        assert len(one_by_one) < len(lines)
        assert at_once == one_by_one

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_more_recipients_than_a_transaction_takes_do_not_cost_the_first_ones(loop: str, tmp_path: Path) -> None:
    """RFC 5321 section 4.5.3.1.10: the client sends to those that were taken, and to the others afterwards."""

    async def test() -> None:
        changes = {"smtp": {"max_idle_commands": 20, "max_recipients": 100}}
        async with recorded(tmp_path, Direction.OUTBOUND, changes) as (client, recorder, _):
            assert await client.say(b"MAIL FROM:<joe@example.com>") == OK
            for number in range(150):
                taken = number < 100
                reply = await client.say(b"RCPT TO:<u%d@peer.example>" % number)
                assert reply == (OK if taken else b"452 4.5.3 Too many recipients\r\n")
            assert (await client.say(b"DATA"))[:3] == b"354"
            assert await client.say(b"Subject: x\r\n.") == b"250 2.0.0 queued\r\n"
            assert len(recorder.envelopes[0][0]) == 100

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_slow_next_hop_does_not_keep_known_replies_from_the_client(loop: str, tmp_path: Path) -> None:
    """A client that sent a group and hears nothing for minutes gives up, at every attempt."""

    async def test() -> None:
        next_hop = StrictNextHop()
        async with next_hop.listening() as port, running(tmp_path, Direction.OUTBOUND, port, {}) as relay:
            client = Client(*await asyncio.open_connection("127.0.0.1", relay.port))
            await client.reply()
            await client.say(b"EHLO client.example")
            group = b"MAIL FROM:<joe@example.com>\r\nRCPT TO:<ann@peer.example>\r\nRCPT TO:<slow@peer.example>"
            assert await client.say(group) == OK
            assert await client.reply() == OK
            assert next_hop.asked.is_set()
            assert not next_hop.answer.is_set()
            next_hop.answer.set()
            assert await client.reply() == OK
            client.close()

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_forged_bounces_do_not_wear_a_connection_out_for_others(loop: str, tmp_path: Path) -> None:
    """Servers cut or slow down a connection with many RSETs and no message: Exim from ten on, Postfix from 100."""

    async def test() -> None:
        next_hop = StrictNextHop()
        async with next_hop.listening() as port, running(tmp_path, Direction.INBOUND, port, {}) as relay:
            client = Client(*await asyncio.open_connection("127.0.0.1", relay.port))
            await client.reply()
            await client.say(b"EHLO client.example")
            for _ in range(40):
                assert await client.say(b"MAIL FROM:<>") == OK
                assert await client.say(b"RCPT TO:<joe@example.com>") == b"250 2.1.5 Ok\r\n"
                assert (await client.say(b"DATA"))[:3] == b"354"
                assert await client.say(b"Subject: x\r\n.") == OK
            client.close()
        assert sum(next_hop.resets) == 80
        assert max(next_hop.resets) < 10

    on(loop, test())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_unix_socket_in_use_is_not_taken_over(loop: str, tmp_path: Path) -> None:
    """The event loop would put its own socket in the place of another's; one left behind by a crash is no hindrance."""

    async def test() -> None:
        door = Door("proxy.example", SmtpSettings(), lambda _: None, lambda *_: Reply.of(554, "5.7.1 no"))
        endpoint = Endpoint(path=str(tmp_path / "socket"))
        first = await service._server(door.connection, endpoint)
        assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) == 0o660
        with pytest.raises(UnavailableError, match="address already in use"):
            await service._server(door.connection, endpoint)
        first.close()
        second = await service._server(door.connection, endpoint)
        second.close()

    on(loop, test())
