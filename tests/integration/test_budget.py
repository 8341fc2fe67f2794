"""A tag that was stolen: what comes beyond the budget of its mail is looked into and kept; nothing genuine is lost."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from batv.budget import SPARE_BOUNCES
from tests.support.next_hop import Answer, Stage
from tests.support.service import ServiceProcess
from tests.support.smtp_client import SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.next_hop import RecordingNextHop

_BUDGET: Final = "[ledger]\nenabled = true\nmax_bounces_per_recipient = 2\n"
_JOE: Final = b"joe@example.com"
_SENT: Final = b"From: joe@example.com\r\nMessage-ID: <sent@example.com>\r\n\r\ntext\r\n"
_JUNK: Final = b"Subject: Undelivered\r\n\r\nbuy this\r\n"
_GENUINE: Final = (
    b"From: MAILER-DAEMON@mx.peer.example\r\n"
    b"Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n"
    b"--b\r\nContent-Type: message/delivery-status\r\n\r\n"
    b"Reporting-MTA: dns; x\r\n\r\nFinal-Recipient: rfc822; bob@peer.example\r\n\r\n"
    b"--b\r\nContent-Type: message/rfc822\r\n\r\nMessage-ID: <sent@example.com>\r\n\r\ntext\r\n--b--\r\n"
)


def send(service: ServiceProcess, recipients: int = 1) -> None:
    """Send a message of Joe's to Bob, and to more."""
    others = [b"user%d@peer.example" % number for number in range(recipients - 1)]
    with SmtpClient(service.outbound) as client:
        assert client.mail(_JOE, [b"bob@peer.example", *others], _SENT).code == 250


def bounce(client: SmtpClient, service: ServiceProcess, content: bytes = _JUNK) -> tuple[str, str]:
    """Send a bounce to Joe's tag, and return verdict and disposition of the record."""
    assert client.mail(b"", [service.tagged(_JOE)], content).text == b"250 2.0.0 Ok\r\n"
    record = service.journal()[-1]
    return record["verdict"], record["disposition"]


def overdraw(client: SmtpClient, service: ServiceProcess, recipients: int = 1) -> None:
    """Let as many bounces come as the budget has; all are delivered."""
    for _ in range(2 * recipients + SPARE_BOUNCES):
        assert bounce(client, service) == ("valid", "rewrite")


def test_beyond_the_budget_what_proves_nothing_is_kept_and_what_is_genuine_passes(
    next_hop: RecordingNextHop, tmp_path: Path
) -> None:
    """After a restart too; another tag is not concerned."""
    with ServiceProcess(tmp_path, next_hop.address, _BUDGET) as service, SmtpClient(service.inbound) as client:
        send(service)
        overdraw(client, service)
        next_hop.forget()
        assert bounce(client, service) == ("valid", "quarantine")
        assert next_hop.messages == []
        assert bounce(client, service, _GENUINE) == ("valid", "rewrite")
        (message,) = next_hop.messages
        assert (message.recipients, message.content) == ((b"<joe@example.com>",), _GENUINE)
        assert client.mail(b"", [service.tagged(b"ann@example.com")], _JUNK).code == 250
        assert service.journal()[-1]["disposition"] == "rewrite"
        service.wait_for_log(
            r"WARNING: a tag has more bounces than its mail should have: recipient=joe@example.com, bounces=12, recip"
        )
        reason = "tag good; more bounces than its mail should have: 13 for 1 recipient; "
        assert service.journal()[-2]["reason"] == reason + "dsn, answers a message on the ledger"
    with ServiceProcess(tmp_path, next_hop.address, _BUDGET) as service, SmtpClient(service.inbound) as client:
        assert bounce(client, service) == ("valid", "quarantine")
        send(service)
        assert bounce(client, service) == ("valid", "quarantine")
        send(service, 2)
        assert bounce(client, service) == ("valid", "rewrite")
    assert len(list(tmp_path.glob("var/quarantine/new/*"))) == 3


def test_an_announcement_that_comes_back_whole_does_not_meet_the_budget(
    next_hop: RecordingNextHop, tmp_path: Path
) -> None:
    """Each of many recipients has a bounce and a notice of delay."""
    with ServiceProcess(tmp_path, next_hop.address, _BUDGET) as service, SmtpClient(service.inbound) as client:
        for _ in range(3):
            send(service, 50)
        overdraw(client, service, 150)
        assert bounce(client, service) == ("valid", "quarantine")


def test_what_comes_to_a_tag_takes_nothing_from_replies_without_one(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Both are let through for what is on the ledger, so many a day of each."""
    settings = "rescue = true\n" + _BUDGET + "max_rescues = 2\n"
    with ServiceProcess(tmp_path, next_hop.address, settings) as service, SmtpClient(service.inbound) as client:
        send(service)
        overdraw(client, service)
        for disposition in ("rewrite", "rewrite", "quarantine"):
            assert bounce(client, service, _GENUINE) == ("valid", disposition)
        for disposition in ("pass", "pass", "discard"):
            assert client.mail(b"", [_JOE], _GENUINE).code == 250
            assert service.journal()[-1]["disposition"] == disposition


def test_call_outs_are_no_bounces(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Servers ask whether the sender is there, for each of many messages; refused messages do not count either."""
    with ServiceProcess(tmp_path, next_hop.address, _BUDGET) as service, SmtpClient(service.inbound) as client:
        send(service)
        for _ in range(50):
            assert client.say(b"MAIL FROM:<>").code == 250
            assert client.say(b"RCPT TO:<" + service.tagged(_JOE) + b">").code == 250
            assert client.say(b"RSET").code == 250
        assert bounce(client, service) == ("valid", "rewrite")


@pytest.mark.parametrize(
    "why", ["off", "nothing was sent", "ledger unreadable", "quarantine full", "looks on", "marks"]
)
def test_nothing_is_withheld_where_the_budget_cannot_be_known_or_kept(
    next_hop: RecordingNextHop, tmp_path: Path, why: str
) -> None:
    """Another host may have signed; and what has no room in the quarantine may be genuine."""
    settings = {
        "off": "[ledger]\nenabled = true\n",
        "quarantine full": _BUDGET + "[state]\nquarantine_max_mib = 1\n",
        "looks on": 'rollout = "auto"\n' + _BUDGET,
    }.get(why, _BUDGET)
    if why == "quarantine full":
        folder = tmp_path / "var/quarantine/new"
        folder.mkdir(parents=True, mode=0o700)
        (folder / "1.000000.x.batv").write_bytes(b"x" * (1 << 20))
    on_forged = "mark" if why == "marks" else "discard"
    with ServiceProcess(tmp_path, next_hop.address, settings, on_forged=on_forged) as service:
        if why != "nothing was sent":
            send(service)
            until(lambda: list(tmp_path.glob("var/ledger/*.sqlite3")), "the ledger")
    if why == "ledger unreadable":
        (path,) = tmp_path.glob("var/ledger/*.sqlite3")
        path.write_bytes(b"no database" * 1000)
    with (
        ServiceProcess(tmp_path, next_hop.address, settings, on_forged=on_forged) as service,
        SmtpClient(service.inbound) as client,
    ):
        overdraw(client, service, 3)


def test_bounces_that_come_at_once_have_no_more_than_the_budget(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Whoever stole the tag may name it on forty connections before a single message is over."""
    with ServiceProcess(tmp_path, next_hop.address, _BUDGET) as service, ExitStack() as clients:
        send(service)
        next_hop.forget()
        crowd = [clients.enter_context(SmtpClient(service.inbound)) for _ in range(40)]
        for line in (b"MAIL FROM:<>", b"RCPT TO:<" + service.tagged(_JOE) + b">", b"DATA", _JUNK + b"."):
            for client in crowd:
                assert client.say(line).code < 400
        got = Counter(record["disposition"] for record in service.journal() if record["direction"] == "inbound")
        assert got == {"rewrite": 2 + SPARE_BOUNCES, "quarantine": 40 - 2 - SPARE_BOUNCES}
        assert len(next_hop.messages) == 2 + SPARE_BOUNCES


def test_bounces_that_came_to_nothing_take_nothing_from_the_budget(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """However they ended: refused, broken off by their clients, or with another greeting."""
    with ServiceProcess(tmp_path, next_hop.address, _BUDGET) as service:
        send(service)
        name = b"RCPT TO:<" + service.tagged(_JOE) + b">"
        for number in range(24):
            with SmtpClient(service.inbound) as client:
                client.say(b"MAIL FROM:<>")
                assert client.say(name).code == 250
                if number % 4 == 0:
                    client.say(b"EHLO again.example")
                elif number % 4 == 1:
                    client.say(b"DATA")
                    client.send(b"Subject: x\r\n")
                elif number % 4 == 2:
                    next_hop.fail(Stage.DOT, Answer(b"550 no\r\n"))
                    client.say(b"DATA")
                    assert client.say(_JUNK + b".").code == 550
                    next_hop.heal()
        port = service.inbound[1]
        process = psutil.Process(service.pid)
        until(lambda: [each.laddr.port for each in process.net_connections()].count(port) == 1, "the end of clients")
        with SmtpClient(service.inbound) as client:
            overdraw(client, service)


def test_workers_count_together(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Whichever of them a bounce comes to; what each has not written yet, the others do not see."""
    settings = _BUDGET + "[smtp]\nworkers = 2\n"
    with ServiceProcess(tmp_path, next_hop.address, settings) as service:
        send(service)
        kept = 0

        def overdrawn() -> bool:
            nonlocal kept
            with SmtpClient(service.inbound) as client:  # each time another connection, for another worker
                kept += bounce(client, service) == ("valid", "quarantine")
            return kept > 5

        until(overdrawn, "the end of the budget")
        delivered = [record for record in service.journal() if record["disposition"] == "rewrite"]
        assert len([record for record in delivered if record["direction"] == "inbound"]) >= 2 + SPARE_BOUNCES
