"""`batv explain --message` and `--session`: what became of a bounce, and what would have to be otherwise."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Final

import pytest

from batv.observe.event import Direction, RecipientOutcome, TransactionEnded
from batv.stage import NOT_ON_RECORD, OVERDRAWN
from batv.store.journal import Journal
from batv.store.ledger import SECRET_NAME, Ledger, LedgerLimits
from batv.store.quarantine import Quarantine
from batv.store.rings import RingStore
from batv.verdict import APART, Disposition, Verdict
from tests.support.command import TODAY, Command
from tests.support.event import EVENT, OUTCOME

if TYPE_CHECKING:
    from pathlib import Path

BOUNCE: Final = b"""\
From: MAILER-DAEMON@peer.example
To: joe@example.com
Content-Type: multipart/report; report-type=delivery-status; boundary=b

--b
Content-Type: message/delivery-status

Final-Recipient: rfc822; bob@peer.example

--b
Content-Type: message/rfc822-headers

Message-ID: <1@example.com>
Return-Path: <prvs=0787abcdef=joe@example.com>

--b--
"""
RECORD: Final = EVENT._replace(time=1_795_435_269.0, message_id="<7@peer.example>")
IN_FORCE: Final = "batv config check && systemctl reload batv"


@pytest.fixture
def batv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return `batv` on a site that has a key and a state folder."""
    command = Command(tmp_path, capsys)
    assert command("key", "new").status == 0
    (tmp_path / "var").mkdir()
    return command


def message(batv: Command, octets: bytes) -> str:
    """Return the path of a file with these octets."""
    path = batv.folder / "bounce.eml"
    path.write_bytes(octets)
    return str(path)


def recorded(batv: Command, *events: TransactionEnded) -> Path:
    """Write the records of transactions to the journal, and return its path."""
    journal = Journal(batv.folder / "var")
    for event in events:
        assert journal.write(event)
    journal.close()
    return journal.path


@pytest.mark.parametrize(
    "words", [(), ("joe@example.com", "--session", "5e55"), ("--message", "bounce.eml", "--session", "5e55")]
)
def test_exactly_one_subject_is_explained(batv: Command, words: tuple[str, ...]) -> None:
    """Of two it would not be clear which one the answer is about."""
    answer = batv("explain", *words)
    assert (answer.status, answer.out) == (2, "")
    assert "give one of ADDRESS, --message FILE and --session ID" in answer.err


# A message.


def test_a_file_of_the_quarantine_is_explained_by_what_stands_in_it(batv: Command) -> None:
    """Its tags are cut short and keys change: what it met is what its envelope says, for each recipient."""
    kept = Quarantine(batv.folder / "var" / "quarantine").begin(
        "1.batv",
        [
            ("Return-Path", "<>"),
            ("X-Original-To", "<joe@example.com>"),
            ("X-Batv-Verdict", "untagged (no tag)"),
            ("X-Original-To", "<prvs=0787******=ann@lists.example>"),
            ("X-Batv-Verdict", "bad-signature (the tag does not fit"),
            ("X-Batv-Transaction", "5e55.1"),
        ],
    )
    kept.write(b"Return-Path: <forged@peer.example>\r\n" + BOUNCE.replace(b"\n", b"\r\n") + b".\r\n")
    kept.commit()
    answer = batv("explain", "--message", str(batv.folder / "var/quarantine/new/1.batv"), "--json")
    assert answer.status == 0
    fields = answer.fields
    assert (fields["return_path"], fields["transaction"], fields["kind"]) == ("<>", "5e55.1", "dsn")
    assert (fields["answers"], fields["speaks_of"]) == (["1@example.com"], ["bob@peer.example"])
    plain, tagged = fields["recipients"]
    assert (plain["verdict"], plain["disposition"]) == ("untagged", "quarantine")
    assert plain["rule"] == '[domains."example.com"] on_forged = "discard"'
    assert plain["otherwise"].startswith("the bounce would have to come to the signed address")
    assert plain["to_change_it"] == f'set [domains."example.com"] on_forged = "mark" in {batv.config}, then: {IN_FORCE}'
    assert (tagged["recipient"], tagged["verdict"]) == ("<prvs=0787******=ann@lists.example>", "bad-signature")
    assert tagged["to_change_it"].startswith("batv key list; or set")


@pytest.mark.parametrize("field", ["X-Original-To: {}", "Delivered-To: {}", "To: Joe <{}>"])
def test_the_recipient_of_a_message_is_found_and_judged(batv: Command, field: str) -> None:
    """Mail stores write one field or the other; a tag in it is judged, and never shown whole."""
    signed = batv("sign", "joe@example.com").out.strip()
    name = message(batv, f"From x\nReturn-Path: <>\n{field.format(signed)}\n".encode() + BOUNCE)
    for words in ((), ("--json",)):
        assert signed[:15] not in batv("explain", "--message", name, *words).out
    (said,) = batv("explain", "--message", name, "--json").fields["recipients"]
    assert (said["verdict"], said["disposition"], said["key"], said["stamp"]) == ("valid", "rewrite", 0, "787")
    (late,) = batv("explain", "--message", name, "--json", "--day", str(TODAY + 9)).fields["recipients"]
    assert (late["verdict"], late["disposition"]) == ("expired", "discard")
    assert late["otherwise"] == "the bounce would have to come before the last day of its tag"
    shown = batv("explain", "--message", name).out.splitlines()
    assert "verdict:      valid" in shown
    assert "speaks of:       bob@peer.example" in shown


def test_mail_that_is_no_bounce_is_told_apart(batv: Command) -> None:
    """It was never judged, and nothing is to be set."""
    name = message(batv, b"Return-Path: <bob@peer.example>\nDelivered-To: joe@example.com\n\nhello\n")
    (said,) = batv("explain", "--message", name, "--json").fields["recipients"]
    assert (said["verdict"], said["disposition"], said["to_change_it"]) == ("not-a-bounce", "pass", None)


SENDER: Final = b"Return-Path: <robot@peer.example>\n"
REPLY: Final = b"Delivered-To: joe@example.com\nAuto-Submitted: auto-replied\n\nAway.\n"


def wanting(batv: Command, wanted: str) -> None:
    """Let example.com want this for bounces that have a sender."""
    table = '[domains."example.com"]\n'
    batv.config.write_text(batv.config.read_text().replace(table, f'{table}on_bounce_with_sender = "{wanted}"\n'))


@pytest.mark.parametrize(
    ("octets", "bounce_by"),
    [
        (b"Return-Path: <>\n" + BOUNCE, "null sender"),
        (b"Return-Path: <Postmaster@peer.example>\n" + REPLY, "sender is a mail system"),
        (SENDER + BOUNCE, "report on delivery"),
        (SENDER + REPLY, "automatic reply"),
        (SENDER + b"Delivered-To: joe@example.com\n\nhello\n", "nothing"),
    ],
)
def test_what_shows_that_a_message_is_a_bounce_is_told(batv: Command, octets: bytes, bounce_by: str) -> None:
    """Also where the domain does not look at it: that is what would be found."""
    assert batv("explain", "--message", message(batv, octets), "--json").fields["bounce_by"] == bounce_by


def test_a_message_with_a_sender_is_judged_by_what_its_domain_wants(batv: Command) -> None:
    """A bounce by the setting, a reply by no more than a mark, other mail not at all."""
    wanting(batv, "reject")

    def said(octets: bytes) -> dict[str, str]:
        (found,) = batv("explain", "--message", message(batv, octets), "--json").fields["recipients"]
        return dict(found)

    bounce = said(SENDER + BOUNCE)
    assert (bounce["verdict"], bounce["disposition"]) == ("untagged", "reject")
    assert bounce["reason"] == "report on delivery; no tag"
    assert bounce["rule"] == '[domains."example.com"] on_bounce_with_sender = "reject"'
    assert 'on_bounce_with_sender = "mark"' in bounce["to_change_it"]
    reply = said(SENDER + REPLY)
    assert (reply["verdict"], reply["disposition"]) == ("untagged", "mark")
    assert reply["rule"].endswith("; but replies are marked at most")
    assert 'on_bounce_with_sender = "pass"' in reply["to_change_it"]  # nothing worse would change anything
    ordinary = said(SENDER + b"Delivered-To: joe@example.com\n\nhello\n")
    assert (ordinary["verdict"], ordinary["disposition"]) == ("not-a-bounce", "pass")
    assert "neither sender nor header shows a bounce" in ordinary["rule"]


def test_a_message_of_an_exempt_sender_is_said_to_be_exempt(batv: Command) -> None:
    """With the setting and the pattern, also where its recipient is exempt besides."""
    wanting(batv, "reject")
    there = 'on_bounce_with_sender = "reject"\n'
    more = 'exempt_senders = ["robot@*.example.org", "robot@"]\nexempt_recipients = ["joe"]\n'
    batv.config.write_text(batv.config.read_text().replace(there, there + more))
    (said,) = batv("explain", "--message", message(batv, SENDER + BOUNCE), "--json").fields["recipients"]
    assert (said["verdict"], said["disposition"]) == ("not-judged", "pass")
    assert said["reason"] == "report on delivery; exempt: exempt_senders has robot@"
    assert said["rule"] == '[domains."example.com"] exempt_senders'
    assert 'change [domains."example.com"] exempt_senders in ' in said["to_change_it"]


def test_the_record_of_a_bounce_with_a_sender_names_its_setting(batv: Command) -> None:
    """Not that of bounces without one; and says when it is there no more."""
    recorded(batv, RECORD._replace(null_sender=False, reverse_path="<mailer-daemon@peer.example>"))
    (record,) = batv("explain", "--session", "5e55", "--json").fields["records"]
    assert record["rule"] == '[domains."example.com"] on_bounce_with_sender was there then, and is no more'
    assert record["today_it_would_get"] is None
    wanting(batv, "quarantine")
    (record,) = batv("explain", "--session", "5e55", "--json").fields["records"]
    assert record["rule"] == '[domains."example.com"] on_bounce_with_sender = "quarantine"'
    assert record["today_it_would_get"] == "quarantine"


def test_a_marked_message_is_explained_by_its_mark(batv: Command) -> None:
    """Its tag was taken off when it was delivered. Where nobody marks, anybody may have written the field."""
    name = message(batv, b"Return-Path: <>\nX-Batv-Status: valid\n" + BOUNCE)
    (said,) = batv("explain", "--message", name, "--json").fields["recipients"]
    assert said["verdict"] == "untagged"
    batv.config.write_text(batv.config.read_text().replace('"reject"', '"mark"'))
    (said,) = batv("explain", "--message", name, "--json").fields["recipients"]
    assert (said["verdict"], said["judged_by"]) == ("valid", "the file, which says what it met")


def test_a_message_is_looked_up_in_the_ledger(batv: Command) -> None:
    """Whether it answers mail that this recipient sent decides where the site rescues replies."""
    settings = batv.config.read_text().replace('[domains."example.com"]', '[domains."example.com"]\nrescue = true')
    batv.config.write_text(settings + "[ledger]\nenabled = true\n")
    name = message(batv, b"Return-Path: <>\n" + BOUNCE)
    (said,) = batv("explain", "--message", name, "--json").fields["recipients"]
    assert (said["verdict"], said["ledger"]) == ("untagged", "there is none")
    assert not (batv.keys / SECRET_NAME).exists()
    secret = RingStore(batv.keys).ledger_secret()
    (said,) = batv("explain", "--message", name, "--json").fields["recipients"]
    assert (said["verdict"], said["ledger"]) == ("untagged", "answers nothing that this recipient has sent")
    assert said["otherwise"].endswith("; or to answer mail of this recipient that the ledger knows")
    ledger = Ledger(batv.folder / "var/ledger", secret, lambda: TODAY, LedgerLimits(), lambda _: True)
    ledger.note(b"1@example.com", (b"joe@example.com",), (b"bob@peer.example",))
    ledger.close()
    (said,) = batv("explain", "--message", name, "--json").fields["recipients"]
    assert (said["verdict"], said["disposition"], said["ledger"]) == ("rescued", "pass", "on the ledger")
    assert said["rule"] == '[domains."example.com"] rescue = true'


def test_an_address_too_long_for_a_tag_is_looked_up_on_the_record(batv: Command) -> None:
    """Of an address, and of a message to it: what is on record passes, and the rest is judged."""
    batv.config.write_text(batv.config.read_text() + "[ledger]\nenabled = true\n")
    long = f"{'x' * 49}@example.com"
    name = message(batv, b"Return-Path: <>\nDelivered-To: " + long.encode() + b"\n" + BOUNCE)

    def said() -> tuple[str, str]:
        address = batv("explain", long, "--json").fields
        (recipient,) = batv("explain", "--message", name, "--json").fields["recipients"]
        assert (address["verdict"], address["a_bounce_to_it"]) == (recipient["verdict"], recipient["disposition"])
        return recipient["verdict"], recipient["rule"]

    assert said()[0] == "not-judged"
    secret = RingStore(batv.keys).ledger_secret()
    day = TODAY + -9
    (batv.folder / "var").mkdir(exist_ok=True)
    ledger = Ledger(batv.folder / "var/ledger", secret, lambda: day, LedgerLimits(), lambda _: True)
    ledger.note(b"1@example.com", (b"joe@example.com",), (b"bob@peer.example",))
    ledger.flush()
    verdict, rule = said()
    assert (verdict, rule.partition(";")[0]) == ("untagged", '[tags] on_too_long = "remember"')
    day = TODAY
    ledger.note_unsigned(long.encode())
    ledger.close()
    assert said()[0] == "not-judged"


def test_no_more_of_a_message_is_read_than_the_proxy_looks_at(batv: Command) -> None:
    """A file of gigabytes is no reason to fill the memory, and what stands behind decides nothing."""
    head, body = BOUNCE.split(b"\n\n", 1)
    far = head + b"\n\n" + b"x" * 262_144 + b"\n" + body
    fields = batv("explain", "--message", message(batv, far), "--json").fields
    assert fields["answers"] == []


def test_what_a_message_says_does_nothing_to_a_terminal(batv: Command) -> None:
    """Whoever forged it has chosen its words, and tags that it quotes are credentials."""
    hostile = BOUNCE.replace(b"bob@", b"b\xc2\x9bob@").replace(b"<1@", b"<\x1b[2Jprvs=0787abcdef=1@")
    said = batv("explain", "--message", message(batv, hostile)).out
    assert "\x1b" not in said
    assert "\x9b" not in said
    assert "abcdef" not in said


def test_a_file_that_is_no_message_of_ours_is_said_to_be_none(batv: Command) -> None:
    """One line tells what to do instead."""
    answer = batv("explain", "--message", message(batv, b"\x00\xff\n"))
    assert (answer.status, answer.out) == (1, "")
    assert answer.err.endswith("names no recipient: give its address, batv explain ADDRESS\n")
    for name in (str(batv.folder), str(batv.folder / "missing.eml")):
        assert batv("explain", "--message", name).status == 74


# A session.


def test_every_record_of_a_session_is_explained(batv: Command) -> None:
    """Also those that were rotated away, packed or not; a transaction's name tells only its own."""
    rotated = recorded(batv, RECORD).rename(batv.folder / "var/journal.jsonl.2")
    (batv.folder / "var/journal.jsonl.3.gz").write_bytes(gzip.compress(rotated.read_bytes()))
    other = RECORD._replace(session="0e55", transaction="0e55.1", message_id="5e55")
    recorded(batv, RECORD._replace(transaction="5e55.2"), other)
    records = batv("explain", "--session", "5e55", "--json").fields["records"]
    assert sorted(record["transaction"] for record in records) == ["5e55.1", "5e55.1", "5e55.2"]
    (record,) = batv("explain", "--session", "5e55.2", "--json").fields["records"]
    for name, value in (
        ("verdict", "untagged"),
        ("disposition", "discard"),
        ("reason", "no tag"),
        ("reply", "250 2.0.0 Ok"),
        ("key", None),
        ("rule", '[domains."example.com"] on_forged = "discard"'),
        ("to_change_it", f'set [domains."example.com"] on_forged = "mark" in {batv.config}, then: {IN_FORCE}'),
        ("today_it_would_get", "discard"),
    ):
        assert record[name] == value
    shown = batv("explain", "--session", "5e55.2").out.splitlines()
    assert "today it would get: discard" in shown


def test_a_session_that_the_journal_has_not_is_said_to_be_none(batv: Command) -> None:
    """A script sees it by the exit status; part of a name is no name."""
    assert batv("explain", "--session", "5e55").status == 74
    recorded(batv, RECORD)
    for name in ("5e5", "5e55.", "", "7@peer.example"):
        answer = batv("explain", "--session", name)
        assert (answer.status, answer.out) == (1, "")
        assert answer.err.startswith("batv: the journal has nothing of ")


MORE: Final = """
[domains."new.example"]
rollout = "auto"
[domains."rescue.example"]
rescue = true
[domains."listed.example"]
on_listed = "reject"
rescue = true
[ledger]
enabled = true
[dnsbl]
zones = ["z.example"]
"""


@pytest.mark.parametrize(
    ("path", "said", "rule", "change"),
    [
        ("a@new.example", ("untagged", "pass", "no tag"), 'rollout = "auto"', "batv rollout advance new.example"),
        (
            "a@example.com",
            ("untagged", "discard", f"no tag; {NOT_ON_RECORD}; names no message that it answers"),
            '[tags] on_too_long = "remember"; [domains."example.com"]',
            "[tags] on_too_long",
        ),
        ("a@example.com", ("rescued", "pass", "no tag; dsn"), "[[exemptions]]", "[[exemptions]]"),
        (
            "a@example.com",
            ("untagged", "quarantine", "no tag; z.example lists the client"),
            '[dnsbl] on_listed = "quarantine", and z.example lists the client',
            "change [dnsbl] on_listed, or take z.example out of [dnsbl] zones",
        ),
        (
            "a@listed.example",
            ("untagged", "reject", "no tag; z.example lists the client; answers nothing that this recipient has sent"),
            '[domains."listed.example"] on_listed = "reject", and z.example lists the client',
            'change [domains."listed.example"] on_listed',
        ),
        (
            "a@example.com",
            ("untagged", "discard", "no tag; z.example lists the client; quarantine full"),
            "z.example lists the client; but [state] quarantine_max_mib = 1024, which were full",
            "[dnsbl] zones",
        ),
        ("a@example.com", ("expired", "defer", "old; the clock says 2038-01-01"), "nothing is lost", "batv clock"),
        ("a@example.com", ("untagged", "discard", "no tag; quarantine full"), "quarantine_max_mib = 1024", "on_forged"),
        ("a@gone.example", ("untagged", "discard", "no tag"), "was there then, and is no more", None),
        ("a@example.com", ("valid", "rewrite", "tag good"), "its tag taken off", "batv key revoke"),
        (
            "a@example.com",
            ("valid", "quarantine", "good; many failed tags from 192.0.2.0/24"),
            "[guessing]",
            "[guessing]",
        ),
        (
            "a@example.com",
            ("valid", "quarantine", f"good; {OVERDRAWN}: 13 for 1 recipient; names no message that it answers"),
            "[ledger] max_bounces_per_recipient = 0",
            "[ledger] max_bounces_per_recipient",
        ),
        ("a@example.com", ("valid", "defer", f"good; {APART}"), "beside those named before it", None),
        ("a@example.com", ("untagged", "defer", f"no tag; {APART}"), "told to try again", None),
        ("a@rescue.example", ("rescued", "pass", "no tag; mdn"), "rescue = true", "rescue = false"),
        (
            "a@far.example",
            ("foreign", "reject", "no"),
            'there is no [domains."far.example"]',
            'add [domains."far.example"]',
        ),
        ("a%b@example.com", ("foreign", "reject", "routing character"), "routing character", None),
        ("a@hosted.example", ("not-judged", "pass", "relayed"), "[inbound] relay_domains", "[inbound] relay_domains"),
        (
            "a@example.com",
            ("not-judged", "pass", "exempt: exempt_clients has 192.0.2.0/24"),
            "[inbound]",
            "exempt_clients",
        ),
        ("a@example.com", ("not-judged", "pass", "exempt: robots"), '[[exemptions]] "robots"', "[[exemptions]]"),
        (
            "a@example.com",
            ("not-judged", "pass", "local part too long for a tag"),
            '[tags] on_too_long = "remember": local part too long for a tag; and the ledger has mail of it',
            "change [tags] on_too_long in",
        ),
        ("Postmaster", ("not-judged", "pass", "postmaster without a domain"), "postmaster without a domain", None),
    ],
)
def test_the_record_of_a_bounce_names_what_decided_and_how_to_change_it(
    batv: Command, path: str, said: tuple[str, str, str], rule: str, change: str | None
) -> None:
    """Rule and command are those of the reason on record."""
    verdict, disposition, reason = said
    batv.config.write_text(batv.config.read_text() + MORE)
    outcome = OUTCOME._replace(
        forward_path=f"<{path}>",
        verdict=Verdict(verdict),
        disposition=Disposition(disposition),
        reason=reason,
    )
    recorded(batv, RECORD._replace(recipients=(outcome,)))
    (record,) = batv("explain", "--session", "5e55", "--json").fields["records"]
    assert rule in record["rule"]
    if change is None:
        assert record["to_change_it"] is None
    else:
        assert change in record["to_change_it"]


@pytest.mark.parametrize(
    ("path", "said", "rule", "change"),
    [
        ("<a@example.com>", ("signed", "rewrite", "signed with key 0"), '[domains."example.com"]', "[[exemptions]]"),
        (
            "<a@far.example>",
            ("unsigned", "pass", "unsigned: far.example is not a domain of ours"),
            "there is no",
            "add",
        ),
        ("<a@example.com>", ("unsigned", "defer", "no key of the default ring signs"), "no key", "batv key new"),
        ("<a@example.com>", ("unsigned", "defer", APART), "told to try again", None),
        ("<a@example.com>", ("unsigned", "defer", "the clock says 2038-01-01"), "nothing is lost", "batv clock trust"),
        ("<a@example.com>", ("unsigned", "pass", "unsigned: no XFORWARD SOURCE=LOCAL"), "[outbound]", "local_source"),
        ("<a@example.com>", ("unsigned", "pass", "unsigned: exempt: exempt_own_domains"), "[outbound]", "= false"),
        ("<a@example.com>", ("unsigned", "pass", "unsigned: exempt: robots"), "robots", "[[exemptions]]"),
        ("<a@lists.example>", ("unsigned", "pass", "unsigned: leave_forms has srs"), "leave_forms", "lists.example"),
        ("<a@example.com>", ("unsigned", "reject", "unsigned: local part too long"), "on_too_long", "on_too_long"),
        ("<>", ("unsigned", "pass", "unsigned: null sender"), "a null sender is never signed", None),
    ],
)
def test_the_record_of_mail_that_went_out_names_what_decided(
    batv: Command, path: str, said: tuple[str, str, str], rule: str, change: str | None
) -> None:
    """Mail that left unsigned has bounces that look forged: why it did is what there is to mend."""
    verdict, disposition, reason = said
    outcome = RecipientOutcome(
        "<bob@peer.example>", Verdict(verdict), Disposition(disposition), reason, None, "250 2.0.0 Ok"
    )
    event = RECORD._replace(direction=Direction.OUTBOUND, reverse_path=path, recipients=(outcome,))
    recorded(batv, event)
    (record,) = batv("explain", "--session", "5e55", "--json").fields["records"]
    assert rule in record["rule"]
    assert record["today_it_would_get"] is None
    if change is None:
        assert record["to_change_it"] is None
    else:
        assert change in record["to_change_it"]


LISTS: Final = """
[dnsbl]
zones = ["z.example"]
on_listed = "reject"
[domains."marked.example"]
on_forged = "mark"
[domains."new.example"]
rollout = "auto"
[domains."own.example"]
on_forged = "mark"
on_listed = "quarantine"
"""


def test_what_a_list_would_make_worse_is_said_beforehand(batv: Command) -> None:
    """The settings alone do not tell what a bounce gets: its client may be listed."""
    batv.config.write_text(batv.config.read_text() + LISTS)
    where = "where a list of [dnsbl] zones has the client"
    for domain, rule in (
        ("marked.example", f'on_forged = "mark"; but [dnsbl] on_listed = "reject" {where}'),
        ("own.example", f'on_forged = "mark"; but [domains."own.example"] on_listed = "quarantine" {where}'),
        ("example.com", 'on_forged = "discard"'),  # as bad as it is
        ("new.example", 'rollout = "auto", which is at observe'),  # nothing is withheld yet
    ):
        assert batv("explain", f"joe@{domain}", "--json").fields["rule"].endswith(rule)
        file = message(batv, BOUNCE.replace(b"example.com", domain.encode()))
        (recipient,) = batv("explain", "--message", file, "--json").fields["recipients"]
        assert recipient["rule"].endswith(rule)
    tagged = batv("sign", "joe@marked.example").out.strip().replace("joe@", "jim@")
    assert "[dnsbl]" not in batv("explain", tagged, "--json").fields["rule"], "a tag is worth what it is worth"


def test_a_record_of_what_a_list_decided_shows_what_it_would_get_today(batv: Command) -> None:
    """Two things decided, and both may have changed since."""
    batv.config.write_text(batv.config.read_text() + LISTS)
    reason = "no tag; z.example lists the client"
    outcome = OUTCOME._replace(forward_path="<a@marked.example>", disposition=Disposition.QUARANTINE, reason=reason)
    recorded(batv, RECORD._replace(recipients=(outcome, outcome._replace(reason="no tag"))))
    listed, unlisted = batv("explain", "--session", "5e55", "--json").fields["records"]
    assert (listed["today_it_would_get"], unlisted["today_it_would_get"]) == ("reject", "mark")
    assert "z.example would have to lack the client" in listed["otherwise"]


def test_a_record_shows_when_the_settings_have_changed_since(batv: Command) -> None:
    """What was done then is no sign of what is done now."""
    recorded(batv, RECORD._replace(recipients=(OUTCOME._replace(disposition=Disposition.PASS),)))
    (record,) = batv("explain", "--session", "5e55", "--json").fields["records"]
    assert (record["disposition"], record["today_it_would_get"]) == ("pass", "discard")
