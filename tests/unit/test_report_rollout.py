"""`batv report rollout`: mail that leaves unsigned, and who gets bounces without a tag, as the journal tells it."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest

from batv.rescue import ANSWERED, IN_OUR_NAME
from batv.verdict import Disposition, Verdict
from tests.support.command import Answer, Command
from tests.support.journal import JournalWriter

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def batv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return `batv` on a site."""
    (tmp_path / "var").mkdir()
    return Command(tmp_path, capsys)


def report(batv: Command, *options: str) -> Answer:
    """Run the command."""
    return batv("report", "rollout", "--json", *options)


def addresses(answer: Answer) -> dict[str, str]:
    """Return the guess about each address."""
    return {each["address"]: each["guess"] for each in answer.fields["addresses"]}


def test_bounces_are_counted_by_class_and_domain(batv: Command) -> None:
    """What would have been withheld, and whether any of it looks genuine."""
    (
        JournalWriter(batv)
        .bounce("joe@example.com", Verdict.VALID, Disposition.REWRITE)
        .bounce("joe@example.com", Verdict.UNTAGGED)
        .bounce("joe@example.com", Verdict.RESCUED, Disposition.PASS)
        .bounce("joe@example.com", Verdict.BAD_SIGNATURE)
        .bounce("joe@example.com", Verdict.UNKNOWN_KEY)
        .bounce("ann@lists.example", Verdict.EXPIRED)
        .bounce("x@hosted.example", Verdict.NOT_JUDGED)
        .close()
    )
    answer = report(batv)
    assert answer.fields["domains"] == {
        "example.com": {"valid": 1, "rescued": 1, "genuine": 0, "unknown": 1, "forged": 2},
        "lists.example": {"valid": 0, "rescued": 0, "genuine": 1, "unknown": 0, "forged": 0},
    }
    assert answer.status == 1


def test_a_site_without_genuine_looking_bounces_may_go_on(batv: Command) -> None:
    """Exit status 0, whatever forgers send."""
    JournalWriter(batv).sent("joe@example.com").bounce("joe@example.com", Verdict.UNTAGGED).close()
    assert report(batv).status == 0


def test_bounces_to_an_address_whose_mail_left_unsigned_look_genuine(batv: Command) -> None:
    """They cannot have a tag; and what was sent only afterwards did not bring them."""
    writer = JournalWriter(batv)
    writer.sent("Joe@Example.com", "no XFORWARD SOURCE=LOCAL, and require_local_source is set")
    writer.bounce("joe@example.com", Verdict.UNTAGGED, Disposition.DISCARD)
    writer.bounce("ann@example.com", Verdict.UNTAGGED)
    writer.sent("ann@example.com", "no XFORWARD SOURCE=LOCAL, and require_local_source is set")
    writer.close()
    answer = report(batv)
    assert addresses(answer) == {"joe@example.com": "unsigned", "ann@example.com": "never seen"}
    joe = answer.fields["addresses"][0]
    assert (joe["bounces"], joe["withheld"], joe["clients"]) == (1, 1, {"11.0.0.9": 1})
    assert "looks genuine" in joe["advice"] or "look genuine" in joe["advice"]


def test_an_address_is_known_by_what_it_has_sent(batv: Command) -> None:
    """One that never sends is forged or has a forgotten route; one that is signed gets answers to its header."""
    writer = JournalWriter(batv).sent("joe@example.com")
    for address in ("joe@example.com", "shop@example.com"):
        writer.bounce(address, Verdict.UNTAGGED)
    writer.bounce("late@example.com", Verdict.EXPIRED)
    writer.close()
    assert addresses(report(batv)) == {
        "joe@example.com": "signed",
        "shop@example.com": "never seen",
        "late@example.com": "late",
    }


def test_what_the_ledger_knew_of_a_bounce_tells_more_than_what_its_address_sent(batv: Command) -> None:
    """It looks genuine where it answers mail of ours; a name of ours in it proves nothing."""
    writer = JournalWriter(batv).sent("joe@example.com")
    for address, said in (("joe", ANSWERED), ("ann", f"answers nothing; {IN_OUR_NAME} example.com"), ("eve", "x")):
        writer.bounce(f"{address}@example.com", Verdict.UNTAGGED, reason=f"no tag; {said}")
    writer.close()
    answer = report(batv)
    assert addresses(answer) == {
        "joe@example.com": "on the ledger",
        "ann@example.com": "in our name",
        "eve@example.com": "never seen",
    }
    assert answer.fields["domains"]["example.com"] == {
        "valid": 0,
        "rescued": 0,
        "genuine": 1,
        "unknown": 2,
        "forged": 0,
    }
    assert "set rescue" in answer.fields["addresses"][0]["advice"]


def test_mail_that_left_unsigned_is_told_by_reason_with_its_senders_and_their_servers(batv: Command) -> None:
    """A domain that nobody configured, and what is forwarded through the wrong proxy, show up here."""
    writer = JournalWriter(batv)
    writer.sent("a@sub.example.com", "sub.example.com is not a domain of ours", count=3, client="10.0.0.5")
    writer.sent("", "null sender", count=2)
    writer.sent("x@example.com", "exempt: members are known by it (ann)")
    writer.close()
    unsigned = report(batv).fields["unsigned"]
    assert [(each["reason"], each["recipients"]) for each in unsigned] == [
        ("sub.example.com is not a domain of ours", 3),
        ("null sender", 2),
        ("exempt: members are known by it (ann)", 1),
    ]
    assert (unsigned[0]["senders"], unsigned[0]["clients"]) == ({"<a@sub.example.com>": 3}, {"10.0.0.5": 3})
    assert '[domains."sub.example.com"]' in unsigned[0]["advice"]
    assert [each["advice"] for each in unsigned[1:]] == ["", ""]


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("carries a tag already", "pass the outbound proxy once"),
        ("local part too long for a tag", "without a [ledger] bounces to these addresses are not judged"),
        ("local part with a routing character", "bounces to these addresses are refused"),
    ],
)
def test_what_becomes_of_bounces_to_an_address_that_cannot_be_signed_is_told(
    batv: Command, reason: str, advice: str
) -> None:
    """Each kind of address meets something else, and wants something else."""
    writer = JournalWriter(batv)
    writer.sent("a@example.com", reason)
    writer.close()
    (unsigned,) = report(batv).fields["unsigned"]
    assert advice in unsigned["advice"]


def test_only_the_days_that_were_asked_for_are_told(batv: Command) -> None:
    """What was sent before them still explains what came in them."""
    early = JournalWriter(batv, days_ago=5)
    early.sent("joe@example.com").bounce("old@example.com", Verdict.UNTAGGED).close()
    JournalWriter(batv).bounce("joe@example.com", Verdict.UNTAGGED).close()
    assert addresses(report(batv, "--days", "3")) == {"joe@example.com": "signed"}
    assert addresses(report(batv)) == {"joe@example.com": "signed", "old@example.com": "never seen"}


def test_journals_that_were_rotated_are_read_too(batv: Command) -> None:
    """They are packed by then."""
    JournalWriter(batv, days_ago=5).sent("joe@example.com").close()
    journal = batv.folder / "var/journal.jsonl"
    packed = batv.folder / "var/journal.jsonl.1.gz"
    packed.write_bytes(gzip.compress(journal.read_bytes()))
    journal.unlink()
    JournalWriter(batv).bounce("joe@example.com", Verdict.UNTAGGED).close()
    assert addresses(report(batv)) == {"joe@example.com": "signed"}
    assert addresses(report(batv, str(journal))) == {"joe@example.com": "never seen"}


def test_half_a_record_does_not_hide_the_others(batv: Command) -> None:
    """A disk that was full leaves one behind."""
    JournalWriter(batv).bounce("joe@example.com", Verdict.UNTAGGED).close()
    with (batv.folder / "var/journal.jsonl").open("a") as file:
        file.write('{"time": "2026\n[]\n' + json.dumps({"direction": "inbound", "time": 7, "verdict": None}) + "\n")
    answer = report(batv)
    assert answer.fields["damaged"] == 2
    assert "2 lines that are no records" in answer.err
    assert addresses(answer) == {"joe@example.com": "never seen"}


def test_the_tables_say_the_same(batv: Command) -> None:
    """Without JSON an administrator reads who, how many and what to do."""
    writer = JournalWriter(batv).sent("joe@example.com")
    for number in range(3):
        writer.bounce(f"shop{number}@example.com", Verdict.UNTAGGED)
    writer.sent("a@sub.example.com", "sub.example.com is not a domain of ours").close()
    answer = batv("report", "rollout", "--top", "2")
    assert (answer.status, answer.err) == (0, "")
    assert 'add [domains."sub.example.com"]' in answer.out
    assert "shop1@example.com" in answer.out
    assert "shop2@example.com" not in answer.out
    assert "1 more: --json has them all" in answer.out
    assert answer.out.splitlines()[-1] == (
        "5 records from 2026-11-23 to 2026-11-23: mail to 1 recipient signed, to 1 unsigned"
    )


def test_a_site_without_a_journal_is_told_what_to_do(batv: Command) -> None:
    """No journal is no answer."""
    answer = batv("report", "rollout")
    assert (answer.status, answer.out) == (74, "")
    assert "let mail pass the proxies first" in answer.err


def test_probes_and_their_bounces_are_told_of_nowhere(batv: Command) -> None:
    """They come every day whatever users do: a site that signs nothing else would seem to sign."""
    probe = '[probe]\nsender = "probe+*@example.com"\nrecipient = "nobody@remote.example"\n'
    batv.config.write_text(f"{batv.config.read_text()}\n{probe}")
    writer = JournalWriter(batv).sent("probe+0a1b@example.com").sent("probe+0a1c@example.com", "null sender")
    writer.bounce("prvs=0123******=probe+0a1b@example.com", Verdict.VALID)
    writer.bounce("probe+0a1b@example.com", Verdict.UNTAGGED, Disposition.DISCARD)
    writer.bounce("joe@example.com", Verdict.UNTAGGED).close()
    fields = batv("report", "rollout", "--json").fields
    assert (fields["records"], fields["signed"], fields["unsigned"]) == (1, 0, [])
    (domain,) = fields["domains"].values()
    assert (domain["valid"], domain["unknown"]) == (0, 1)
    assert [each["address"] for each in fields["addresses"]] == ["joe@example.com"]
