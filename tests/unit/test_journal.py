"""The journal: what stands in a record, and what a full disk, a crash or a rotation leaves of it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batv.errors import IoError
from batv.observe.event import Direction, TransactionEnded, printable
from batv.store.journal import JOURNAL_FIELDS, Journal
from batv.verdict import Disposition, Verdict
from tests.support.event import EVENT, OUTCOME
from tests.support.next_hop import RecordingNextHop
from tests.support.service import SECRET, ServiceProcess, full_disk
from tests.support.smtp_client import SmtpClient

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKOUT: Final = Path(__file__).parents[2]

_EVENT: Final = EVENT._replace(
    time=1_800_000_000.1234, message_id="<caf\N{LATIN SMALL LETTER E WITH ACUTE}@peer.example>"
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A journal in an empty folder."""
    found = Journal(tmp_path)
    yield found
    found.close()


def records(path: Path) -> list[dict[str, Any]]:
    """Return the whole records of a file, and pass over what is torn."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def test_a_record_has_the_promised_fields_in_their_order(journal: Journal) -> None:
    """Programs read them by name, people by place."""
    assert journal.write(_EVENT)
    line = journal.path.read_bytes()
    assert line.endswith(b"}\n")
    assert list(json.loads(line).items()) == [
        ("time", "2027-01-15T08:00:00.123Z"),
        ("transaction", "5e55.1"),
        ("direction", "inbound"),
        ("client", "192.0.2.1"),
        ("reverse_path", "<>"),
        ("forward_path", "<joe@example.com>"),
        ("verdict", "untagged"),
        ("disposition", "discard"),
        ("reason", "no tag"),
        ("key", None),
        ("message_id", "<caf\N{LATIN SMALL LETTER E WITH ACUTE}@peer.example>"),
        ("size", 1234),
        ("reply", "250 2.0.0 Ok"),
        ("session", "5e55"),
    ]
    assert tuple(json.loads(line)) == JOURNAL_FIELDS


@pytest.mark.parametrize(
    ("seconds", "time"),
    [
        (1_800_000_000.0, "2027-01-15T08:00:00.000Z"),
        (1_800_000_000.123, "2027-01-15T08:00:00.123Z"),
        (1_800_000_000.9994, "2027-01-15T08:00:00.999Z"),
        (1_800_000_000.9999997, "2027-01-15T08:00:01.000Z"),
        (951_782_400.05, "2000-02-29T00:00:00.050Z"),
    ],
)
def test_a_time_has_three_decimals(journal: Journal, seconds: float, time: str) -> None:
    """Records sort by it as text."""
    journal.write(_EVENT._replace(time=seconds))
    assert [record["time"] for record in records(journal.path)] == [time]


@given(text=st.text(max_size=50), key=st.none() | st.integers(0, 9), direction=st.sampled_from(Direction))
def test_whatever_a_peer_sent_a_record_is_one_line_of_json(
    tmp_path_factory: pytest.TempPathFactory, text: str, key: int | None, direction: Direction
) -> None:
    """Quotation marks, backslashes, line separators: a program gets the text, not a part of the record."""
    sent = printable(text.encode("utf-8", "backslashreplace"))
    outcome = OUTCOME._replace(forward_path=sent, reason=sent, key_number=key, reply=sent)
    event = _EVENT._replace(direction=direction, reverse_path=sent, message_id=sent, recipients=(outcome, outcome))
    journal = Journal(tmp_path_factory.mktemp("journal"))
    journal.write(event)
    journal.close()
    lines = journal.path.read_text(encoding="utf-8").split("\n")
    values = dict(json.loads(lines[0]))
    assert lines == [json.dumps(values, ensure_ascii=False)] * 2 + [""]
    assert {values[field] for field in ("reverse_path", "forward_path", "reason", "message_id", "reply")} == {sent}
    assert (values["key"], values["direction"]) == (key, direction.value)


def test_each_recipient_has_a_record(journal: Journal) -> None:
    """One was discarded, the other was not: one line could not say so."""
    other = OUTCOME._replace(forward_path="<jim@example.com>", verdict=Verdict.VALID, key_number=3)
    journal.write(_EVENT._replace(recipients=(OUTCOME, other)))
    assert [(record["forward_path"], record["key"]) for record in records(journal.path)] == [
        ("<joe@example.com>", None),
        ("<jim@example.com>", 3),
    ]


def test_inbound_mail_that_is_no_bounce_is_not_in_the_journal(journal: Journal) -> None:
    """It was not judged; the log has it."""
    ordinary = OUTCOME._replace(verdict=Verdict.NOT_A_BOUNCE, disposition=Disposition.PASS)
    event = _EVENT._replace(null_sender=False, reverse_path="<ann@peer.example>", recipients=(ordinary,))
    assert not journal.write(event)
    assert journal.path.read_bytes() == b""


def test_a_bounce_with_a_sender_is_in_the_journal_for_each_recipient(journal: Journal) -> None:
    """What is discarded must be on record, whoever sent it; what others got of it tells why it passed."""
    ordinary = OUTCOME._replace(verdict=Verdict.NOT_A_BOUNCE, disposition=Disposition.PASS)
    sender = "<mailer-daemon@peer.example>"
    assert journal.write(_EVENT._replace(null_sender=False, reverse_path=sender, recipients=(OUTCOME, ordinary)))
    assert [record["verdict"] for record in records(journal.path)] == [OUTCOME.verdict.value, "not-a-bounce"]


def test_a_bounce_with_a_sender_that_is_exempt_is_in_the_journal_and_ordinary_mail_that_is_not_judged_is_not(
    journal: Journal,
) -> None:
    """Who keeps an exemption has to see what it is good for; mail that is relayed was never asked about."""
    left_alone = OUTCOME._replace(verdict=Verdict.NOT_JUDGED, disposition=Disposition.PASS)
    event = _EVENT._replace(null_sender=False, reverse_path="<mailer-daemon@peer.example>", recipients=(left_alone,))
    assert not journal.write(event)
    assert journal.write(event._replace(recipients=(left_alone._replace(exempt=True),)))
    assert [record["verdict"] for record in records(journal.path)] == ["not-judged"]


def test_outbound_mail_is_in_the_journal(journal: Journal) -> None:
    """Whoever asks whether a bounce is genuine looks for what was sent."""
    assert journal.write(_EVENT._replace(direction=Direction.OUTBOUND, null_sender=False))
    assert len(records(journal.path)) == 1


def test_a_message_id_with_a_tag_in_it_does_not_give_the_tag_away(journal: Journal) -> None:
    """Tags are bearer credentials, wherever they stand."""
    journal.write(_EVENT._replace(message_id="<prvs=0789abcdef=joe@example.com>"))
    assert b"abcdef" not in journal.path.read_bytes()


def test_the_file_is_for_its_user_only(journal: Journal) -> None:
    """The journal says who wrote to whom."""
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600


def test_the_journal_goes_on_where_it_stopped(journal: Journal, tmp_path: Path) -> None:
    """A restart loses no record."""
    journal.write(_EVENT)
    again = Journal(tmp_path)
    again.write(_EVENT)
    again.close()
    assert len(records(journal.path)) == 2


def test_a_renamed_file_is_left_behind_on_reopening(journal: Journal, tmp_path: Path) -> None:
    """Rotation: the old file keeps what it has, and takes what comes until the signal."""
    journal.write(_EVENT)
    old = journal.path.rename(tmp_path / "journal.jsonl.1")
    journal.write(_EVENT._replace(transaction="5e55.2"))
    journal.reopen()
    journal.write(_EVENT._replace(transaction="5e55.3"))
    assert [record["transaction"] for record in records(old)] == ["5e55.1", "5e55.2"]
    assert [record["transaction"] for record in records(journal.path)] == ["5e55.3"]


def test_a_file_that_cannot_be_reopened_is_kept(journal: Journal, tmp_path: Path) -> None:
    """Records go on to where they went."""
    old = journal.path.rename(tmp_path / "journal.jsonl.1")
    journal.path.mkdir()
    with pytest.raises(IoError, match=r"cannot open .*journal\.jsonl"):
        journal.reopen()
    journal.write(_EVENT)
    assert len(records(old)) == 1


def test_a_removed_file_is_begun_anew(journal: Journal) -> None:
    """A discard that stands in no file is nowhere."""
    journal.write(_EVENT)
    journal.path.unlink()
    journal.write(_EVENT._replace(transaction="5e55.2"))
    assert [record["transaction"] for record in records(journal.path)] == ["5e55.2"]


def test_a_record_that_does_not_fit_is_an_error_and_spoils_no_other(journal: Journal) -> None:
    """Half a record stays where the disk was full; the next one stands on a line of its own."""
    journal.write(_EVENT)
    size = journal.path.stat().st_size
    with full_disk(size + 100), pytest.raises(IoError, match="the disk is full"):
        journal.write(_EVENT._replace(transaction="torn"))
    with full_disk(size + 100), pytest.raises(IoError, match="cannot write"):
        journal.write(_EVENT._replace(transaction="none"))
    journal.write(_EVENT._replace(transaction="after"))
    assert [record["transaction"] for record in records(journal.path)] == ["5e55.1", "after"]


@pytest.mark.parametrize("way", ["reopen", "restart"])
def test_a_torn_line_is_remembered(journal: Journal, tmp_path: Path, way: str) -> None:
    """By a service that reloads, and by one that was started after a crash."""
    journal.write(_EVENT)
    size = journal.path.stat().st_size
    with full_disk(size + 100), pytest.raises(IoError, match="the disk is full"):
        journal.write(_EVENT)
    if way == "reopen":
        journal.reopen()
        journal.write(_EVENT._replace(transaction="after"))
    else:
        again = Journal(tmp_path)
        again.write(_EVENT._replace(transaction="after"))
        again.close()
    assert [record["transaction"] for record in records(journal.path)] == ["5e55.1", "after"]


def test_records_of_two_writers_do_not_mix(journal: Journal, tmp_path: Path) -> None:
    """Each transaction is one write at the end of the file, so that a second process may add its own."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.unit.test_journal import Journal, long_event\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "print('writing', flush=True)\n"
        "for _ in range(200):\n"
        "    journal.write(long_event('theirs'))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, cwd=_CHECKOUT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"writing\n"
        for _ in range(200):
            journal.write(long_event("ours"))
    assert other.returncode == 0
    lines = journal.path.read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["transaction"] for line in lines]
    assert sorted(found) == ["ours"] * 400 + ["theirs"] * 400
    assert all(one == other for one, other in zip(found[::2], found[1::2], strict=True)), "records of one stay together"


def test_half_a_record_of_another_process_spoils_no_record(journal: Journal, tmp_path: Path) -> None:
    """Each goes on without knowing that the other's write was cut short when the disk was full."""
    other = Journal(tmp_path)
    journal.write(_EVENT)
    size = journal.path.stat().st_size
    with full_disk(size + 100), pytest.raises(IoError, match="the disk is full"):
        other.write(_EVENT._replace(transaction="torn"))
    for writer, transaction in ((journal, "ours"), (other, "theirs"), (journal, "ours again")):
        writer.write(_EVENT._replace(transaction=transaction))
    other.close()
    assert [record["transaction"] for record in records(journal.path)] == ["5e55.1", "ours", "theirs", "ours again"]


def test_half_a_record_that_comes_behind_ours_at_once_spoils_no_record(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our write and our look at the file another process may write, and be cut short."""
    write = os.write

    def write_and_another(file: int, octets: bytes) -> int:
        monkeypatch.undo()
        written = write(file, octets)
        with journal.path.open("ab") as other:
            other.write(b'{"time": "20')
        return written

    monkeypatch.setattr(os, "write", write_and_another)
    journal.write(_EVENT)
    journal.write(_EVENT._replace(transaction="ours again"))
    assert [record["transaction"] for record in records(journal.path)] == ["5e55.1", "ours again"]


def long_event(transaction: str) -> TransactionEnded:
    """Return an event whose two records take several pages."""
    outcome = OUTCOME._replace(reason="x" * 5000)
    return _EVENT._replace(transaction=transaction, recipients=(outcome, outcome))


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_is_no_regular_file_is_no_journal(tmp_path: Path, kind: str) -> None:
    """Records that go nowhere, or where somebody else wants them, are no records."""
    path = tmp_path / "journal.jsonl"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    with pytest.raises(IoError, match=r"journal\.jsonl"):
        Journal(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


# The service and its journal.


@pytest.fixture
def next_hop() -> Iterator[RecordingNextHop]:
    """A next hop."""
    with RecordingNextHop() as hop:
        yield hop


def test_a_discard_that_cannot_be_recorded_is_put_off(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """It would exist nowhere: the client hears 451. Ordinary mail and genuine bounces go on."""
    with ServiceProcess(tmp_path, next_hop.address) as service, SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"joe@example.com"], b"x\r\n").code == 250
        size = service.journal_path.stat().st_size
        with full_disk(size + 30, service.pid):
            for _ in range(2):
                assert client.mail(b"", [b"joe@example.com"], b"x\r\n").text.startswith(b"451 4.3.0 ")
            assert client.mail(b"ann@peer.example", [b"joe@example.com"], b"x\r\n").code == 250
            assert client.mail(b"", [service.tagged(b"joe@example.com")], b"x\r\n").code == 250
            with SmtpClient(service.outbound) as outbound:
                assert outbound.mail(b"joe@example.com", [b"ann@peer.example"], b"x\r\n").code == 250
            service.wait_for_log(r"journal not written: .*cause=cannot write")
        assert client.mail(b"", [b"jim@example.com"], b"x\r\n").code == 250
        found = records(service.journal_path)
    assert [record["forward_path"] for record in found] == ["<joe@example.com>", "<jim@example.com>"]
    assert len(next_hop.messages) == 3


@pytest.mark.parametrize("settings", ["good", "broken"])
def test_rotation_takes_a_rename_and_a_signal(next_hop: RecordingNextHop, tmp_path: Path, settings: str) -> None:
    """As logrotate does it; no record is lost or written twice, though somebody is just editing the settings."""
    with ServiceProcess(tmp_path, next_hop.address) as service, SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"joe@example.com"], b"x\r\n").code == 250
        old = service.journal_path.rename(tmp_path / "old")
        assert client.mail(b"", [b"jim@example.com"], b"x\r\n").code == 250
        if settings == "broken":
            service.config.write_text("[smtp\n")
        service.reload()
        service.wait_for_log(r"reloaded|reload refused")
        assert client.mail(b"", [b"bob@example.com"], b"x\r\n").code == 250
        assert [record["forward_path"] for record in records(old)] == ["<joe@example.com>", "<jim@example.com>"]
        assert [record["forward_path"] for record in service.journal()] == ["<bob@example.com>"]


@pytest.mark.parametrize("settings", ["", "[journal]\nfsync = true\n"])
def test_a_record_is_in_the_file_when_the_reply_is_heard(
    next_hop: RecordingNextHop, tmp_path: Path, settings: str
) -> None:
    """Whoever hears 250 can look the message up."""
    with ServiceProcess(tmp_path, next_hop.address, settings) as service, SmtpClient(service.inbound) as client:
        for number in range(20):
            assert client.mail(b"", [b"u%d@example.com" % number], b"x\r\n").code == 250
            assert len(service.journal()) == number + 1


def test_no_secret_and_no_whole_tag_is_written_anywhere(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Whoever reads journal, log or quarantine could else have bounces delivered, or sign for us."""
    with ServiceProcess(tmp_path, next_hop.address, on_forged="quarantine") as service:
        tag = service.tagged(b"joe@example.com")
        signature = tag[9:15].decode()
        forged = tag.replace(b"=joe@", b"=jim@")
        with SmtpClient(service.outbound) as client:
            assert client.mail(b"joe@example.com", [b"<" + tag + b">"], b"x\r\n").code == 501
            assert client.mail(b"joe@example.com", [tag], b"Message-ID: <" + tag + b">\r\n\r\nx\r\n").code == 250
            client.say(tag)
            client.say(b"MAIL FROM:<" + tag + b"> X=" + tag)
        with SmtpClient(service.inbound) as client:
            client.say(b"EHLO " + tag)
            for recipient in (tag, forged, tag.upper(), b"joe+" + tag):
                client.mail(b"", [recipient], b"Message-ID: <" + tag + b">\r\n\r\nx\r\n")
            client.say(b"RSET")
            client.say(b"MAIL FROM:<>")
            client.say(b"RCPT TO:<" + tag + b"> ORCPT=rfc822;" + tag)
            next_hop.stop_listening()
            client.say(b"RSET")
            client.mail(b"", [tag], b"x\r\n")
        service.stop()
        assert service.wait() == 0
        written = service.log + service.journal_path.read_text(encoding="utf-8")
        headers = [path.read_text().split("\n\n")[0] for path in (tmp_path / "var/quarantine/new").iterdir()]
    assert "verdict=valid" in service.log
    for text in (written, *(head.partition("Message-ID")[0] for head in headers)):
        assert signature not in text.lower()
        assert SECRET.decode() not in text
        assert SECRET.hex() not in text.lower()
