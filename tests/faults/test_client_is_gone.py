"""The client vanishes: before the final dot nothing of its message may count, after it the answer is waited for."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.leaving import HALF_A_MESSAGE, begin_message, closes, half_closes, resets
from tests.support.next_hop import Answer, RecordingNextHop, Stage
from tests.support.service import LOOPS, SERVE, ServiceProcess
from tests.support.smtp_client import SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def next_hop() -> Iterator[RecordingNextHop]:
    """A next hop for all tests."""
    with RecordingNextHop() as hop:
        yield hop


@pytest.fixture(scope="module", params=list(LOOPS))
def service(
    next_hop: RecordingNextHop, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ServiceProcess]:
    """A service for all tests, on each event loop: they differ in what they tell of a connection that ends."""
    with ServiceProcess(tmp_path_factory.mktemp("service"), next_hop.address, code=LOOPS[request.param]) as running:
        yield running


def check_no_dot(
    next_hop: RecordingNextHop, service: ServiceProcess, proxy: str, leave: Callable[[SmtpClient], None]
) -> None:
    """Let a client go in the middle of its message, and see what the next hop heard of it."""
    next_hop.forget()
    with SmtpClient(service.address(proxy)) as client:
        begin_message(client, service, proxy)
        assert next_hop.content.wait(30)
        at = len(service.log)
        leave(client)
    service.wait_for_log(rf"{proxy}: .*cause=<client gone>", after=at)
    until(lambda: next_hop.connections[-1].ended, "end of the connection to the next hop")
    assert next_hop.messages == []
    assert sum(connection.dots for connection in next_hop.connections) == 0, "no dot"


@pytest.mark.parametrize("leave", [closes, half_closes, resets])
@pytest.mark.parametrize("proxy", ["outbound", "inbound"])
def test_half_a_message_gets_no_dot(
    next_hop: RecordingNextHop, service: ServiceProcess, proxy: str, leave: Callable[[SmtpClient], None]
) -> None:
    """The next hop would take it for the whole, and the client sends it once more."""
    check_no_dot(next_hop, service, proxy, leave)


_DOT_ON_ABORT: Final = """
from batv.net.connection import NextHopConnection
def finish(self):
    if self._transport is not None and not self._transport.is_closing():
        self._transport.write(b"\\r\\n.\\r\\n")
        self._transport.close()
NextHopConnection.abort = finish
"""


def test_a_relay_that_closes_messages_tidily_does_not_pass(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """The check above must see the dot that must not be."""
    with (
        ServiceProcess(tmp_path, next_hop.address, code=_DOT_ON_ABORT + SERVE) as broken,
        pytest.raises(AssertionError),
    ):
        check_no_dot(next_hop, broken, "outbound", closes)


@pytest.mark.parametrize("proxy", ["outbound", "inbound"])
def test_a_half_close_after_the_dot_still_gets_the_reply(
    next_hop: RecordingNextHop, service: ServiceProcess, proxy: str
) -> None:
    """A client may say all it has to say, and then listen."""
    next_hop.forget()
    next_hop.hold_answer()
    with SmtpClient(service.address(proxy)) as client:
        begin_message(client, service, proxy)
        client.send(b".\r\n")
        client.socket.shutdown(socket.SHUT_WR)
        assert next_hop.dots.wait(30)
        records = len(service.journal()) if service.journal_path.exists() else 0
        next_hop.go_on()
        own_words = b"250 2.0.0 Ok\r\n" if proxy == "inbound" else b"250 2.0.0 taken as 1\r\n"
        assert client.reply().text == own_words
    assert [message.content for message in next_hop.messages] == [HALF_A_MESSAGE]
    assert [record["reply"][:3] for record in service.journal()[records:]] == ["250"]


@pytest.mark.parametrize("leave", [closes, resets])
@pytest.mark.parametrize("proxy", ["outbound", "inbound"])
def test_a_client_that_leaves_after_the_dot_is_answered_on_the_record(
    next_hop: RecordingNextHop, service: ServiceProcess, proxy: str, leave: Callable[[SmtpClient], None]
) -> None:
    """The message is delivered once; the journal says so, though nobody heard it."""
    next_hop.forget()
    next_hop.hold_answer()
    with SmtpClient(service.address(proxy)) as client:
        begin_message(client, service, proxy)
        client.send(b".\r\n")
        assert next_hop.dots.wait(30)
        records = len(service.journal()) if service.journal_path.exists() else 0
        at = len(service.log)
        leave(client)
    next_hop.go_on()
    service.wait_for_log(rf"{proxy}: .*reply=<250 ", after=at)
    assert [message.content for message in next_hop.messages] == [HALF_A_MESSAGE]
    record = service.journal()[records]
    assert record["reply"].startswith("250 ")
    assert record["size"] == len(HALF_A_MESSAGE)


def test_a_client_that_leaves_between_commands_leaves_nothing_at_the_next_hop(
    next_hop: RecordingNextHop, service: ServiceProcess
) -> None:
    """A transaction left open on a connection that is used again would add recipients to another's message."""
    next_hop.forget()
    with SmtpClient(service.outbound) as client:
        client.say(b"MAIL FROM:<joe@example.com>")
        assert client.say(b"RCPT TO:<ann@peer.example>").code == 250
    with SmtpClient(service.outbound) as client:
        assert client.mail(b"jim@example.com", [b"bob@peer.example"], b"x\r\n").code == 250
    assert [message.recipients for message in next_hop.messages] == [(b"<bob@peer.example>",)]


def test_a_client_that_leaves_while_the_next_hop_thinks_does_not_keep_it(
    next_hop: RecordingNextHop, service: ServiceProcess
) -> None:
    """What the next hop says to nobody is no reply to the next client."""
    next_hop.forget()
    next_hop.hold_answer()
    with SmtpClient(service.outbound) as client:
        begin_message(client, service, "outbound")
        client.send(b".\r\n")
        assert next_hop.dots.wait(30)
        resets(client)
    next_hop.fail(Stage.DOT, Answer(b"452 4.3.1 full\r\n"))
    at = len(service.log)
    next_hop.go_on()
    service.wait_for_log(r"reply=<452 4\.3\.1 full>", after=at)
    next_hop.heal()
    with SmtpClient(service.outbound) as client:
        assert client.mail(b"jim@example.com", [b"bob@peer.example"], b"x\r\n").code == 250
