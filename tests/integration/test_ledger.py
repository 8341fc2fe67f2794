"""The service keeps a ledger of what it sends, and mail never waits for it."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from batv.store.ledger import Ledger, LedgerLimits
from batv.store.rings import RingStore
from tests.support.next_hop import Answer, RecordingNextHop, Stage
from tests.support.service import ServiceProcess, full_disk, today
from tests.support.smtp_client import SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LEDGER: Final = "[ledger]\nenabled = true\n"
_MESSAGE: Final = (
    b"From: Joe <joe@example.com>\r\nReply-To: office@example.com, eve@else.example\r\n"
    b"Message-ID: <%b@example.com>\r\n\r\ntext\r\n"
)


@pytest.fixture(scope="module")
def next_hop() -> Iterator[RecordingNextHop]:
    """A next hop."""
    with RecordingNextHop() as hop:
        yield hop


def send(service: ServiceProcess, name: bytes = b"1", sender: bytes = b"bounces@example.com") -> bytes:
    """Send a message through the outbound proxy, and return the reply."""
    with SmtpClient(service.outbound) as client:
        return client.mail(sender, [b"bob@peer.example", b"carol@other.example"], _MESSAGE % name).text


def ledger(service: ServiceProcess) -> Ledger:
    """Return the ledger as another process reads it."""
    secret = RingStore(service.folder / "keys").ledger_secret()
    return Ledger(service.folder / "var/ledger", secret, today, LedgerLimits(), b"example.com".__eq__)


def test_what_is_sent_is_noted_for_each_address_that_may_be_answered(
    next_hop: RecordingNextHop, tmp_path: Path
) -> None:
    """Envelope sender and header addresses of ours, with each recipient; and after a restart it is still there."""
    with ServiceProcess(tmp_path, next_hop.address, _LEDGER) as service:
        assert send(service).startswith(b"250")
        found = ledger(service)
        until(lambda: found.knows((b"1@example.com",), b"joe@example.com", (b"bob@peer.example",)), "the entry")
    with ServiceProcess(tmp_path, next_hop.address, _LEDGER) as service:
        found = ledger(service)
        for own in (b"bounces@example.com", b"joe@example.com", b"office@example.com"):
            for party in (b"bob@peer.example", b"@other.example"):
                assert found.knows((b"1@example.com",), own, (party,))
        assert not found.knows((b"1@example.com",), b"eve@else.example", (b"bob@peer.example",))
        assert "ledger" not in service.log


def test_what_the_next_hop_refuses_is_not_noted(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """It was not sent."""
    with ServiceProcess(tmp_path, next_hop.address, _LEDGER) as service:
        next_hop.fail(Stage.DOT, Answer(b"550 no\r\n"))
        assert send(service).startswith(b"5")
        next_hop.heal()
        assert send(service, b"2").startswith(b"250")
        found = ledger(service)
        until(lambda: found.knows((b"2@example.com",), b"joe@example.com", (b"bob@peer.example",)), "the entry")
        assert not found.knows((b"1@example.com",), b"joe@example.com", (b"bob@peer.example",))


def test_no_ledger_is_kept_unless_it_is_wanted(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Neither files nor a secret."""
    with ServiceProcess(tmp_path, next_hop.address) as service:
        assert send(service).startswith(b"250")
    assert not (tmp_path / "var/ledger").exists()
    assert not (tmp_path / "keys/ledger.secret").exists()


def test_mail_without_a_message_id_is_told_of(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Once a minute at most, with their number."""
    with ServiceProcess(tmp_path, next_hop.address, _LEDGER) as service, SmtpClient(service.outbound) as client:
        for _ in range(3):
            client.mail(b"joe@example.com", [b"bob@peer.example"], b"Subject: x\r\n\r\n")
        service.wait_for_log(r"mail without a Message-ID: replies cannot name it: count=3\b")


@pytest.mark.parametrize("fault", ["locked", "damaged", "in the way", "secret unreadable"])
def test_mail_goes_on_whatever_becomes_of_the_ledger(next_hop: RecordingNextHop, tmp_path: Path, fault: str) -> None:
    """And the log says what is wrong, but for a lock, which is waited for."""
    folder = tmp_path / "var/ledger"
    with ServiceProcess(tmp_path, next_hop.address, _LEDGER) as service:
        send(service)
        until(lambda: list(folder.glob("*.sqlite3")), "the ledger")
    (path,) = folder.glob("*.sqlite3")
    if fault == "damaged":
        path.write_bytes(b"no database" * 1000)
    elif fault == "in the way":
        path.unlink()
        folder.rmdir()
        folder.write_bytes(b"")
    elif fault == "secret unreadable":
        (tmp_path / "keys/ledger.secret").chmod(0o644)
    with ServiceProcess(tmp_path, next_hop.address, _LEDGER) as service:
        if fault == "locked":
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                assert send(service, b"2").startswith(b"250")
                other.execute("ROLLBACK")
            found = ledger(service)
            until(lambda: found.knows((b"2@example.com",), b"joe@example.com", (b"bob@peer.example",)), "the entry")
            return
        assert send(service, b"2").startswith(b"250")
        service.wait_for_log(r"ERROR: ledger (?:fails|not opened)")


def test_a_reload_while_the_disk_takes_nothing_loses_no_entry(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """What waited to be written then is written when the disk is well again."""
    with ServiceProcess(tmp_path, next_hop.address, _LEDGER) as service:
        folder = tmp_path / "var/ledger"
        folder.rename(tmp_path / "aside")
        folder.write_bytes(b"")
        assert send(service).startswith(b"250")
        service.reload()
        service.wait_for_log("reloaded")
        folder.unlink()
        until(lambda: list(folder.glob("*.sqlite3")), "the file of the day")
        found = ledger(service)
        until(lambda: found.knows((b"1@example.com",), b"joe@example.com", (b"bob@peer.example",)), "the entry")


def test_a_reload_switches_the_ledger_on(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Without a restart; and off again."""
    with ServiceProcess(tmp_path, next_hop.address) as service:
        service.configure(_LEDGER)
        service.reload()
        service.wait_for_log("reloaded")
        send(service)
        service.configure("")
        heard = len(service.log)
        service.reload()
        service.wait_for_log("reloaded", after=heard)
        assert ledger(service).knows((b"1@example.com",), b"joe@example.com", (b"bob@peer.example",))


def test_a_full_disk_costs_entries_and_no_mail(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """They are written once there is room, as far as they have room to wait."""
    with ServiceProcess(tmp_path, next_hop.address, _LEDGER) as service:
        send(service)
        found = ledger(service)
        until(lambda: found.knows((b"1@example.com",), b"joe@example.com", (b"bob@peer.example",)), "the entry")
        with full_disk(service.journal_path.stat().st_size + 4096, service.pid):
            assert send(service, b"2").startswith(b"250")
            service.wait_for_log(r"ERROR: ledger fails")
        until(lambda: found.knows((b"2@example.com",), b"joe@example.com", (b"bob@peer.example",)), "the entry")


_LONG: Final = b"joe+" + b"0123456789" * 4 + b"01234@example.com"


def bounce(service: ServiceProcess, recipient: bytes) -> tuple[str, str]:
    """Send a bounce that names no message, and return verdict and disposition of the record."""
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [recipient], b"Subject: x\r\n\r\n").code == 250
    record = service.journal()[-1]
    return record["verdict"], record["disposition"]


def record_begun(next_hop: RecordingNextHop, folder: Path, days_ago: int = 9) -> None:
    """Let the ledger of a service have begun in the past: a message was noted on that day."""
    with ServiceProcess(folder, next_hop.address, _LEDGER):
        pass
    begun = today() + -days_ago
    secret = RingStore(folder / "keys").ledger_secret()
    old = Ledger(folder / "var/ledger", secret, lambda: begun, LedgerLimits(), b"example.com".__eq__)
    old.note(b"old@example.com", (b"ann@example.com",), (b"bob@peer.example",))
    old.close()


def test_of_addresses_too_long_for_a_tag_those_on_record_get_their_bounces(
    next_hop: RecordingNextHop, tmp_path: Path
) -> None:
    """From the moment that their mail is taken, and after a restart; a forged address that is as long does not pass."""
    record_begun(next_hop, tmp_path)
    with ServiceProcess(tmp_path, next_hop.address, _LEDGER) as service:
        assert bounce(service, _LONG) == ("untagged", "discard")
        assert send(service, sender=_LONG).startswith(b"250")
        assert bounce(service, _LONG) == ("not-judged", "pass")
        assert bounce(service, _LONG.replace(b"joe", b"ann")) == ("untagged", "discard")
    with ServiceProcess(tmp_path, next_hop.address, _LEDGER) as service:
        assert bounce(service, _LONG.replace(b"joe", b"Joe")) == ("not-judged", "pass")
        assert bounce(service, _LONG.replace(b"joe", b"ann")) == ("untagged", "discard")


def test_a_service_that_is_killed_leaves_nobody_without_bounces(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """What it had noted a moment before may be on no record: nobody's bounces are judged by it for a while."""
    record_begun(next_hop, tmp_path)
    with ServiceProcess(tmp_path, next_hop.address, _LEDGER) as service:
        assert bounce(service, _LONG) == ("untagged", "discard")
        assert send(service, sender=_LONG).startswith(b"250")
        os.kill(service.pid, signal.SIGKILL)
        service.wait()
    for told in (True, False):
        with ServiceProcess(tmp_path, next_hop.address, _LEDGER) as service:
            assert bounce(service, _LONG) == ("not-judged", "pass")
            assert bounce(service, _LONG.replace(b"joe", b"ann")) == ("not-judged", "pass")
        assert ("the record of unsigned mail begins anew: processes=1" in service.log) is told
    assert not list(tmp_path.glob("var/ledger/*.mark"))


def test_a_stop_while_the_disk_is_full_leaves_nobody_without_bounces(
    next_hop: RecordingNextHop, tmp_path: Path
) -> None:
    """What it could not write is on no record either."""
    record_begun(next_hop, tmp_path)
    with ServiceProcess(tmp_path, next_hop.address, _LEDGER) as service:
        assert bounce(service, _LONG) == ("untagged", "discard")
        octets = service.journal_path.stat().st_size + 4096
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (octets, octets))  # to its end
        assert send(service, sender=_LONG).startswith(b"250")
        service.wait_for_log(r"ERROR: ledger fails")
        service.stop()
        assert service.wait() == 0
    with ServiceProcess(tmp_path, next_hop.address, _LEDGER) as service:
        assert bounce(service, _LONG) == ("not-judged", "pass")


def test_a_start_that_fails_loses_no_record(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Somebody else has the port: nothing was noted, and nothing can be lost."""
    record_begun(next_hop, tmp_path)
    with socket.socket() as taken, ServiceProcess(tmp_path, next_hop.address) as service:
        service.stop()
        service.wait()
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        service.configure(_LEDGER, listen=f"127.0.0.1:{taken.getsockname()[1]}")
        service.start()
        assert service.wait() == 69
    with ServiceProcess(tmp_path, next_hop.address, _LEDGER) as service:
        assert bounce(service, _LONG) == ("untagged", "discard")


def test_a_worker_that_is_killed_leaves_nobody_without_bounces(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """From that moment on, whoever else serves; and after another one is in its place."""
    settings = _LEDGER + "[smtp]\nworkers = 2\n"
    record_begun(next_hop, tmp_path)
    with ServiceProcess(tmp_path, next_hop.address, settings) as service:
        assert bounce(service, _LONG) == ("untagged", "discard")
        victim = psutil.Process(service.pid).children()[0]
        victim.kill()
        service.wait_for_log("worker died")
        assert bounce(service, _LONG) == ("not-judged", "pass")
        service.wait_for_log("worker listens again")
        assert bounce(service, _LONG) == ("not-judged", "pass")
    with ServiceProcess(tmp_path, next_hop.address, settings) as service:
        assert bounce(service, _LONG) == ("not-judged", "pass")
        assert "begins anew" not in service.log


@pytest.mark.parametrize("why", ["record too young", "no ledger", "leave", "outbound elsewhere", "file damaged"])
def test_bounces_to_addresses_too_long_for_a_tag_pass_where_nothing_is_known(
    next_hop: RecordingNextHop, tmp_path: Path, why: str
) -> None:
    """What left before, by another host or on a day that cannot be read has bounces too."""
    service = ServiceProcess(tmp_path, next_hop.address, _LEDGER)
    record_begun(next_hop, tmp_path, 8 if why == "record too young" else 9)
    if why == "no ledger":
        service.configure("")
    elif why == "leave":
        service.configure(_LEDGER + '[tags]\non_too_long = "leave"\n')
    elif why == "outbound elsewhere":
        service.configure(_LEDGER)
        service.config.write_text("[inbound]" + service.config.read_text().partition("[inbound]")[2])
    elif why == "file damaged":
        (path,) = tmp_path.glob("var/ledger/*.sqlite3")
        path.write_bytes(b"no database" * 1000)
    with service:
        assert bounce(service, _LONG) == ("not-judged", "pass")
