"""The quarantine: a forged bounce is kept whole, with its envelope, before its sender hears 250."""

from __future__ import annotations

import mailbox
import stat
from typing import TYPE_CHECKING, Final

import pytest

from batv.errors import IoError
from batv.store.quarantine import Quarantine
from tests.support.next_hop import RecordingNextHop
from tests.support.service import ServiceProcess, full_disk
from tests.support.smtp_client import SmtpClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HEADER: Final = (("Return-Path", "<>"), ("X-Original-To", "<joe@example.com>"))
_AS_SENT: Final = b"Subject: x\r\n\r\n..one dot\r\n...two\r\n\r\nlast line\r\n"
_AS_KEPT: Final = b"Return-Path: <>\nX-Original-To: <joe@example.com>\nSubject: x\n\n.one dot\n..two\n\nlast line\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_message_is_kept_as_its_author_wrote_it(tmp_path: Path, size: int) -> None:
    """Dots unstuffed, line ends LF, wherever the pieces end in which it comes."""
    message = Quarantine(tmp_path / "q").begin("name", _HEADER)
    for at in range(0, len(_AS_SENT), size):
        message.write(_AS_SENT[at : at + size])
    message.commit()
    assert (tmp_path / "q/new/name").read_bytes() == _AS_KEPT


def test_a_message_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    """Whoever looks into `new` finds whole messages only."""
    message = Quarantine(tmp_path / "q").begin("name", _HEADER)
    message.write(_AS_SENT)
    assert list((tmp_path / "q/new").iterdir()) == []
    message.commit()
    message.abandon()
    assert [path.name for path in (tmp_path / "q/new").iterdir()] == ["name"]
    assert list((tmp_path / "q/tmp").iterdir()) == []


def test_an_abandoned_message_leaves_nothing(tmp_path: Path) -> None:
    """The client keeps it, and sends it once more."""
    message = Quarantine(tmp_path / "q").begin("name", _HEADER)
    message.write(_AS_SENT)
    message.abandon()
    assert [path for path in (tmp_path / "q").rglob("*") if path.is_file()] == []


def test_it_is_a_maildir_for_its_user_only(tmp_path: Path) -> None:
    """Any mail program can show it, to the administrator."""
    quarantine = Quarantine(tmp_path / "q")
    message = quarantine.begin("name", _HEADER)
    message.write(_AS_SENT)
    message.commit()
    found = mailbox.Maildir(tmp_path / "q", create=False)
    assert [each["Subject"] for each in found] == ["x"]
    for path in (tmp_path / "q", *(tmp_path / "q").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_no_message_is_written_over_another(tmp_path: Path) -> None:
    """Names are unique; were two alike, the second message would be refused, not the first one lost."""
    quarantine = Quarantine(tmp_path / "q")
    first = quarantine.begin("name", _HEADER)
    with pytest.raises(IoError, match="cannot write to the quarantine"):
        quarantine.begin("name", _HEADER)
    first.abandon()


def test_a_quarantine_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """It says which folder."""
    (tmp_path / "q").touch()
    with pytest.raises(IoError, match=r"cannot write to the quarantine .*/q: "):
        Quarantine(tmp_path / "q").begin("name", _HEADER)


# The service and its quarantine.


@pytest.fixture
def next_hop() -> Iterator[RecordingNextHop]:
    """A next hop."""
    with RecordingNextHop(rejects=frozenset({b"nobody"})) as hop:
        yield hop


@pytest.fixture
def service(next_hop: RecordingNextHop, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service that puts forged bounces into quarantine."""
    with ServiceProcess(tmp_path, next_hop.address, on_forged="quarantine") as running:
        yield running


def kept(service: ServiceProcess) -> list[bytes]:
    """Return the messages in the quarantine."""
    return [path.read_bytes() for path in sorted((service.folder / "var/quarantine/new").iterdir())]


def test_a_forged_bounce_is_kept_with_its_envelope(service: ServiceProcess, next_hop: RecordingNextHop) -> None:
    """One copy for all its recipients that are held; those with good tags get it."""
    good = service.tagged(b"joe@example.com")
    forged = good.replace(b"=joe@", b"=jim@")
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"joe@example.com", good, forged], _AS_SENT).text == b"250 2.0.0 Ok\r\n"
    (message,) = kept(service)
    head, _, rest = message.partition(b"Subject: x\n")
    assert b"Subject: x\n" + rest == _AS_KEPT.partition(b"\nX-Original-To: <joe@example.com>\n")[2]
    assert head.startswith(b"Return-Path: <>\nX-Original-To: <joe@example.com>\nX-Batv-Verdict: untagged (")
    assert head.count(b"X-Original-To: ") == 2
    assert b"****=jim@example.com>\n" in head, "the tag is shortened: it is a credential"
    assert b"X-Batv-Verdict: bad-signature (" in head
    assert [taken.content for taken in next_hop.messages] == [_AS_SENT]
    assert next_hop.messages[0].recipients == (b"<joe@example.com>",)
    assert sorted(record["disposition"] for record in service.journal()) == ["quarantine", "quarantine", "rewrite"]


def test_bare_newlines_are_kept_as_lines(service: ServiceProcess) -> None:
    """What is kept is what would have gone on: harmless."""
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"joe@example.com"], b"a\n.b\rc\r\n").code == 250
    assert kept(service)[0].endswith(b"\na\n.b c\n")


def test_an_unknown_user_is_refused_and_nothing_kept(service: ServiceProcess) -> None:
    """A quarantine is no catch-all."""
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"nobody@example.com"], _AS_SENT).code == 550
    assert not (service.folder / "var/quarantine").exists()


def test_a_full_disk_puts_the_message_off(service: ServiceProcess) -> None:
    """The client hears 451 and keeps the message; what was half written goes."""
    with SmtpClient(service.inbound) as client, full_disk(65_536, service.pid):
        heard = client.mail(b"", [b"joe@example.com"], (b"z" * 998 + b"\r\n") * 200)
        assert heard.text.startswith(b"451 4.3.0 ")
        assert [path for path in (service.folder / "var/quarantine").rglob("*") if path.is_file()] == []
        # The session goes on, and so does mail that needs no room.
        assert client.mail(b"ann@peer.example", [b"joe@example.com"], b"x\r\n").code == 250
        assert client.mail(b"", [service.tagged(b"joe@example.com")], b"x\r\n").code == 250
        service.wait_for_log(r"cause=<cannot write to the quarantine .*>")
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"joe@example.com"], (b"z" * 998 + b"\r\n") * 200).code == 250
    assert len(kept(service)) == 1


def test_a_quarantine_that_takes_nothing_puts_the_message_off(service: ServiceProcess) -> None:
    """Also where the disk is read-only, or somebody else's."""
    (service.folder / "var/quarantine").touch()
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"joe@example.com"], b"x\r\n").text.startswith(b"451 4.3.0 ")
        assert client.mail(b"", [service.tagged(b"joe@example.com")], b"x\r\n").code == 250


def test_a_message_that_is_kept_but_not_recorded_is_put_off(service: ServiceProcess) -> None:
    """The sender tries again; the administrator finds two copies rather than a message that nobody knows of."""
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"joe@example.com"], b"x\r\n").code == 250
        with full_disk(service.journal_path.stat().st_size + 10, service.pid):
            assert client.mail(b"", [b"joe@example.com"], b"x\r\n").text.startswith(b"451 4.3.0 ")


def test_a_client_that_leaves_in_the_middle_leaves_nothing_in_quarantine(service: ServiceProcess) -> None:
    """Half a message is no message."""
    with SmtpClient(service.inbound) as client:
        assert client.say(b"MAIL FROM:<>").code == 250
        assert client.say(b"RCPT TO:<joe@example.com>").code == 250
        assert client.say(b"DATA").code == 354
        client.send(b"half")
    service.wait_for_log(r"cause=<client gone>")
    assert [path for path in (service.folder / "var/quarantine").rglob("*") if path.is_file()] == []


def test_the_disk_has_the_message_before_the_sender_hears_so(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """The file is synced before it gets its name, and the folder before the reply goes out."""
    trace = tmp_path / "trace"
    note = f"""
import os, socket
calls = open({str(trace)!r}, "w", buffering=1)
def noted(name):
    real = getattr(os, name)
    def call(*arguments, **options):
        result = real(*arguments, **options)
        print(name, file=calls)
        return result
    setattr(os, name, call)
for name in ("fsync", "rename"):
    noted(name)
import asyncio.selector_events as events
write = events._SelectorSocketTransport.write
def noted_write(self, data):
    print("reply" if data.startswith(b"250 2.0.0 Ok") else "octets", file=calls)
    return write(self, data)
events._SelectorSocketTransport.write = noted_write
import sys
sys.modules["uvloop"] = None
"""
    with (
        ServiceProcess(
            tmp_path, next_hop.address, on_forged="quarantine", code=note + "from batv.cli import main; main()"
        ) as service,
        SmtpClient(service.inbound) as client,
    ):
        assert client.mail(b"", [b"joe@example.com"], _AS_SENT).code == 250
    calls = [call for call in trace.read_text().split() if call != "octets"]
    assert calls[-4:] == ["fsync", "rename", "fsync", "reply"]
