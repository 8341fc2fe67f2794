"""What a client can cost: each attack meets a bound, and honest clients do not feel it."""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack, suppress
from threading import Thread
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.attack import Honest, attacked, pause
from tests.support.next_hop import RecordingNextHop
from tests.support.service import LOOPS, ServiceProcess
from tests.support.smtp_client import Heard, SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Record = Callable[[str, object], None]

pytestmark = pytest.mark.parametrize("loop", list(LOOPS))

_MEBIBYTE: Final = 1 << 20
_TIMEOUT: Final = b"421 4.4.2 Timeout\r\n"
_BETWEEN_OCTETS: Final = 0.1
_SECONDS: Final = 60.0
_DESCRIPTORS: Final = 64
_QUIET_MILLISECONDS: Final = 200


_SLOW_JOURNAL: Final = """
import time
from batv.store.journal import Journal
write = Journal.write
def slowly(self, event):
    begun = time.thread_time()
    while time.thread_time() - begun < 0.4:
        pass
    return write(self, event)
Journal.write = slowly
"""


def test_a_stall_is_seen(loop: str, tmp_path: Path, record_testsuite_property: Record) -> None:
    """What measures the others: an event loop that waits for 0.4 seconds is found out."""
    with (
        pytest.raises(AssertionError, match=r"^0\.[345]"),
        attacked(tmp_path, loop, record_testsuite_property, before=_SLOW_JOURNAL) as (_, honest),
    ):
        until(lambda: honest.messages, "honest message")


def _begin(client: SmtpClient, service: ServiceProcess) -> None:
    """Come as far as the 354 for a genuine bounce."""
    assert client.say(b"MAIL FROM:<>").code == 250
    assert client.say(b"RCPT TO:<" + service.tagged(b"joe@example.com") + b">").code == 250
    assert client.say(b"DATA").code == 354


def _trickled(client: SmtpClient, octets: bytes, *, at_most: int = 600) -> Heard:
    """Send octets one by one, again and again, until something is heard; return that."""
    for number in range(at_most):
        if select.select([client.socket], [], [], _BETWEEN_OCTETS)[0]:
            return client.reply()
        client.send(octets[number % len(octets) :][:1])
    raise AssertionError("the client may go on for ever")


def _flooded(client: SmtpClient, piece: bytes, octets: int) -> bool:
    """Send a piece until so many octets are gone; return whether they were taken."""
    try:
        for _ in range(octets // len(piece)):
            client.send(piece)
    except (ConnectionError, TimeoutError):
        return False
    return True


@pytest.mark.parametrize("where", ["command", "header", "body"])
def test_a_sender_of_an_octet_now_and_then_is_sent_away(
    where: str, loop: str, tmp_path: Path, record_testsuite_property: Record
) -> None:
    """However alive the connection looks: a command and a message have one limit for the whole."""
    settings = "[smtp]\ncommand_seconds = 1.5\ndata_seconds = 1\nmessage_seconds = 2\n"
    with attacked(tmp_path, loop, record_testsuite_property, settings) as (service, _):
        with SmtpClient(service.inbound) as client:
            if where == "command":
                heard = _trickled(client, b"NOOP ")
            else:
                _begin(client, service)
                if where == "body":
                    client.send(b"Subject: x\r\n\r\n")
                heard = _trickled(client, b"X-Endless: x")
            assert heard.text == _TIMEOUT
            assert client.reply().code == 0
        if where != "command":
            assert service.journal()[-1]["direction"] == "outbound", "the bounce is not on record as taken"


def test_a_client_that_says_nothing_has_less_time_than_one_that_works(
    loop: str, tmp_path: Path, record_testsuite_property: Record
) -> None:
    """Its place is another's."""
    settings = "[smtp]\ngreeting_seconds = 0.5\ncommand_seconds = 30\n"
    with (
        attacked(tmp_path, loop, record_testsuite_property, settings) as (service, _),
        SmtpClient(service.inbound, greet=False) as silent,
        SmtpClient(service.inbound) as waiting,
    ):
        assert silent.reply().code == 220
        silent.socket.settimeout(10)
        assert silent.reply().text == _TIMEOUT
        assert waiting.say(b"NOOP").code == 250


def test_a_session_ends_when_its_time_is_over_and_no_message_with_it(loop: str, tmp_path: Path) -> None:
    """A message that is under way is answered first; a transaction that goes nowhere gets a message's time more."""
    settings = "[smtp]\nsession_seconds = 1\nmessage_seconds = 2\nmax_idle_commands = 1000\n"
    with (
        RecordingNextHop() as next_hop,
        ServiceProcess(tmp_path, next_hop.address, settings, code=LOOPS[loop]) as service,
    ):
        with SmtpClient(service.inbound) as client:
            _begin(client, service)
            assert not select.select([client.socket], [], [], 1.2)[0]
            assert client.say(b"x\r\n.").code == 250
            assert client.reply().text == _TIMEOUT
        with SmtpClient(service.inbound) as client:
            assert client.say(b"MAIL FROM:<>").code == 250
            while (heard := client.say(b"NOOP")).code == 250:
                pause(0.05)
            assert heard.text == _TIMEOUT
        assert len(next_hop.messages) == 1


@pytest.mark.parametrize("flood", [b"NOOP\r\n", b"RSET\r\n", b"MAIL FROM:<>\r\nRCPT TO:<%b>\r\nRSET\r\n"])
def test_whoever_never_reads_is_gone_at_the_deadline(
    flood: bytes, loop: str, tmp_path: Path, record_testsuite_property: Record
) -> None:
    """Not when he closes at last: his replies would fill the memory, and his socket would be kept."""
    settings = "[smtp]\ncommand_seconds = 1\n"
    with attacked(tmp_path, loop, record_testsuite_property, settings) as (service, _):
        attacker = socket.socket()
        attacker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        attacker.settimeout(_SECONDS)
        with attacker:
            attacker.connect(service.inbound)
            attacker.sendall(b"EHLO attacker.example\r\n")
            octets = (flood % service.tagged(b"joe@example.com") if b"%" in flood else flood) * 200
            gone = False
            while not gone:
                try:
                    attacker.sendall(octets)
                except ConnectionError:
                    gone = True


def test_noop_for_ever_is_idling(loop: str, tmp_path: Path, record_testsuite_property: Record) -> None:
    """A hundred are enough for anybody."""
    with attacked(tmp_path, loop, record_testsuite_property) as (service, _), SmtpClient(service.inbound) as client:
        said = 0
        while (heard := client.say(b"NOOP")).code == 250:
            said += 1
        assert heard.text.startswith(b"421 4.7.0 ")
        assert said == 99  # EHLO was the first


@pytest.mark.parametrize(
    ("content", "octets"),
    [
        (b"X-Endless: " + b"x" * 60 + b"\r\n", 31 * _MEBIBYTE),
        (b"\r\n" * 36, 31 * _MEBIBYTE),
        (b"x" * 72, 64 * _MEBIBYTE),
    ],
    ids=["header", "empty lines", "no line end"],
)
def test_a_message_of_a_strange_shape_costs_what_any_costs(
    content: bytes, octets: int, loop: str, tmp_path: Path, record_testsuite_property: Record
) -> None:
    """A header without end, millions of empty lines, one line of gigabytes: all of it passes on as it comes."""
    with attacked(tmp_path, loop, record_testsuite_property) as (service, _), SmtpClient(service.inbound) as client:
        _begin(client, service)
        assert _flooded(client, content * 4096, octets)
        assert client.say(b"\r\n.").code == 250


def test_a_message_without_end_is_cut(
    loop: str, tmp_path: Path, record_testsuite_property: Record, pytestconfig: pytest.Config
) -> None:
    """Nobody reads on for ever: what is more than twice of what a message may have ends the connection."""
    mebibytes = 256 if pytestconfig.getoption("--long") else 25
    settings = f"[smtp]\nmax_message_octets = {mebibytes * _MEBIBYTE}\n"
    with (
        attacked(tmp_path, loop, record_testsuite_property, settings) as (service, _),
        SmtpClient(service.inbound) as client,
    ):
        _begin(client, service)
        assert not _flooded(client, b"x" * 65_536, mebibytes * _MEBIBYTE * 12 // 5)


def test_ten_thousand_recipients_are_taken_up_to_the_limit_and_then_idling(
    loop: str, tmp_path: Path, record_testsuite_property: Record
) -> None:
    """The first thousand are accepted, as many again as a patient list has are put off, and then it is an attack."""
    with attacked(tmp_path, loop, record_testsuite_property) as (service, _), SmtpClient(service.inbound) as client:
        assert client.say(b"MAIL FROM:<ann@peer.example>").code == 250

        def send() -> None:
            with suppress(ConnectionError):
                for number in range(10_000):
                    client.send(b"RCPT TO:<%d@example.com>\r\n" % number)

        sender = Thread(target=send)
        sender.start()
        codes = []
        while (heard := client.reply()).code:
            codes.append(heard.code)
        sender.join()
        assert codes[:1000] == [250] * 1000
        assert set(codes[1000:-1]) <= {452}
        assert len(codes) < 5000


def test_one_client_does_not_take_all_connections(loop: str, tmp_path: Path) -> None:
    """Inbound: what is more than its share hears 421, and others are served; outbound there is no share."""
    with RecordingNextHop() as next_hop:
        service = ServiceProcess(tmp_path, next_hop.address, code=LOOPS[loop])
        text = service.config.read_text().replace("[inbound]\n", "[inbound]\nmax_connections_per_client = 5\n")
        service.config.write_text(text)
        with service, ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(SmtpClient(service.inbound))
            for _ in range(3):
                crowded = stack.enter_context(SmtpClient(service.inbound, greet=False))
                assert crowded.reply().text.startswith(b"421 4.7.0 ")
            other = stack.enter_context(
                socket.create_connection(service.inbound, timeout=_SECONDS, source_address=("127.0.0.2", 0))
            )
            assert other.recv(3) == b"220"
            for _ in range(10):
                stack.enter_context(SmtpClient(service.outbound))
            service.wait_for_log("^batv/WARNING: too many connections: client=127.0.0.1$")
        assert service.log.count("too many connections") == 1


def _flood_of_connections(service: ServiceProcess, count: int) -> list[bytes]:
    """Make so many connections, up to 200 of them open at once; return what those heard first that heard anything."""
    heard: list[bytes] = []

    def gather(sockets: Sequence[socket.socket]) -> None:
        waiting = {each.fileno(): each for each in sockets}
        poll = select.poll()
        for number in waiting:
            poll.register(number, select.POLLIN)
        while waiting and (ready := poll.poll(_QUIET_MILLISECONDS)):
            for number, _ in ready:
                poll.unregister(number)
                with suppress(OSError):
                    heard.append(waiting.pop(number).recv(3))
        for each in sockets:
            each.close()

    for begin in range(0, count, 200):
        sockets = []
        for _ in range(begin, min(begin + 200, count)):
            each = socket.socket()
            each.settimeout(0.5)
            with suppress(OSError):
                each.connect(service.inbound)
            sockets.append(each)
        gather(sockets)
    return heard


@pytest.mark.timeout(300)
def test_a_flood_of_connections_where_few_files_may_be_open_leaves_honest_sessions_alone(
    loop: str, tmp_path: Path, record_testsuite_property: Record, pytestconfig: pytest.Config
) -> None:
    """With 64 descriptors the service takes few clients at a time, says so to the others, and lives on."""
    before = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({_DESCRIPTORS}, {_DESCRIPTORS}))\n"
    honest: Honest
    with attacked(tmp_path, loop, record_testsuite_property, before=before) as (service, honest):
        until(lambda: honest.messages, "honest message")
        heard = _flood_of_connections(service, 10_000 if pytestconfig.getoption("--long") else 2000)
        assert b"421" in heard
        sent = honest.messages
        until(lambda: honest.messages > sent, "honest message after the flood")

        def served() -> bool:
            with SmtpClient(service.inbound, greet=False) as client:
                return client.reply().code == 220

        until(served, "place for a new client", seconds=10)
        assert "too many connections" in service.log


def test_whoever_reads_the_answer_slowly_gets_it(loop: str, tmp_path: Path, record_testsuite_property: Record) -> None:
    """A client behind a bad line is no attacker: its limit is on what it has to do, and reading some is enough."""
    settings = "[smtp]\ncommand_seconds = 2\n"
    with (
        attacked(tmp_path, loop, record_testsuite_property, settings) as (service, _),
        SmtpClient(service.inbound) as client,
    ):
        client.send(b"NOOP\r\n" * 50)
        for _ in range(50):
            assert client.reply().code == 250
            pause(0.01)
        assert client.say(b"NOOP").code == 250
