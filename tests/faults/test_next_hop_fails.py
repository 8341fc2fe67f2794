"""The next hop is down, silent, broken or gone, at each stage of a session: nothing is lost, nobody is told a lie.

One table of failures, carried out against the real service; a client that keeps its mail and tries again, as every
MTA does, tells what became of it. The same checks turn red for relays that are broken on purpose.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.next_hop import CLOSE, RESET, SILENCE, Answer, RecordingNextHop, Stage
from tests.support.service import LOOPS, SERVE, ServiceProcess
from tests.support.smtp_client import Heard, SmtpClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from tests.support.next_hop import Failure

_IMPATIENT: Final = """\
[next_hop]
connect_seconds = 0.2
command_seconds = 0.2
data_seconds = 0.2
message_seconds = 0.2
"""
_PATIENT: Final = """\
[next_hop]
connect_seconds = 30
command_seconds = 30
data_seconds = 30
message_seconds = 30
"""

_GARBAGE: Final = Answer(b"\x00\xff what\r\n")
_HALF: Final = Answer(b"25", then_close=True)
_GOES_AWAY: Final = Answer(b"421 4.3.2 going away\r\n", then_close=True)
_LATER: Final = Answer(b"451 4.3.0 not now\r\n")

_FAILURES: Final[tuple[Failure, ...]] = (SILENCE, CLOSE, RESET, _GOES_AWAY, _GARBAGE, _HALF, _LATER)
_MESSAGE_STAGES: Final = (Stage.DATA, Stage.BODY, Stage.DOT)
_TRIES: Final = 5
_RECIPIENTS: Final = frozenset({b"jim@example.com", b"joe@example.com"})

# The client's own octets: an accent, a dot-stuffed line, trailing spaces; longer than one write.
_CONTENT: Final = b"Subject: caf\xc3\xa9\r\n\r\n..dot\r\nspaces  \r\n" + b"x" * 70 * 1024 + b"\r\n"


@dataclass(frozen=True, slots=True)
class Flow:
    """A kind of mail.

    Attributes:
        name: a word for it.
        proxy: the proxy it goes through.
        null: whether the sender is null.
        tagged: whether the recipients carry tags.
    """

    name: str
    proxy: str
    null: bool = False
    tagged: bool = False

    def __str__(self) -> str:
        """Return the name."""
        return self.name


_OUTBOUND: Final = Flow("outbound", "outbound")
_GENUINE: Final = Flow("genuine-bounce", "inbound", null=True, tagged=True)
_FORGED: Final = Flow("forged-bounce", "inbound", null=True)
_PLAIN: Final = Flow("inbound", "inbound")


@dataclass(slots=True)
class Attempt:
    """What a client heard, and for whom it may forget its message.

    Attributes:
        accepted: recipients that were taken, with the message.
        replies: each reply with the command it was to.
    """

    accepted: set[bytes] = field(default_factory=set)
    replies: list[tuple[bytes, Heard]] = field(default_factory=list)


@pytest.fixture(scope="module")
def next_hop() -> Iterator[RecordingNextHop]:
    """A next hop for the whole table."""
    with RecordingNextHop() as hop:
        yield hop


@pytest.fixture(scope="module", params=list(LOOPS))
def code(request: pytest.FixtureRequest) -> str:
    """What the service runs, for each event loop: they differ in what they tell of a connection that ends."""
    return LOOPS[request.param]


@pytest.fixture(scope="module")
def patient(
    next_hop: RecordingNextHop, tmp_path_factory: pytest.TempPathFactory, code: str
) -> Iterator[ServiceProcess]:
    """A service that no slow machine makes impatient."""
    with ServiceProcess(tmp_path_factory.mktemp("patient"), next_hop.address, _PATIENT, code=code) as service:
        yield service


@pytest.fixture(scope="module")
def impatient(
    next_hop: RecordingNextHop, tmp_path_factory: pytest.TempPathFactory, code: str
) -> Iterator[ServiceProcess]:
    """A service that gives a silent next hop up soon."""
    with ServiceProcess(tmp_path_factory.mktemp("impatient"), next_hop.address, _IMPATIENT, code=code) as service:
        yield service


@contextmanager
def broken_relay(tmp_path: Path, next_hop: RecordingNextHop, code: str) -> Iterator[ServiceProcess]:
    """A service whose next-hop client is broken on purpose."""
    with ServiceProcess(tmp_path, next_hop.address, _IMPATIENT, code=code + SERVE) as service:
        yield service


def attempt(
    client: SmtpClient, service: ServiceProcess, flow: Flow, recipients: AbstractSet[bytes] = _RECIPIENTS
) -> Attempt:
    """Send the message as a client does that goes on with the recipients that were taken."""
    made = Attempt()

    def say(line: bytes, octets: bytes | None = None) -> int:
        client.send(line + b"\r\n" if octets is None else octets)
        made.replies.append((line, client.reply()))
        return made.replies[-1][1].code

    sender = b"" if flow.null else b"joe@example.com" if flow.proxy == "outbound" else b"ann@peer.example"
    if say(b"MAIL FROM:<" + sender + b">") != 250:
        return made
    paths = {recipient: service.tagged(recipient) if flow.tagged else recipient for recipient in sorted(recipients)}
    taken = {recipient for recipient, path in paths.items() if say(b"RCPT TO:<" + path + b">") == 250}
    code = say(b"DATA")
    if code == 354 and say(b"content", _CONTENT + b".\r\n") == 250:
        made.accepted = taken
    elif code == 503:
        say(b"RSET")
    return made


def check(next_hop: RecordingNextHop, service: ServiceProcess, flow: Flow, stage: Stage, failure: Failure) -> None:
    """Let the next hop fail, and hold what client and next hop saw against the rules."""
    next_hop.forget()
    records = len(service.journal()) if flow is _FORGED else 0
    expected = 1 if flow is _FORGED else len(_RECIPIENTS)  # each forged one is asked about by itself
    if stage in {Stage.BANNER, Stage.EHLO}:
        next_hop.fail(stage, failure, expected)
    with SmtpClient(service.address(flow.proxy)) as client:
        next_hop.fail(stage, failure, expected)
        failed = attempt(client, service, flow)
        early = delivered(next_hop, service, flow, records)
        next_hop.heal()
        codes = [heard.code for _, heard in failed.replies]
        assert set(codes) <= {250, 354, 451, 503}, f"never 5yz, never silence: {failed.replies}"
        assert 451 in codes, f"the client hears of it: {failed.replies}"
        assert 503 not in codes[: codes.index(451)], "503 only after what went wrong"
        assert failed.accepted <= set(early), "250 only for what is delivered or on record"
        ambiguous = stage is Stage.DOT and not (isinstance(failure, Answer) and failure.refuses)
        lost_reply = set(early) - failed.accepted
        assert lost_reply == (_RECIPIENTS if ambiguous else set()), "delivered without 250 only where nobody can know"
        assert client.say(b"NOOP").code == 250, "the session goes on"
        left = set(_RECIPIENTS) - failed.accepted
        for _ in range(_TRIES):
            left -= attempt(client, service, flow, left).accepted if left else set()
    assert not left, "what was tried again is taken"
    assert set(delivered(next_hop, service, flow, records)) == _RECIPIENTS, "and delivered"
    dots = sum(connection.dots for connection in next_hop.connections)
    refused = stage in {Stage.BODY, Stage.DOT} and isinstance(failure, Answer) and not ambiguous
    assert dots - len(next_hop.messages) in ({0, 1} if refused else {0}), "the dot only to whom the message goes"
    assert all(message.content == _CONTENT for message in next_hop.messages), "octet for octet"
    if flow is _FORGED:
        assert not next_hop.messages, "forged bounces are delivered to nobody"


def delivered(next_hop: RecordingNextHop, service: ServiceProcess, flow: Flow, records: int) -> list[bytes]:
    """Return for whom the next hop has the message; for a forged bounce, for whom the journal has it since."""
    if flow is _FORGED:
        return [record["forward_path"].strip("<>").encode() for record in service.journal()[records:]]
    return [recipient.strip(b"<>") for message in next_hop.messages for recipient in message.recipients]


def stages(flow: Flow) -> list[Stage]:
    """Return the stages that mail of this kind comes to at the next hop."""
    out = {Stage.RSET, Stage.LAST_RCPT, *_MESSAGE_STAGES} if flow is _FORGED else {Stage.RSET}
    return [stage for stage in Stage if stage not in out]


CELLS: Final = [
    pytest.param(flow, stage, failure, id=f"{flow}-{stage}-{failure}".replace(" ", "_"))
    for flow in (_OUTBOUND, _PLAIN, _GENUINE, _FORGED)
    for stage in stages(flow)
    for failure in _FAILURES
    # A reply to no command is no refusal; an answer to the banner or EHLO that says 4yz is one of the table.
    if not (flow is _PLAIN and failure not in {SILENCE, RESET})
]


@pytest.mark.parametrize(("flow", "stage", "failure"), CELLS)
def test_a_next_hop_that_fails_costs_no_mail(  # noqa: PLR0913, PLR0917 -- the services and the cell
    next_hop: RecordingNextHop,
    patient: ServiceProcess,
    impatient: ServiceProcess,
    flow: Flow,
    stage: Stage,
    failure: Failure,
) -> None:
    """The client hears 451, keeps its copy, and gets rid of it once the next hop is back."""
    check(next_hop, impatient if failure is SILENCE else patient, flow, stage, failure)


@pytest.mark.parametrize("flow", [_OUTBOUND, _GENUINE, _FORGED], ids=str)
def test_a_next_hop_that_is_down_costs_no_mail(next_hop: RecordingNextHop, patient: ServiceProcess, flow: Flow) -> None:
    """EHLO succeeds all the same; MAIL gets 451, and 250 in the same session once the next hop is up."""
    next_hop.forget()
    next_hop.stop_listening()
    try:
        with SmtpClient(patient.address(flow.proxy)) as client:
            down = attempt(client, patient, flow)
            assert [(line[:4], heard.code) for line, heard in down.replies] == [(b"MAIL", 451)]
            next_hop.listen()
            assert attempt(client, patient, flow).accepted
    finally:
        if not next_hop.listening:
            next_hop.listen()
    assert [message.content for message in next_hop.messages] == ([] if flow is _FORGED else [_CONTENT])


def test_a_reused_connection_that_was_closed_meanwhile_is_nobodys_fault(
    next_hop: RecordingNextHop, patient: ServiceProcess
) -> None:
    """MAIL is said again on a new connection: servers close idle connections without a word."""
    with SmtpClient(patient.outbound) as client:
        assert attempt(client, patient, _OUTBOUND).accepted
        next_hop.stop_listening()
        next_hop.listen()
        assert attempt(client, patient, _OUTBOUND).accepted


@pytest.mark.parametrize("flow", [_OUTBOUND, _FORGED], ids=str)
def test_a_silent_next_hop_is_not_waited_for_twice(
    next_hop: RecordingNextHop, impatient: ServiceProcess, flow: Flow
) -> None:
    """The client hears 451 before it gives up itself, also where the connection was used before."""
    next_hop.forget()
    with SmtpClient(impatient.address(flow.proxy)) as client:
        assert attempt(client, impatient, flow).accepted
        next_hop.fail(Stage.MAIL, SILENCE)
        failed = attempt(client, impatient, flow)
        next_hop.heal()
    assert 451 in {heard.code for _, heard in failed.replies}
    said = [command for command in next_hop.commands if command.startswith(b"MAIL")]
    before = 1 if flow is _OUTBOUND else 3  # a forged bounce: the transaction's own, and one for each recipient
    assert len(said) == before + 1


_EARLY_250: Final = """
from batv.net.connection import NextHopConnection
from batv.smtp.reply import Reply
async def early(self, octets, seconds):
    await self.write(octets + b".\\r\\n", seconds)
    return Reply.of(250, "2.0.0 taken, surely")
NextHopConnection.end_message = early
"""
_SWALLOWED_4YZ: Final = """
from batv.smtp.reply import Reply, ReplyParser
feed = ReplyParser.feed
def swallow(self, octets):
    for reply in feed(self, octets):
        yield Reply.of(250, "2.0.0 never mind") if reply.transient else reply
ReplyParser.feed = swallow
"""
_FAULT_TO_5YZ: Final = """
from batv.net.connection import NextHopFault
from batv.proxy.transaction import Transaction
from batv.smtp.reply import Reply
mail_reply = Transaction.mail_reply
async def harsh(self):
    try:
        return await mail_reply(self)
    except NextHopFault:
        return Reply.of(554, "5.3.0 broken")
Transaction.mail_reply = harsh
"""


@pytest.mark.parametrize(
    ("broken", "flow", "stage", "failure"),
    [
        pytest.param(_EARLY_250, _OUTBOUND, Stage.DOT, _LATER, id="250-before-the-next-hop"),
        pytest.param(_EARLY_250, _GENUINE, Stage.DOT, CLOSE, id="250-before-the-next-hop-closes"),
        pytest.param(_SWALLOWED_4YZ, _OUTBOUND, Stage.DOT, _LATER, id="4yz-swallowed-after-the-dot"),
        pytest.param(_SWALLOWED_4YZ, _GENUINE, Stage.LAST_RCPT, _LATER, id="4yz-swallowed-at-RCPT"),
        pytest.param(_FAULT_TO_5YZ, _OUTBOUND, Stage.MAIL, CLOSE, id="fault-turned-into-5yz"),
    ],
)
def test_a_broken_relay_does_not_pass_these_checks(  # noqa: PLR0913, PLR0917 -- the services and the cell
    next_hop: RecordingNextHop, tmp_path: Path, broken: str, flow: Flow, stage: Stage, failure: Failure
) -> None:
    """A table that nothing could fail would say nothing."""
    with (
        broken_relay(tmp_path, next_hop, broken) as service,
        pytest.raises(AssertionError, match=r"never 5yz|hears of it|250 only|is taken|without 250"),
    ):
        check(next_hop, service, flow, stage, failure)
