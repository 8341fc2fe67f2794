"""`batv serve` as an administrator meets it: start, reload, rotation, the end."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from batv.address import Mailbox
from batv.signing import verify
from batv.store.rings import RingStore
from batv.verdict import Verdict
from tests.support.next_hop import RecordingNextHop
from tests.support.service import SECRET, SERVE, ServiceProcess, today
from tests.support.signals import heeding_interrupts
from tests.support.smtp_client import SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHECKOUT: Final = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def next_hop() -> Iterator[RecordingNextHop]:
    """A next hop for all tests."""
    with RecordingNextHop() as hop:
        yield hop


@pytest.fixture
def service(next_hop: RecordingNextHop, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A running service."""
    next_hop.forget()
    with ServiceProcess(tmp_path, next_hop.address) as running:
        yield running


def batv(service: ServiceProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the configuration of a service."""
    return subprocess.run(
        [sys.executable, "-c", SERVE, "--config", str(service.config), *arguments],
        cwd=service.folder,
        env=os.environ | {"PYTHONPATH": str(_CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def signed_sender(service: ServiceProcess, next_hop: RecordingNextHop, sender: bytes) -> bytes:
    """Return what the next hop hears as the sender of a message."""
    with SmtpClient(service.outbound) as client:
        assert client.mail(sender, [b"ann@peer.example"], b"x\r\n").code == 250
    return next_hop.messages[-1].mail.strip(b"<>")


def reloaded(service: ServiceProcess) -> str:
    """Reload; return what the log says since."""
    at = len(service.log)
    service.reload()
    service.wait_for_log(r"reloaded|reload refused", after=at)
    return service.log[at:]


# Reload.


def test_a_reload_brings_a_new_domain_and_keeps_sessions(service: ServiceProcess, next_hop: RecordingNextHop) -> None:
    """A client that was connected before speaks to the new settings with its next message."""
    with SmtpClient(service.outbound) as client:
        assert client.mail(b"joe@new.example", [b"ann@peer.example"], b"x\r\n").code == 250
        assert next_hop.messages[-1].mail == b"<joe@new.example>"
        service.configure(domains=["example.com", "new.example"])
        assert "reloaded" in reloaded(service)
        assert client.mail(b"joe@new.example", [b"ann@peer.example"], b"x\r\n").code == 250
        assert next_hop.messages[-1].mail.startswith(b"<prvs=0")


def test_a_reload_does_not_change_the_rules_of_a_transaction_under_way(
    service: ServiceProcess, next_hop: RecordingNextHop
) -> None:
    """What was judged is what is done: the recipients of one message are judged by one policy."""
    with SmtpClient(service.inbound) as client:
        assert client.say(b"MAIL FROM:<>").code == 250
        assert client.say(b"RCPT TO:<joe@example.com>").code == 250
        service.configure(on_forged="reject")
        assert "reloaded" in reloaded(service)
        assert client.say(b"RCPT TO:<jim@example.com>").code == 250
        assert client.say(b"DATA").code == 354
        assert client.say(b"x\r\n.").code == 250
        assert client.mail(b"", [b"joe@example.com"], b"x\r\n").text.startswith(b"550 5.7.1 ")
    assert next_hop.messages == []
    assert [record["disposition"] for record in service.journal()] == ["discard", "discard", "reject"]


def test_a_reload_moves_a_listener(service: ServiceProcess) -> None:
    """The new address is open before the old one is closed; sessions on the old one go on."""
    old = service.inbound
    with SmtpClient(old) as client:
        service.configure(listen="127.0.0.2:0")
        at = len(service.log)
        assert "reloaded" in reloaded(service)
        service.wait_for_log(r"listening: direction=inbound, address=127\.0\.0\.2:", after=at)
        assert client.mail(b"ann@peer.example", [b"joe@example.com"], b"x\r\n").code == 250
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(old, timeout=10)
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"ann@peer.example", [b"joe@example.com"], b"x\r\n").code == 250


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("this is no toml\n", "batv.toml"),
        ("[tags]\ncase = 'upper'\n", "tags.case"),
        ("[keys]\ndirectory = 'elsewhere'\n", "key ring"),
        ("[state]\ndirectory = 'batv.toml/var'\n", "cannot make the folder"),
    ],
)
def test_a_reload_that_is_refused_changes_nothing_and_says_why(
    service: ServiceProcess, next_hop: RecordingNextHop, settings: str, said: str
) -> None:
    """Mail goes on as before; the log names what is wrong."""
    service.configure(settings, domains=["example.com", "new.example"])
    found = reloaded(service)
    assert "reload refused" in found
    assert len(found.splitlines()) == 1
    assert said in found
    assert signed_sender(service, next_hop, b"joe@example.com") == service.tagged(b"joe@example.com")
    assert signed_sender(service, next_hop, b"joe@new.example") == b"joe@new.example"


def test_a_reload_with_an_unreadable_ring_keeps_the_old_keys(
    service: ServiceProcess, next_hop: RecordingNextHop
) -> None:
    """A ring that others may read is refused, and every live tag stays good."""
    ring = service.folder / "keys/default.ring"
    ring.chmod(0o644)
    assert "reload refused" in reloaded(service)
    assert signed_sender(service, next_hop, b"joe@example.com") == service.tagged(b"joe@example.com")


def test_a_reload_that_cannot_listen_opens_and_closes_nothing(service: ServiceProcess) -> None:
    """All or nothing: the domain that came with the wrong address is not there either."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        service.configure(listen=f"127.0.0.1:{taken.getsockname()[1]}", domains=["example.com", "new.example"])
        assert "cannot listen on" in reloaded(service)
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"ann@peer.example", [b"joe@example.com"], b"x\r\n").code == 250
        assert client.mail(b"ann@peer.example", [b"joe@new.example"], b"x\r\n").code == 550


def test_a_reload_with_a_name_that_no_host_has_is_refused_and_the_next_one_heard(service: ServiceProcess) -> None:
    """Whatever goes wrong in a reload, the service hears the next signal."""
    service.configure(listen="two..dots:0")
    assert "reload refused" in reloaded(service)
    service.configure()
    assert "reloaded" in reloaded(service)


def test_two_reloads_at_once_both_count(service: ServiceProcess) -> None:
    """Two signals in a row end with the newest settings in force, not with a refusal."""
    service.configure(listen="127.0.0.2:0")
    at = len(service.log)
    for _ in range(3):
        service.reload()
    service.wait_for_log(r"reloaded|refused", after=at)
    with SmtpClient(service.inbound) as client:
        assert client.say(b"NOOP").code == 250
    assert "refused" not in service.log[at:]


# Keys.


def test_a_changed_ring_is_picked_up_by_itself(service: ServiceProcess, next_hop: RecordingNextHop) -> None:
    """Within 5 seconds, without a signal; the tags of before stay good."""
    before = signed_sender(service, next_hop, b"joe@example.com")
    at = len(service.log)
    rotated = batv(service, "key", "rotate", "--activate-in", "0")
    assert rotated.returncode == 0, rotated.stderr
    until(lambda: "key rings read" in service.log[at:], "news of the rings", seconds=5)
    after = signed_sender(service, next_hop, b"joe@example.com")
    assert (before[5:6], after[5:6]) == (b"0", b"1")
    with SmtpClient(service.inbound) as client:
        for tag in (before, after):
            assert client.mail(b"", [tag], b"x\r\n").code == 250
            assert next_hop.messages[-1].recipients == (b"<joe@example.com>",)


def test_a_ring_that_vanishes_is_missed_by_nobody(service: ServiceProcess, next_hop: RecordingNextHop) -> None:
    """A slip of the hand, or a backup that moves files: the keys in memory stay until the administrator says so."""
    ring = service.folder / "keys/default.ring"
    octets = ring.read_bytes()
    at = len(service.log)
    ring.unlink()
    service.wait_for_log(
        rf"key rings not read, the old ones stay.*a key ring has vanished, {re.escape(str(ring))}: restore", after=at
    )
    assert signed_sender(service, next_hop, b"joe@example.com") == service.tagged(b"joe@example.com")
    descriptor = os.open(ring, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(octets)
    service.wait_for_log(r"key rings read", after=at)
    assert signed_sender(service, next_hop, b"joe@example.com") == service.tagged(b"joe@example.com")


def test_a_damaged_ring_is_said_once_and_does_not_stop_the_watch(
    service: ServiceProcess, next_hop: RecordingNextHop
) -> None:
    """The log is not flooded, and the next good ring is read."""
    ring = service.folder / "keys/default.ring"
    good = ring.read_bytes()
    at = len(service.log)
    ring.write_bytes(good[:-40])
    service.wait_for_log(r"key rings not read", after=at)
    assert signed_sender(service, next_hop, b"joe@example.com") == service.tagged(b"joe@example.com")
    rotated_ring = RingStore(service.folder / "keys")
    ring.write_bytes(good)
    rotated_ring.change(None, lambda found: found or service.ring)
    service.wait_for_log(r"key rings read:", after=at)
    assert service.log[at:].count("key rings not read") == 1


def test_rotation_under_way_fails_no_mail(service: ServiceProcess, next_hop: RecordingNextHop) -> None:
    """Fifty clients sign and have their bounces verified while every key number is used up, one after another."""
    done = threading.Event()
    tags: set[bytes] = set()

    def client(number: int) -> int:
        sender = b"user%d@example.com" % number
        rounds = 0
        with SmtpClient(service.outbound) as outbound, SmtpClient(service.inbound) as inbound:
            while not done.is_set() or not rounds:
                taken = outbound.mail(sender, [b"ann%d@peer.example" % number], b"x\r\n")
                assert taken.code == 250, taken
                tag = next(
                    message.mail.strip(b"<>")
                    for message in reversed(list(next_hop.messages))
                    if message.mail.endswith(b"=" + sender + b">")
                )
                tags.add(tag)
                returned = inbound.mail(b"", [tag], b"bounce\r\n")
                assert returned.code == 250, returned
                rounds += 1
        return rounds

    with ThreadPoolExecutor(50) as pool:
        clients = [pool.submit(client, number) for number in range(50)]
        try:
            for number in range(1, 10):
                at = len(service.log)
                rotated = batv(service, "key", "rotate", "--activate-in", "0")
                assert rotated.returncode == 0, rotated.stderr
                service.reload()
                service.wait_for_log(r"reloaded|key rings read:", after=at)
                until(lambda: any(tag[5:6] == b"%d" % number for tag in list(tags)), f"tag of key {number}")  # noqa: B023 -- called at once
        finally:
            done.set()
        rounds = [each.result(60) for each in clients]
    ring = RingStore(service.folder / "keys").read(None)
    assert {tag[5:6] for tag in tags} == {b"%d" % number for number in range(10)}
    for tag in tags:
        assert verify(Mailbox.parse(tag), ring, today()).verdict is Verdict.VALID
    bounces = [message for message in next_hop.messages if message.mail == b"<>"]
    assert len(bounces) == sum(rounds), "every bounce was genuine, and none was discarded"
    assert {record["verdict"] for record in service.journal()} == {"signed", "valid"}


# The end.


def test_the_end_lets_transactions_end_and_sends_the_idle_away_at_once(
    service: ServiceProcess, next_hop: RecordingNextHop
) -> None:
    """421 4.3.2 for who has nothing under way, the true reply for who has; exit status 0."""
    with SmtpClient(service.inbound) as idle, SmtpClient(service.outbound) as busy:
        assert busy.say(b"MAIL FROM:<joe@example.com>").code == 250
        address = service.inbound
        service.stop()
        assert idle.reply().text.startswith(b"421 4.3.2 ")
        assert idle.reply().code == 0
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(address, timeout=10)
        assert busy.say(b"RCPT TO:<ann@peer.example>").code == 250
        assert busy.say(b"DATA").code == 354
        assert busy.say(b"x\r\n.").text == b"250 2.0.0 taken as 1\r\n"
        assert busy.reply().text.startswith(b"421 4.3.2 ")
    assert service.wait() == 0
    assert len(next_hop.messages) == 1
    assert service.log.rstrip().endswith("stopped")


def test_the_end_waits_no_longer_than_it_was_told_to(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """A transaction that does not end stays with its client: no reply, no dot."""
    next_hop.forget()
    with ServiceProcess(tmp_path, next_hop.address, "[smtp]\ndrain_seconds = 0.3\n") as service:
        with SmtpClient(service.outbound) as client:
            assert client.say(b"MAIL FROM:<joe@example.com>").code == 250
            assert client.say(b"RCPT TO:<ann@peer.example>").code == 250
            assert client.say(b"DATA").code == 354
            client.send(b"half a line")
            service.stop()
            assert client.reply().code in {0, 421}
        assert service.wait() == 0
    assert next_hop.messages == []
    assert sum(connection.dots for connection in next_hop.connections) == 0


def test_the_end_comes_when_the_next_hop_never_answers(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """The message is in doubt, so the client hears nothing that would make it forget."""
    next_hop.forget()
    with ServiceProcess(tmp_path, next_hop.address, "[smtp]\ndrain_seconds = 0.3\n") as service:
        with SmtpClient(service.outbound) as client:
            next_hop.hold_answer()
            assert client.say(b"MAIL FROM:<joe@example.com>").code == 250
            assert client.say(b"RCPT TO:<ann@peer.example>").code == 250
            assert client.say(b"DATA").code == 354
            client.send(b"x\r\n.\r\n")
            assert next_hop.dots.wait(30)
            service.stop()
            assert client.reply().code in {0, 421, 451}
        assert service.wait() == 0
        next_hop.go_on()
        assert "session ended by us" in service.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_right_after_ready_ends_it_well(
    next_hop: RecordingNextHop, tmp_path: Path, number: signal.Signals
) -> None:
    """Who says `ready` can be stopped: no status of a killed process, no traceback."""
    with heeding_interrupts(), ServiceProcess(tmp_path, next_hop.address) as service:
        os.kill(service.pid, number)
        assert service.wait() == 0
        assert "Traceback" not in service.log


# The start.


def failed_start(service: ServiceProcess) -> tuple[int, list[str]]:
    """Start a service that cannot start; return its exit status and what it says, log lines left out."""
    service.start()
    status = service.wait()
    return status, [line for line in service.log.splitlines() if not line.startswith("batv/INFO: ")]


def unstarted(tmp_path: Path, settings: str = "") -> ServiceProcess:
    """Return a service that has not been started."""
    return ServiceProcess(tmp_path, "127.0.0.1:9", settings)


def test_a_reload_that_is_asked_for_during_the_start_does_not_end_the_process(
    next_hop: RecordingNextHop, tmp_path: Path
) -> None:
    """A package's script reloads what was started a moment before: the mail must not stop for that."""
    service = ServiceProcess(tmp_path, next_hop.address)
    settings = tmp_path / "settings"
    service.config.rename(settings)
    # The start stops at a pipe until somebody has filled it; what is read after that is the file again.
    os.mkfifo(service.config)
    service.start()
    try:
        with service.config.open("wb") as pipe:
            settings.rename(service.config)
            service.reload()
            pipe.write(service.config.read_bytes())
        service.wait_for_log(r"\bready\b")
        assert "reloaded" in reloaded(service)
        service.stop()
        assert service.wait() == 0
    finally:
        service.__exit__()


def test_the_state_can_be_kept_elsewhere_for_one_run(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """A trial must not write into the journal of the site, after a reload either."""
    code = f"import sys; sys.argv += ['--state', {str(tmp_path / 'trial')!r}]; {SERVE}"
    with ServiceProcess(tmp_path, next_hop.address, code=code) as service:
        assert "reloaded" in reloaded(service)
        signed_sender(service, next_hop, b"joe@example.com")
        assert (tmp_path / "trial/journal.jsonl").stat().st_size > 0
        assert not service.journal_path.exists()


def test_a_start_without_a_configuration_says_how_to_make_one(tmp_path: Path) -> None:
    """One line, exit status 78."""
    service = unstarted(tmp_path)
    service.config.unlink()
    status, lines = failed_start(service)
    assert (status, len(lines)) == (78, 1)
    assert lines[0].startswith("batv: there is no configuration file")
    assert "batv init" in lines[0]


@pytest.mark.parametrize("settings", ["no toml\n", "[smtp]\nwrong = 1\n"])
def test_a_start_with_a_wrong_configuration_says_where(tmp_path: Path, settings: str) -> None:
    """One line with file and line number, exit status 78."""
    status, lines = failed_start(unstarted(tmp_path, settings))
    assert (status, len(lines)) == (78, 1)
    assert lines[0].startswith("batv: ")
    assert "batv.toml" in lines[0]


def test_a_start_on_a_taken_port_says_which(tmp_path: Path) -> None:
    """One line, exit status 69."""
    service = unstarted(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        service.configure(listen=f"127.0.0.1:{port}")
        status, lines = failed_start(service)
    assert (status, len(lines)) == (69, 1)
    assert lines[0].startswith(f"batv: cannot listen on 127.0.0.1:{port}: ")


def test_a_start_without_a_ring_says_how_to_make_one(tmp_path: Path) -> None:
    """One line that names the command."""
    service = unstarted(tmp_path)
    (tmp_path / "keys/default.ring").unlink()
    status, lines = failed_start(service)
    assert len(lines) == 1
    assert "batv key new" in lines[0]
    assert status == 78


def test_a_start_with_a_ring_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """One line with the file, exit status 77."""
    service = unstarted(tmp_path)
    (tmp_path / "keys/default.ring").chmod(0o644)
    status, lines = failed_start(service)
    assert (status, len(lines)) == (77, 1)
    assert "default.ring" in lines[0]


def test_a_start_with_a_damaged_ring_is_refused(tmp_path: Path) -> None:
    """One line with the file and without its secret, exit status 65."""
    service = unstarted(tmp_path)
    ring = tmp_path / "keys/default.ring"
    ring.write_bytes(ring.read_bytes()[:-40])
    status, lines = failed_start(service)
    assert (status, len(lines)) == (65, 1)
    assert "default.ring" in lines[0]
    assert SECRET.hex() not in lines[0]


def test_a_start_that_cannot_make_its_folder_is_refused(tmp_path: Path) -> None:
    """One line, exit status 73."""
    (tmp_path / "file").touch()
    status, lines = failed_start(unstarted(tmp_path, "[state]\ndirectory = 'file/var'\n"))
    assert (status, len(lines)) == (73, 1)
    assert "state.directory" in lines[0]


def test_a_start_that_cannot_write_its_journal_is_refused(tmp_path: Path) -> None:
    """One line, exit status 74: a discard that is not recorded would be a loss."""
    service = unstarted(tmp_path)
    service.journal_path.mkdir(parents=True)
    status, lines = failed_start(service)
    assert (status, len(lines)) == (74, 1)
    assert "journal.jsonl" in lines[0]


# What it is.


def test_a_thousand_clients_are_served_at_once_under_the_usual_limit(tmp_path: Path) -> None:
    """Each needs two descriptors, and most systems give a process 1024 unless it asks for more."""
    count = 1000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for clients and next hop, which are in this process
    usual = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1024, {hard})); "
    try:
        with (
            RecordingNextHop() as next_hop,
            ServiceProcess(tmp_path, next_hop.address, code=usual + SERVE) as service,
            ExitStack() as open_clients,
        ):
            before = service.memory()
            clients = [open_clients.enter_context(SmtpClient(service.outbound)) for _ in range(count)]
            for client in clients:
                assert client.say(b"MAIL FROM:<joe@example.com>").code == 250
            growth = service.memory() - before
            for client in clients:
                assert client.say(b"RCPT TO:<ann@peer.example>").code == 250
                assert client.say(b"DATA").code == 354
                assert client.say(b"x\r\n.").code == 250
            assert len(next_hop.messages) == count
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert growth < count * 64 * 1024


def test_the_service_is_one_process_and_loads_only_what_it_needs(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """What only other commands use costs memory at every site."""
    tell = "import atexit, sys; atexit.register(lambda: print('modules', *sys.modules, file=sys.stderr)); "
    with ServiceProcess(tmp_path, next_hop.address, code=tell + SERVE) as service:
        with SmtpClient(service.inbound) as client:
            assert client.mail(b"", [b"joe@example.com"], b"x\r\n").code == 250
        children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text(encoding="ascii")
        assert children == ""
        service.stop()
        assert service.wait() == 0
        modules = set(service.wait_for_log(r"^modules (.*)$")[1].split())
    ours = {module for module in modules if module.startswith("batv.")}
    assert {module for module in ours if module.startswith("batv.cli.")} == {"batv.cli.serve"}
    assert not [module for module in ours if module.startswith(("batv.corpus", "batv.demo", "batv.web"))]
    assert not modules & {"rich", "sqlite3", "dns", "jinja2", "starlette", "psycopg", "idna"}


def test_what_the_service_writes_is_for_its_user_only(service: ServiceProcess) -> None:
    """The journal says who wrote to whom."""
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"joe@example.com"], b"x\r\n").code == 250
    assert stat.S_IMODE(service.journal_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(service.journal_path.parent.stat().st_mode) == 0o700
