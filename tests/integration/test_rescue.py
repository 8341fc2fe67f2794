"""Genuine replies to plain addresses pass, for what the ledger knows of the mail that was sent; forged ones do not."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.next_hop import CLOSE, Answer, RecordingNextHop, Stage
from tests.support.service import ServiceProcess
from tests.support.smtp_client import SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_RESCUE: Final = "rescue = true\n[ledger]\nenabled = true\n"
_JOE: Final = b"joe@example.com"
_SENT: Final = b"From: joe@example.com\r\nMessage-ID: <sent@example.com>\r\n\r\ntext\r\n"
_DONE: Final = b"250 2.0.0 Ok\r\n"


def reply(message_id: bytes = b"sent@example.com", party: bytes = b"bob@peer.example", body: bytes = b"") -> bytes:
    """Return a vacation notice."""
    return (
        b"From: Bob <%b>\r\nTo: joe@example.com\r\nAuto-Submitted: auto-replied (vacation)\r\nIn-Reply-To: <%b>\r\n\r\n"
        b"I am away.\r\n..\r\n%b" % (party, message_id, body)
    )


def report(message_id: bytes = b"sent@example.com", party: bytes = b"bob@peer.example") -> bytes:
    """Return a report on delivery."""
    return (
        b"From: MAILER-DAEMON@mx.peer.example\r\n"
        b"Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: message/delivery-status\r\n\r\n"
        b"Reporting-MTA: dns; x\r\n\r\nFinal-Recipient: rfc822; %b\r\n\r\n"
        b"--b\r\nContent-Type: message/rfc822\r\n\r\n"
        b"Message-ID: <%b>\r\nReferences: <sent@example.com>\r\n\r\ntext\r\n"
        b"--b--\r\n" % (party, message_id)
    )


@pytest.fixture
def service(next_hop: RecordingNextHop, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service that has sent a message of Joe's to Bob, and has it on its ledger."""
    with ServiceProcess(tmp_path, next_hop.address, _RESCUE) as service:
        send(service)
        next_hop.forget()
        yield service


def send(service: ServiceProcess) -> None:
    """Send Joe's message, and wait until it is on the ledger."""
    with SmtpClient(service.outbound) as client:
        assert client.mail(_JOE, [b"bob@peer.example"], _SENT).code == 250
    with SmtpClient(service.inbound) as client:

        def noted() -> bool:
            client.mail(b"", [_JOE], reply())
            return last(service)[0] == "rescued"

        until(noted, "the entry")


def last(service: ServiceProcess) -> tuple[str, str, str]:
    """Return verdict, disposition and reason of the last record."""
    record = service.journal()[-1]
    return record["verdict"], record["disposition"], record["reason"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [(reply(), "auto-reply"), (reply(party=b"office@Peer.example"), "auto-reply"), (report(), "dsn")],
    ids=["reply", "reply of a colleague", "report"],
)
def test_a_genuine_reply_to_the_plain_address_passes(
    service: ServiceProcess, next_hop: RecordingNextHop, content: bytes, kind: str
) -> None:
    """Octet for octet, and the journal says why."""
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [_JOE], content).text == _DONE
    (message,) = next_hop.messages
    assert message.content == content
    assert message.recipients == (b"<joe@example.com>",)
    assert last(service) == ("rescued", "pass", f"no tag; {kind}, answers a message on the ledger")
    assert [command[:4] for command in next_hop.commands] == [b"MAIL", b"RCPT", b"DATA"]


def test_an_answer_that_comes_at_once_is_rescued(service: ServiceProcess, next_hop: RecordingNextHop) -> None:
    """Who answers the moment that the message was taken is not quicker than the ledger."""
    with SmtpClient(service.outbound) as out, SmtpClient(service.inbound) as back:
        for number in range(20):
            name = b"%d@example.com" % number
            assert out.mail(_JOE, [b"bob@peer.example"], _SENT.replace(b"sent@example.com", name)).code == 250
            assert back.mail(b"", [_JOE], reply(name)).text == _DONE
            assert last(service)[0] == "rescued"
    assert len(next_hop.messages) == 40


@pytest.mark.parametrize(
    ("recipient", "content"),
    [
        (_JOE, reply(b"guessed@example.com")),
        (b"ann@example.com", reply()),
        (_JOE, reply(party=b"spam@evil.example")),
        (_JOE, report(party=b"victim@else.example")),
        (_JOE, report(message_id=b"other@example.com")),
        (_JOE, b"Subject: x\r\n\r\n"),
        (_JOE, b""),
    ],
    ids=["other id", "other user", "other party", "other recipient", "references of the original", "nothing", "empty"],
)
def test_a_forged_reply_is_discarded_as_before(
    service: ServiceProcess, next_hop: RecordingNextHop, recipient: bytes, content: bytes
) -> None:
    """Id, user and party must fit; the client hears what it would hear of any bounce, and the next hop no content."""
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [recipient], content).text == _DONE
    assert next_hop.messages == []
    assert [command[:4] for command in next_hop.commands] == [b"MAIL", b"RCPT", b"RSET"]
    verdict, disposition, reason = last(service)
    assert (verdict, disposition) == ("untagged", "discard")
    assert reason in {
        "no tag; names no message that it answers",
        "no tag; answers nothing that this recipient has sent",
    }


@pytest.mark.parametrize("size", [100, 262_000, 262_144, 1_000_000])
def test_a_long_reply_passes_whole(service: ServiceProcess, next_hop: RecordingNextHop, size: int) -> None:
    """What was looked at and what follows, each octet once."""
    line = b"0123456789" * 7 + b"\r\n"
    content = reply(body=line * (size // len(line)))
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [_JOE], content).text == _DONE
    assert next_hop.messages[-1].content == content


@pytest.mark.parametrize(
    ("disposition", "heard"),
    [("quarantine", _DONE), ("reject", b"550 5.7.1 Message refused\r\n"), ("mark", _DONE), ("pass", _DONE)],
)
def test_what_is_not_rescued_gets_what_the_domain_wants(
    next_hop: RecordingNextHop, tmp_path: Path, disposition: str, heard: bytes
) -> None:
    """Kept, refused after the dot, marked, or passed without a look."""
    with ServiceProcess(tmp_path, next_hop.address, _RESCUE, on_forged=disposition) as service:
        if disposition != "pass":
            send(service)
            next_hop.forget()
        content = reply(b"guessed@example.com")
        with SmtpClient(service.inbound) as client:
            assert client.mail(b"", [_JOE], content).text == heard
        assert last(service)[:2] == ("untagged", disposition)
        kept = sorted(tmp_path.glob("var/quarantine/new/*"))
        assert bool(kept) is (disposition == "quarantine")
        for path in kept[-1:]:
            assert b"In-Reply-To: <guessed@example.com>\n\nI am away.\n.\n" in path.read_bytes()
        fields = {"mark": b"X-Batv-Status: invalid, missing\r\n", "pass": b""}
        assert [message.content for message in next_hop.messages] == (
            [fields[disposition] + content] if disposition in fields else []
        )


def test_a_rescued_reply_is_marked_as_such(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Filters that look for `invalid` let it be."""
    with ServiceProcess(tmp_path, next_hop.address, _RESCUE, on_forged="mark") as service:
        send(service)
        assert next_hop.messages[-1].content == b"X-Batv-Status: rescued\r\n" + reply()


@pytest.mark.parametrize("others", [[b"ann@example.com"], [b"tagged"]], ids=["undecided", "tagged"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
@pytest.mark.parametrize("pipelined", [True, False], ids=["pipelined", "one by one"])
def test_an_undecided_recipient_goes_alone(
    service: ServiceProcess, next_hop: RecordingNextHop, others: list[bytes], *, first: bool, pipelined: bool
) -> None:
    """Whoever is named later is asked for a transaction of its own, as RFC 5321 section 4.5.3.1.10 has it."""
    other = service.tagged(b"ann@example.com") if others == [b"tagged"] else others[0]
    recipients = [_JOE, other] if first else [other, _JOE]
    commands = [b"MAIL FROM:<>", *(b"RCPT TO:<%b>" % each for each in recipients)]
    with SmtpClient(service.inbound) as client:
        if pipelined:
            client.send(b"".join(command + b"\r\n" for command in commands))
            heard = [client.reply() for _ in commands]
        else:
            heard = [client.say(command) for command in commands]
        assert [each.code for each in heard] == [250, 250, 452]
        assert heard[2].text == b"452 4.5.3 Send to this recipient in a transaction of its own\r\n"
        assert client.say(b"DATA").code == 354
        client.send(reply() + b".\r\n")
        assert client.reply().code == 250
    expected = [] if not first and others != [b"tagged"] else [(b"<%b>" % (_JOE if first else b"ann@example.com"),)]
    assert [message.recipients for message in next_hop.messages] == expected


def test_an_unknown_user_is_refused_at_once(service: ServiceProcess, next_hop: RecordingNextHop) -> None:
    """The next hop is asked as about any recipient, and call-outs hear the truth."""
    next_hop.fail(Stage.FIRST_RCPT, Answer(b"550 5.1.1 no such user\r\n"))
    with SmtpClient(service.inbound) as client:
        client.say(b"MAIL FROM:<>")
        assert client.say(b"RCPT TO:<nobody@example.com>").text == b"550 5.1.1 no such user\r\n"
        next_hop.heal()
        assert client.say(b"RCPT TO:<joe@example.com>").code == 250
        assert client.say(b"RSET").code == 250
        assert client.mail(b"", [service.tagged(_JOE)], reply()).text == _DONE


@pytest.mark.parametrize("answer", [b"451 4.3.0 later\r\n", b"554 5.7.0 no\r\n"])
def test_what_the_next_hop_says_to_data_is_the_reply_to_the_message(
    service: ServiceProcess, next_hop: RecordingNextHop, answer: bytes
) -> None:
    """We have said 354 by then; the rest is taken in, and the session goes on."""
    next_hop.fail(Stage.DATA, Answer(answer))
    line = b"0123456789" * 7 + b"\r\n"
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [_JOE], reply(body=line * 10_000)).text == answer
        next_hop.heal()
        assert client.mail(b"", [_JOE], reply()).text == _DONE


@pytest.mark.parametrize("stage", [Stage.DATA, Stage.BODY, Stage.DOT])
def test_a_next_hop_that_fails_leaves_the_message_with_the_client(
    service: ServiceProcess, next_hop: RecordingNextHop, stage: Stage
) -> None:
    """451, and nothing is lost: it comes again."""
    next_hop.fail(stage, CLOSE)
    line = b"0123456789" * 7 + b"\r\n"
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [_JOE], reply(body=line * 100_000)).text.startswith(b"451 4.3.0")
        next_hop.heal()
        assert client.mail(b"", [_JOE], reply()).text == _DONE


def test_only_so_many_replies_a_day_pass(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Whoever knows an id and a recipient reaches that user, and not without end; failures do not count."""
    with ServiceProcess(tmp_path, next_hop.address, _RESCUE + "max_rescues = 3\n") as service:
        send(service)
        next_hop.fail(Stage.DOT, Answer(b"451 4.3.0 later\r\n"))
        with SmtpClient(service.inbound) as client:
            for _ in range(5):
                assert client.mail(b"", [_JOE], reply()).code == 451
            next_hop.heal()
            for _ in range(4):
                assert client.mail(b"", [_JOE], reply()).text == _DONE
        verdicts = [record["verdict"] for record in service.journal()[-4:]]
        assert verdicts == ["rescued", "rescued", "untagged", "untagged"]
        assert last(service)[2] == "no tag; too many answers to this recipient today (max_rescues)"


def test_without_the_ledger_the_domain_s_disposition_stands(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Where the outbound proxy is another host's, or the files are gone or damaged; mail goes on."""
    folder = tmp_path / "var/ledger"
    with ServiceProcess(tmp_path, next_hop.address, _RESCUE) as service:
        send(service)
    shutil.rmtree(folder)
    with ServiceProcess(tmp_path, next_hop.address, _RESCUE) as service:
        with SmtpClient(service.inbound) as client:
            assert client.mail(b"", [_JOE], reply()).text == _DONE
            assert last(service) == ("untagged", "discard", "no tag; answers nothing that this recipient has sent")
            (folder / f"{service.journal()[0]['time'][:10]}.sqlite3").write_bytes(b"no database" * 1000)
            assert client.mail(b"", [_JOE], reply()).text == _DONE
            assert last(service) == ("untagged", "discard", "no tag; the ledger cannot be asked")
            assert client.mail(b"", [service.tagged(_JOE)], reply()).text == _DONE
            assert last(service)[0] == "valid"
        service.wait_for_log("ERROR: ledger fails")


def test_a_client_that_goes_while_we_look_leaves_nothing(service: ServiceProcess, next_hop: RecordingNextHop) -> None:
    """Neither at the next hop nor of the room for what is looked at."""
    for _ in range(3):
        with SmtpClient(service.inbound) as client:
            for command in (b"MAIL FROM:<>", b"RCPT TO:<joe@example.com>", b"DATA"):
                client.say(command)
            client.send(reply())
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [_JOE], reply()).text == _DONE
    assert len(next_hop.messages) == 1


def test_a_domain_without_rescue_is_judged_at_once(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """The ledger alone changes nothing."""
    with ServiceProcess(tmp_path, next_hop.address, "[ledger]\nenabled = true\n") as service:
        with SmtpClient(service.outbound) as client:
            client.mail(_JOE, [b"bob@peer.example"], _SENT)
        with SmtpClient(service.inbound) as client:
            assert client.mail(b"", [_JOE], reply()).text == _DONE
        assert last(service) == ("untagged", "discard", "no tag")


def test_bounces_of_mail_that_left_unsigned_on_purpose_pass(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """By their content, though the domain rescues nothing else; before any such mail has left, none passes."""
    exempt = '[ledger]\nenabled = true\n[[exemptions]]\nreason = "a list"\nrecipients = ["*@lists.example"]\n'
    forged = (report(b"guessed@example.com"), report(party=b"victim@else.example"), b"Subject: x\r\n\r\n")
    with (
        ServiceProcess(tmp_path, next_hop.address, exempt) as service,
        SmtpClient(service.outbound) as out,
        SmtpClient(service.inbound) as back,
    ):
        assert out.mail(_JOE, [b"a-list@lists.example"], _SENT).code == 250
        assert next_hop.messages[-1].mail == b"<joe@example.com>"
        assert back.mail(b"", [_JOE], report(party=b"a-list@lists.example")).text == _DONE
        assert last(service)[:2] == ("rescued", "pass")
        for content in forged:
            assert back.mail(b"", [_JOE], content).text == _DONE
            assert last(service)[:2] == ("untagged", "discard")
    with ServiceProcess(tmp_path, next_hop.address, exempt) as service, SmtpClient(service.inbound) as back:
        assert back.mail(b"", [_JOE], report(party=b"a-list@lists.example")).text == _DONE
        assert last(service)[:2] == ("rescued", "pass")
