"""`batv report exemptions`: how much mail met each exemption, and which nobody seems to need, by the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from batv.address import NULL_REVERSE_PATH
from batv.config import parse
from batv.keyring import Key, KeyRing, KeyRings, Secret
from batv.smtp.path import parse_mail, parse_rcpt
from batv.stage import Client, SigningStage, VerifyingStage
from batv.verdict import Disposition, Verdict
from tests.support.command import TODAY, Answer, Command
from tests.support.journal import JournalWriter

if TYPE_CHECKING:
    from pathlib import Path

KEY: Final = Key(0, Secret(b"a secret of sixteen or more octets"), TODAY + -100, 7, TODAY + -100)
RINGS: Final = KeyRings(KeyRing(TODAY + -100, (KEY,)))

EXEMPTIONS: Final = """
[[exemptions]]
reason = "lists that know their members"
owner = "ann"
until = 2027-03-31
recipients = ["*@lists.peer.example", "*-request@"]

[[exemptions]]
reason = "robots; they cannot bear a tag"
senders = ["robot-*@"]

[[exemptions]]
reason = "fair"
until = 2026-11-20
clients = ["192.0.2.0/24"]
"""
LISTS: Final = "exempt: lists that know their members (ann)"
ROBOTS: Final = "exempt: robots; they cannot bear a tag"
FAX: Final = "exempt: exempt_recipients has fax-*"


@pytest.fixture
def batv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return `batv` on a site with exemptions."""
    (tmp_path / "var").mkdir()
    command = Command(tmp_path, capsys)
    settings = command.config.read_text()
    settings = settings.replace("relay_domains", 'exempt_clients = ["198.51.100.0/24"]\nrelay_domains')
    settings = settings.replace(
        '[domains."example.com"]', '[domains."example.com"]\nexempt_recipients = ["postmaster", "fax-*"]'
    )
    command.config.write_text(settings + EXEMPTIONS)
    return command


def report(batv: Command, *options: str) -> Answer:
    """Run the command."""
    return batv("report", "exemptions", "--json", *options)


def numbers(answer: Answer) -> dict[str, tuple[int, int]]:
    """Return, of each exemption, to how many mail left unsigned, and how many had bounces that were not judged."""
    return {each["name"]: (each["unsigned"], each["not_judged"]) for each in answer.fields["exemptions"]}


def of(answer: Answer, name: str) -> dict[str, Any]:
    """Return what is said of the exemption that is named so."""
    (found,) = (each for each in answer.fields["exemptions"] if each["name"] == name)
    return dict(found)


def test_the_hits_of_each_exemption_are_counted_with_the_last_day(batv: Command) -> None:
    """Whoever keeps it has to know whether anybody needs it."""
    JournalWriter(batv, days_ago=3).sent("joe@example.com", LISTS, count=2).sent("joe@example.com").close()
    JournalWriter(batv, days_ago=1).sent("robot-1@example.com", ROBOTS).close()
    writer = JournalWriter(batv)
    writer.bounce("robot-1@example.com", Verdict.NOT_JUDGED, Disposition.PASS, reason=ROBOTS)
    writer.bounce("fax-1@example.com", Verdict.NOT_JUDGED, Disposition.PASS, reason=f"receipt; {FAX}")
    writer.bounce("joe@example.com", Verdict.UNTAGGED).close()
    answer = report(batv)
    assert numbers(answer) == {
        LISTS.removeprefix("exempt: "): (2, 0),
        ROBOTS.removeprefix("exempt: "): (1, 1),
        "fair": (0, 0),
        "exempt_clients has 198.51.100.0/24": (0, 0),
        "exempt_recipients has fax-*": (0, 1),
    }
    lists = of(answer, "lists that know their members (ann)")
    assert (lists["where"], lists["owner"], lists["until"]) == ("exemptions.0", "ann", "2027-03-31")
    assert lists["recipients"] == ["*@lists.peer.example", "*-request@"]
    assert (lists["last"][:10], lists["standing"], lists["advice"]) == ("2026-11-20", "met", "")
    assert (answer.fields["records"], answer.fields["first"][:10]) == (7, "2026-11-20")


def test_what_the_proxies_write_of_an_exemption_is_what_is_counted(batv: Command) -> None:
    """If the words of the journal changed, every exemption would seem to be of no use."""
    settings = batv.config.read_text()
    for there, more in (
        ("[outbound]\n", "exempt_own_domains = true\n"),
        ('[domains."example.com"]\n', 'on_bounce_with_sender = "mark"\nexempt_senders = ["*@dmarc.example"]\n'),
        ('senders = ["robot-*@"]\n', 'owner = "ops"\n'),
    ):
        settings = settings.replace(there, there + more)
    batv.config.write_text(settings)
    policy = parse(batv.config.read_text(), str(batv.config), str(batv.folder)).policy
    writer = JournalWriter(batv)
    for sender, recipient in (
        ("joe@example.com", "x@lists.peer.example"),
        ("joe@example.com", "ann@example.com"),
        ("robot-1@example.com", "bob@peer.example"),
    ):
        path, to = parse_mail(f"FROM:<{sender}>".encode()).path, parse_rcpt(f"TO:<{recipient}>".encode()).path
        decision = SigningStage(policy).sender_for(path, to, Client("127.0.0.1"), RINGS, TODAY)
        writer.sent(sender, decision.reason.removeprefix("unsigned: "))
    other, system = Client("11.0.0.9"), parse_mail(b"FROM:<postmaster@dmarc.example>").path
    for recipient, who, reverse_path in (
        ("robot-1@example.com", other, NULL_REVERSE_PATH),
        ("fax-7@example.com", other, NULL_REVERSE_PATH),
        ("postmaster@example.com", other, NULL_REVERSE_PATH),
        ("joe@example.com", Client("198.51.100.7"), NULL_REVERSE_PATH),
        ("joe@example.com", other, system),
    ):
        path_to = parse_rcpt(f"TO:<{recipient}>".encode()).path
        judged = VerifyingStage(policy).recipient(reverse_path, path_to, who, RINGS, TODAY)
        writer.bounce(recipient, judged.verdict, judged.disposition, reason=judged.reason)
    writer.close()
    assert numbers(report(batv)) == {
        "lists that know their members (ann)": (1, 0),
        "robots; they cannot bear a tag (ops)": (1, 1),
        "fair": (0, 0),
        "exempt_own_domains": (1, 0),
        "exempt_clients has 198.51.100.0/24": (0, 1),
        "exempt_recipients has postmaster": (0, 1),
        "exempt_recipients has fax-*": (0, 1),
        "exempt_senders has *@dmarc.example": (0, 1),
    }


def test_an_exemption_that_no_mail_has_met_or_that_has_ended_is_something_to_do(batv: Command) -> None:
    """Each is a hole that somebody may find; its owner is whom to ask."""
    writer = JournalWriter(batv).sent("robot-1@example.com", ROBOTS)
    writer.sent("joe@example.com", "exempt: fair").close()
    answer = report(batv)
    assert answer.status == 1
    assert of(answer, "lists that know their members (ann)")["advice"] == (
        "no mail has met it: ask ann, or leave it out"
    )
    assert of(answer, "fair")["advice"] == "it has ended: renew it, or leave it out"
    assert of(answer, "exempt_recipients has fax-*")["standing"] == "not met"


def test_a_site_whose_exemptions_are_all_met_has_nothing_to_do(batv: Command) -> None:
    """Exit status 0; postmaster, whom RFC 5321 section 4.5.1 wants to be reached, need not be met."""
    batv.config.write_text(batv.config.read_text().replace("until = 2026-11-20", "").replace(', "fax-*"', ""))
    writer = JournalWriter(batv).sent("a@example.com", LISTS).sent("a@example.com", ROBOTS)
    writer.sent("a@example.com", "exempt: fair")
    writer.bounce("a@example.com", Verdict.NOT_JUDGED, reason="exempt: exempt_clients has 198.51.100.0/24").close()
    answer = report(batv)
    assert (answer.status, {each["standing"] for each in answer.fields["exemptions"]}) == (0, {"met"})


def test_hits_of_an_exemption_that_is_in_the_settings_no_more_are_told_apart(batv: Command) -> None:
    """Mail that left unsigned for it may still bring bounces without a tag; there is nothing to do about it."""
    JournalWriter(batv).sent("joe@example.com", "exempt: an old friend (bob)", count=3).close()
    gone = of(report(batv), "an old friend (bob)")
    assert (gone["where"], gone["standing"], gone["unsigned"], gone["advice"]) == (None, "gone", 3, "")


def test_exemptions_that_the_journal_cannot_tell_apart_are_named(batv: Command) -> None:
    """Else each would be kept for what the other is good for."""
    batv.config.write_text(
        batv.config.read_text() + '[[exemptions]]\nreason = "robots; they cannot bear a tag"\nsenders = ["bot@"]\n'
    )
    JournalWriter(batv).sent("bot@example.com", ROBOTS).close()
    alike = [each for each in report(batv).fields["exemptions"] if each["standing"] == "alike"]
    assert [each["where"] for each in alike] == ["exemptions.1", "exemptions.3"]
    assert all("give it another reason" in each["advice"] for each in alike)


def test_a_recipient_who_comes_again_is_counted_once(batv: Command) -> None:
    """Mail that the next hop puts off for a day would look like a hundred recipients."""
    writer = JournalWriter(batv).sent("joe@example.com", LISTS, count=5, reply="451 4.3.0 later")
    writer.sent("joe@example.com", LISTS).close()
    assert of(report(batv), "lists that know their members (ann)")["unsigned"] == 1


def test_only_the_days_that_were_asked_for_count(batv: Command) -> None:
    """What was needed a year ago may be needed no more."""
    JournalWriter(batv, days_ago=5).sent("joe@example.com", LISTS).close()
    assert of(report(batv), "lists that know their members (ann)")["standing"] == "met"
    answer = report(batv, "--days", "3")
    assert of(answer, "lists that know their members (ann)")["standing"] == "not met"
    assert answer.fields["records"] == 0


def test_the_table_says_the_same(batv: Command) -> None:
    """Without JSON an administrator reads who asked for it, until when, how many and what to do."""
    JournalWriter(batv).sent("joe@example.com", LISTS, count=2).sent("joe@example.com", "exempt: old").close()
    answer = batv("report", "exemptions")
    assert (answer.status, answer.err) == (1, "")
    (lists,) = (line for line in answer.out.splitlines() if "lists that know" in line)
    for said in ("(ann)", "exemptions.0", "*@lists.peer.example, *-request@", "2027-03-31", "2026-11-23"):
        assert said in lists
    assert "it has ended" in answer.out
    assert answer.out.splitlines()[-1] == (
        "3 records from 2026-11-23 to 2026-11-23: mail to 3 recipients unsigned, bounces to 0 not judged, for an"
        " exemption"
    )


def test_a_site_without_a_journal_is_told_what_to_do(batv: Command) -> None:
    """No journal is no evidence that nobody needs an exemption."""
    answer = batv("report", "exemptions")
    assert (answer.status, answer.out) == (74, "")
    assert "let mail pass the proxies first" in answer.err
