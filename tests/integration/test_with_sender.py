"""Bounces and replies that have a sender, through the real service: known by sender or header, and nothing else is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import pytest

from batv.bounce import clue_in
from batv.observe.event import Direction
from tests.integration.test_real_bounces import on_the_wire
from tests.integration.test_rescue import reply, report, send
from tests.support.command import process
from tests.support.next_hop import CLOSE, Answer, RecordingNextHop, Stage
from tests.support.recorder import recorded
from tests.support.relay import LOOPS
from tests.support.service import ServiceProcess
from tests.support.smtp_client import SmtpClient

if TYPE_CHECKING:
    from pathlib import Path

_JOE: Final = b"joe@example.com"
_BOB: Final = b"bob@peer.example"
_ORDINARY: Final = b"From: bob@peer.example\r\nSubject: failure notice\r\n\r\ntext\r\n..\r\n"
_LATE: Final = b"Subject: x\r\n folded\r\nX-Failed-Recipients: ann@peer.example\r\n\r\ntext\r\n..\r\n"
_LINE: Final = b"0123456789" * 7 + b"\r\n"


def judging(folder: Path, next_hop: RecordingNextHop, wanted: str, more: str = "") -> ServiceProcess:
    """Return a service whose domain wants this for bounces with a sender."""
    return ServiceProcess(folder, next_hop.address, f'on_bounce_with_sender = "{wanted}"\n{more}')


@pytest.mark.realcorpus
def test_real_bounces_with_a_sender_are_marked_and_arrive_octet_for_octet(
    next_hop: RecordingNextHop, tmp_path: Path, real_corpora: Path
) -> None:
    """Those that are known by their header carry a field, the others none; broken MIME is not ours to mend."""
    bounces = [on_the_wire(path.read_bytes()) for path in sorted(real_corpora.rglob("*.eml"))]
    assert len(bounces) >= 135
    with judging(tmp_path, next_hop, "mark") as service, SmtpClient(service.inbound) as client:
        for bounce in bounces:
            assert client.mail(_BOB, [_JOE], bounce).code == 250
        known = [bounce for bounce in bounces if clue_in(bounce) is not None]
        assert [record["size"] for record in service.journal()] == [len(bounce) for bounce in known]
    expected = [b"X-Batv-Status: invalid, missing\r\n" * (each in known) + each for each in bounces]
    assert [message.content for message in next_hop.messages] == expected


@pytest.mark.parametrize("wanted", ["mark", "discard"])
def test_ordinary_mail_is_neither_split_nor_touched_nor_recorded(
    next_hop: RecordingNextHop, tmp_path: Path, wanted: str
) -> None:
    """To several recipients, tagged and plain, pipelined: one transaction, in the next hop's own words."""
    with judging(tmp_path, next_hop, wanted) as service, SmtpClient(service.inbound) as client:
        recipients = [_JOE, service.tagged(b"ann@example.com"), b"kim@example.com"]
        for content in (_ORDINARY, b"", b"\r\n", b"no header at all\r\n", _ORDINARY + _LINE * 10_000):
            answer = client.mail(_BOB, recipients, content)
            assert (answer.code, answer.text == b"250 2.0.0 Ok\r\n") == (250, False)
        assert service.journal_path.read_bytes() == b""
    assert [message.recipients for message in next_hop.messages] == [
        (b"<joe@example.com>", b"<ann@example.com>", b"<kim@example.com>")
    ] * 5
    assert next_hop.messages[0].content == _ORDINARY
    assert next_hop.messages[4].content == _ORDINARY + _LINE * 10_000
    assert [command[:4] for command in next_hop.commands] == [b"MAIL", b"RCPT", b"RCPT", b"RCPT", b"DATA"] * 5


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("size", [1, 7, 60])
@pytest.mark.parametrize("content", [_LATE, _LATE.replace(b"X-Failed", b"X-Other")], ids=["bounce", "ordinary"])
def test_the_header_is_known_however_its_pieces_come(loop: str, size: int, content: bytes, tmp_path: Path) -> None:
    """What shows a bounce may be its last line; and each octet goes on once."""

    async def test() -> None:
        changes = {"domains": {"example.com": {"on_bounce_with_sender": "mark"}}}
        async with recorded(tmp_path, Direction.INBOUND, changes) as (client, recorder, _):
            for command in (b"MAIL FROM:<bob@peer.example>", b"RCPT TO:<joe@example.com>", b"DATA"):
                await client.say(command)
            whole = content + b".\r\n"
            await client.pieces([whole[at : at + size] for at in range(0, len(whole), size)])
            assert (await client.reply()).startswith(b"250")
            field = b"X-Batv-Status: invalid, missing\r\n" * (content == _LATE)
            assert recorder.messages == [field + whole]

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(test())


@pytest.mark.parametrize("sender", [b"Mailer-Daemon@peer.example", b"robot@peer.example"], ids=["sender", "header"])
@pytest.mark.parametrize("wanted", ["discard", "quarantine", "reject", "mark", "pass"])
def test_a_bounce_meets_what_the_domain_wants_whatever_shows_it(
    next_hop: RecordingNextHop, tmp_path: Path, wanted: str, sender: bytes
) -> None:
    """And the session goes on, with a genuine one, whose reply is in the same words."""
    content = report() + _LINE * 2000
    with judging(tmp_path, next_hop, wanted) as service, SmtpClient(service.inbound) as client:
        answer = client.mail(sender, [_JOE], content)
        assert answer.text == (b"550 5.7.1 Message refused\r\n" if wanted == "reject" else b"250 2.0.0 Ok\r\n")
        genuine = client.mail(sender, [service.tagged(_JOE)], content)
        assert genuine.text == b"250 2.0.0 Ok\r\n"
        forged, valid = service.journal()
        assert (forged["verdict"], forged["disposition"], forged["reverse_path"]) == (
            "untagged",
            wanted,
            f"<{sender.decode()}>",
        )
        assert (valid["verdict"], valid["disposition"]) == ("valid", "rewrite")
    field = b"X-Batv-Status: invalid, missing\r\n" * (wanted == "mark")
    expected = [field + content] if wanted in {"mark", "pass"} else []
    valid_field = b"X-Batv-Status: valid\r\n" * (wanted != "pass")
    assert [message.content for message in next_hop.messages] == [*expected, valid_field + content]
    kept = sorted(tmp_path.glob("var/quarantine/new/*"))
    assert [path.read_bytes().count(b"0123456789" * 7 + b"\n") for path in kept] == [2000] * (wanted == "quarantine")


def test_mail_of_an_exempt_sender_arrives_untouched_and_is_counted(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Known by its header or by its sender; what is exempt is on record, and letters of the same sender are not."""
    options = 'exempt_senders = ["dmarc-*@", "postmaster@*.peer.example"]\n'
    known, unknown = report(), _ORDINARY
    with judging(tmp_path, next_hop, "discard", options) as service, SmtpClient(service.inbound) as client:
        for sender, content in (
            (b"dmarc-noreply@peer.example", known),
            (b"dmarc-noreply@peer.example", unknown),
            (b"postmaster@mx.peer.example", unknown),
        ):
            assert client.mail(sender, [_JOE], content).code == 250
        assert client.mail(b"robot@peer.example", [_JOE], known).code == 250
        assert [record["verdict"] for record in service.journal()] == ["not-judged", "not-judged", "untagged"]
        told = process("report", "exemptions", "--json", folder=tmp_path).fields
    assert [message.content for message in next_hop.messages] == [known, unknown, unknown]
    assert {each["name"]: each["not_judged"] for each in told["exemptions"]} == {
        "exempt_senders has dmarc-*@": 1,
        "exempt_senders has postmaster@*.peer.example": 1,
    }


@pytest.mark.parametrize("content", [reply(), report()], ids=["reply", "report"])
@pytest.mark.parametrize("sender", [_BOB, b"mailer-daemon@peer.example"], ids=["header", "sender"])
def test_what_answers_mail_of_the_recipient_is_rescued(
    next_hop: RecordingNextHop, tmp_path: Path, sender: bytes, content: bytes
) -> None:
    """By the ledger, as with a null sender: an acknowledgement of what Joe has written is not even marked as forged."""
    more = "rescue = true\n[ledger]\nenabled = true\n"
    with judging(tmp_path, next_hop, "discard", more) as service:
        send(service)
        next_hop.forget()
        with SmtpClient(service.inbound) as client:
            assert client.mail(sender, [_JOE], content + _LINE * 4000).code == 250
            last = service.journal()[-1]
            assert (last["verdict"], last["disposition"]) == ("rescued", "pass")
            assert client.mail(sender, [_JOE], content.replace(b"<sent@", b"<guessed@")).code == 250
            assert service.journal()[-1]["verdict"] == "untagged"
    assert next_hop.messages[0].content == b"X-Batv-Status: rescued\r\n" + content + _LINE * 4000


@pytest.mark.parametrize("sender", [_BOB, b"mailer-daemon@peer.example"], ids=["header", "sender"])
def test_an_address_whose_mail_may_have_left_unsigned_is_left_alone(
    next_hop: RecordingNextHop, tmp_path: Path, sender: bytes
) -> None:
    """It is too long for a tag, and the ledger is younger than such mail may be: as with a null sender."""
    long = b"x" * 49 + b"@example.com"
    with (
        judging(tmp_path, next_hop, "discard", "[ledger]\nenabled = true\n") as service,
        SmtpClient(service.inbound) as client,
    ):
        for recipients in ([long], [long, _JOE]) if sender == _BOB else ([long],):
            assert client.mail(sender, recipients, report()).code == 250
    assert [len(message.recipients) for message in next_hop.messages] == ([1, 2] if sender == _BOB else [1])
    assert {message.content for message in next_hop.messages} == {report()}


@pytest.mark.parametrize("stage", [Stage.DATA, Stage.BODY, Stage.DOT])
@pytest.mark.parametrize("content", [report(), _ORDINARY], ids=["bounce", "ordinary"])
def test_a_next_hop_that_fails_leaves_the_message_with_the_client(
    next_hop: RecordingNextHop, tmp_path: Path, stage: Stage, content: bytes
) -> None:
    """451, as for any mail, and nothing is lost."""
    with judging(tmp_path, next_hop, "mark") as service, SmtpClient(service.inbound) as client:
        next_hop.fail(stage, CLOSE)
        assert client.mail(_BOB, [_JOE], content + _LINE * 100_000).text.startswith(b"451 4.3.0")
        next_hop.heal()
        assert client.mail(_BOB, [_JOE], content).code == 250


def test_what_the_next_hop_says_to_data_comes_at_data(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Nothing is said ahead of it, whatever the header will show."""
    next_hop.fail(Stage.DATA, Answer(b"554 5.7.0 no\r\n"))
    with judging(tmp_path, next_hop, "discard") as service, SmtpClient(service.inbound) as client:
        client.say(b"MAIL FROM:<bob@peer.example>")
        client.say(b"RCPT TO:<joe@example.com>")
        assert client.say(b"DATA").text == b"554 5.7.0 no\r\n"


def test_a_client_that_goes_in_the_header_leaves_nothing(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """No message at the next hop, and no copy."""
    with judging(tmp_path, next_hop, "quarantine") as service:
        for _ in range(3):
            with SmtpClient(service.inbound) as client:
                for command in (b"MAIL FROM:<bob@peer.example>", b"RCPT TO:<joe@example.com>", b"DATA"):
                    client.say(command)
                client.send(b"X-Failed-Recipients: ann@peer.example\r\n")
        with SmtpClient(service.inbound) as client:
            assert client.mail(_BOB, [_JOE], report()).code == 250
    assert next_hop.messages == []
    assert sum(connection.content_octets for connection in next_hop.connections) == 0
    assert len(list(tmp_path.glob("var/quarantine/new/*"))) == 1


def test_a_domain_that_is_switched_on_step_by_step_judges_them_no_harder_than_its_phase(
    next_hop: RecordingNextHop, tmp_path: Path
) -> None:
    """While it looks on they pass, and are on record."""
    with (
        judging(tmp_path, next_hop, "reject", 'rollout = "auto"\n') as service,
        SmtpClient(service.inbound) as client,
    ):
        for sender in (b"mailer-daemon@peer.example", _BOB):
            assert client.mail(sender, [_JOE], report()).code == 250
        assert [(each["verdict"], each["disposition"]) for each in service.journal()] == [("untagged", "pass")] * 2
    assert [message.content for message in next_hop.messages] == [report()] * 2
