"""`batv serve` with several workers: one service to the outside, and nothing lost when one of them dies."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from batv.keyring import Key, Secret
from batv.store.rings import RingStore
from tests.support.certificates import Authority
from tests.support.next_hop import RecordingNextHop
from tests.support.port import free_port
from tests.support.service import LOOPS, SERVE, ServiceProcess, today
from tests.support.smtp_client import SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TWO: Final = "[smtp]\nworkers = 2\n"
_MOST_CLIENTS: Final = 64
"""Of so many connections each of two workers gets one, but for a chance of 2 ** -63."""


@pytest.fixture
def next_hop() -> Iterator[RecordingNextHop]:
    """A next hop of the test's own: what it has taken is counted."""
    with RecordingNextHop() as hop:
        yield hop


@pytest.fixture
def service(next_hop: RecordingNextHop, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A running service with two workers."""
    with ServiceProcess(tmp_path, next_hop.address, _TWO) as running:
        yield running


def workers(service: ServiceProcess) -> list[psutil.Process]:
    """Return the workers that are there."""
    return psutil.Process(service.pid).children()


def server_of(client: SmtpClient, among: list[psutil.Process]) -> int:
    """Return the pid of the worker that serves a client."""
    name = client.socket.getsockname()
    return next(
        worker.pid for worker in among for connection in worker.net_connections("tcp") if connection.raddr == name
    )


def client_of_each(service: ServiceProcess, address: tuple[str, int], stack: ExitStack) -> list[SmtpClient]:
    """Return a client for each worker, which it serves."""
    found: dict[int, SmtpClient] = {}
    there = workers(service)
    for _ in range(_MOST_CLIENTS):
        client = stack.enter_context(SmtpClient(address))
        found.setdefault(server_of(client, there), client)
        if len(found) == len(there):
            break
    assert len(found) == len(there) == 2
    return list(found.values())


def reloaded(service: ServiceProcess) -> list[str]:
    """Reload; return what both workers say of it."""
    at = len(service.log)
    service.reload()
    return [
        service.wait_for_log(rf"^.*(?:reloaded|reload refused).*worker={number}$", after=at)[0] for number in (1, 2)
    ]


def failed_start(service: ServiceProcess) -> tuple[int, list[str]]:
    """Start a service that cannot start; return its exit status and what it says, log lines left out."""
    service.start()
    status = service.wait()
    return status, [line for line in service.log.splitlines() if not line.startswith("batv/INFO: ")]


def refuses(address: tuple[str, int]) -> bool:
    """Return whether nobody listens at an address."""
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        return True
    return False


# One service to the outside.


@pytest.mark.parametrize("code", LOOPS.values(), ids=LOOPS.keys())
def test_both_workers_serve_one_port(next_hop: RecordingNextHop, tmp_path: Path, code: str) -> None:
    """Each has its share of the connections, and all goes to the same next hop and into the same journal."""
    with ServiceProcess(tmp_path, next_hop.address, _TWO, code=code) as service, ExitStack() as stack:
        for client in client_of_each(service, service.outbound, stack):
            assert client.mail(b"joe@example.com", [b"ann@peer.example"], b"x\r\n").code == 250
        assert len(next_hop.messages) == 2
        assert len(service.journal()) == 2
        assert len(re.findall(r"\bready\b", service.log)) == 1


@pytest.mark.parametrize("code", LOOPS.values(), ids=LOOPS.keys())
def test_both_workers_serve_one_unix_socket(next_hop: RecordingNextHop, tmp_path: Path, code: str) -> None:
    """Its file is for the group, outlives the end of a worker, and is gone after the end of the service."""
    path = tmp_path / "inbound"
    service = ServiceProcess(tmp_path, next_hop.address, code=code)
    service.configure(_TWO, listen=f"unix:{path}")
    with service:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        for worker in workers(service):
            at = len(service.log)
            worker.terminate()
            service.wait_for_log("worker died", after=at)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(str(path))
                assert client.recv(4) == b"220 "
            service.wait_for_log("worker listens again", after=at)
        service.stop()
        assert service.wait() == 0
    assert not path.exists()


def test_a_port_for_tls_is_not_one_without(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Where both are left to the system, a worker must not answer a handshake with a greeting, nor wait for one."""
    certificate, key = Authority(tmp_path).issue("mx.example.com")
    service = ServiceProcess(tmp_path, next_hop.address, _TWO)
    text = service.config.read_text().replace(
        "[inbound]\n",
        f'[inbound]\nlisten_tls = ["127.0.0.1:0"]\ntls_certificate = "{certificate}"\ntls_key = "{key}"\n',
    )
    service.config.write_text(text)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(tmp_path / "ca.pem")
    with service, ExitStack() as stack:
        plain, encrypted = re.findall(r"(?m)direction=inbound, address=127\.0\.0\.1:(\d+)(, tls=yes)?$", service.log)
        assert (plain[1], encrypted[1]) == ("", ", tls=yes")
        client_of_each(service, ("127.0.0.1", int(plain[0])), stack)
        for _ in range(8):
            connection = socket.create_connection(("127.0.0.1", int(encrypted[0])), timeout=30)
            with context.wrap_socket(connection, server_hostname="mx.example.com") as client:
                assert client.recv(4) == b"220 "


def test_one_worker_is_one_process_without_a_supervisor(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """Who needs no second core pays nothing for it."""
    tell = "import atexit, sys; atexit.register(lambda: print('modules', *sys.modules, file=sys.stderr)); "
    with ServiceProcess(tmp_path, next_hop.address, code=tell + SERVE) as service:
        assert workers(service) == []
        service.stop()
        assert service.wait() == 0
        assert "batv.proxy.workers" not in service.wait_for_log(r"^modules (.*)$")[1].split()


# Reload and rotation.


def test_a_changed_ring_is_picked_up_by_all_workers_within_five_seconds(
    service: ServiceProcess, next_hop: RecordingNextHop, tmp_path: Path
) -> None:
    """A worker with old keys would discard the bounces of what the others sign."""
    begun = time.monotonic()
    newcomer = Key(1, Secret(b"another-secret-of-32-octets-long"), today())
    ring = service.ring.with_newcomer(newcomer, today()).activated(1, today(), today())
    RingStore(tmp_path / "keys").change(None, lambda _: ring)
    for number in (1, 2):
        service.wait_for_log(rf"key rings read: .*worker={number}$")
    assert time.monotonic() - begun < 5
    with ExitStack() as stack:
        for client in client_of_each(service, service.outbound, stack):
            assert client.mail(b"joe@example.com", [b"ann@peer.example"], b"x\r\n").code == 250
    assert all(b"<prvs=1" in message.mail for message in next_hop.messages)


def test_a_reload_reaches_all_workers_and_the_next_one_too(service: ServiceProcess) -> None:
    """Two policies on one port would be a matter of chance for each bounce."""
    service.configure(_TWO, domains=["other.example"])
    assert all("reloaded" in line for line in reloaded(service))
    workers(service)[0].kill()
    service.wait_for_log("worker listens again")
    with ExitStack() as stack:
        for client in client_of_each(service, service.inbound, stack):
            assert client.mail(b"", [b"joe@example.com"], b"x\r\n").code == 550
            assert client.mail(b"", [b"joe@other.example"], b"x\r\n").code == 250


def test_a_reload_that_is_refused_is_refused_by_all_workers(service: ServiceProcess) -> None:
    """All read the same files, and all stay as they were."""
    service.configure("[smtp]\nworkers = 2\nwrong = 1\n")
    assert all("reload refused" in line for line in reloaded(service))
    with ExitStack() as stack:
        for client in client_of_each(service, service.inbound, stack):
            assert client.mail(b"", [b"joe@example.com"], b"x\r\n").code == 250


def test_all_workers_go_to_another_port_in_a_reload(service: ServiceProcess) -> None:
    """What one process can do several can: the old address is given back, the new one is served."""
    old = service.inbound
    port = free_port()
    service.configure(_TWO, listen=f"127.0.0.1:{port}")
    assert all("reloaded" in line for line in reloaded(service))
    with ExitStack() as stack:
        client_of_each(service, ("127.0.0.1", port), stack)
    with socket.socket() as other:
        other.bind(old)


def test_a_socket_that_only_the_start_can_open_is_refused_in_a_reload(service: ServiceProcess, tmp_path: Path) -> None:
    """A worker that runs cannot be given it; the log says what to do."""
    service.configure(_TWO, listen=f"unix:{tmp_path}/inbound")
    for line in reloaded(service):
        assert "reload refused" in line
        assert "restart the service" in line
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"joe@example.com"], b"x\r\n").code == 250


def test_another_number_of_workers_waits_for_a_restart(service: ServiceProcess) -> None:
    """The log says so; all else of the reload is in force."""
    service.configure("[smtp]\nworkers = 3\n", domains=["other.example"])
    assert all("reloaded" in line for line in reloaded(service))
    service.wait_for_log("restart the service to change the number of workers: workers=2")
    assert len(workers(service)) == 2


# A worker dies.


def test_nothing_that_was_accepted_is_lost_when_a_worker_is_killed(
    service: ServiceProcess, next_hop: RecordingNextHop
) -> None:
    """Clients send again what got no answer; the other worker takes it, until there are two again."""
    senders, each = 4, 100
    under_way = threading.Event()

    def send(sender: int) -> list[bytes]:
        accepted: list[bytes] = []
        while len(accepted) < each:
            content = b"%d %d\r\n..\r\n" % (sender, len(accepted))
            with suppress(ConnectionError), SmtpClient(service.outbound, greet=False) as client:
                if client.reply().code != 220 or client.say(b"EHLO client.example").code != 250:
                    continue
                if client.mail(b"joe@example.com", [b"ann@peer.example"], content).code == 250:
                    accepted.append(content)
            if len(accepted) == each // 4:
                under_way.set()
        return accepted

    with ThreadPoolExecutor(senders) as threads:
        sending = [threads.submit(send, sender) for sender in range(senders)]
        assert under_way.wait(60)
        killed, other = workers(service)
        killed.kill()
        accepted = [content for done in sending for content in done.result()]
    assert len(accepted) == senders * each
    assert {message.content for message in next_hop.messages} == set(accepted)
    records = [record for record in service.journal() if record["reply"].startswith("250")]
    assert len(records) >= len(accepted)
    service.wait_for_log("worker died: worker=1, signal=SIGKILL, again_in_seconds=1")
    service.wait_for_log("worker listens again: worker=1")
    there = workers(service)
    assert other in there
    assert len(there) == 2
    assert killed not in there


def test_nobody_else_gets_the_port_while_all_workers_are_dead(service: ServiceProcess) -> None:
    """A stranger on it would be handed the mail; and until the workers are back nobody takes a connection."""
    address = service.outbound
    at = len(service.log)
    # Held still, it starts nobody meanwhile.
    os.kill(service.pid, signal.SIGSTOP)
    try:
        for worker in workers(service):
            worker.kill()
        until(lambda: refuses(address), "refusal of a connection")
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                other.bind(address)
    finally:
        os.kill(service.pid, signal.SIGCONT)
    for number in (1, 2):
        service.wait_for_log(rf"worker listens again: worker={number}", after=at)
    with SmtpClient(address) as client:
        assert client.mail(b"joe@example.com", [b"ann@peer.example"], b"x\r\n").code == 250


def test_a_worker_that_cannot_start_again_is_tried_until_it_can(service: ServiceProcess, tmp_path: Path) -> None:
    """Meanwhile the other one serves, with the keys that it has."""
    ring = tmp_path / "keys/default.ring"
    ring.rename(tmp_path / "ring")
    workers(service)[0].kill()
    service.wait_for_log("worker died: worker=1, status=78, again_in_seconds=2")
    with SmtpClient(service.outbound) as client:
        assert client.mail(b"joe@example.com", [b"ann@peer.example"], b"x\r\n").code == 250
    (tmp_path / "ring").rename(ring)
    service.wait_for_log("worker listens again: worker=1")


def test_a_service_none_of_whose_workers_can_start_again_ends(service: ServiceProcess) -> None:
    """Whoever supervises the service hears why, as of one process."""
    service.configure("[smtp]\nwrong = 1\n")
    for worker in workers(service):
        worker.kill()
    assert service.wait() == 78


# The end.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_workers_drain(service: ServiceProcess, next_hop: RecordingNextHop, number: signal.Signals) -> None:
    """A message under way in any of them comes to its end, and the status is that of a good end."""
    with ExitStack() as stack:
        clients = client_of_each(service, service.outbound, stack)
        for client in clients:
            assert client.say(b"MAIL FROM:<joe@example.com>").code == 250
            assert client.say(b"RCPT TO:<ann@peer.example>").code == 250
            assert client.say(b"DATA").code == 354
        there = workers(service)
        os.kill(service.pid, number)
        for worker in (1, 2):
            service.wait_for_log(rf"stopping: .*worker={worker}$")
        for client in clients:
            assert client.say(b"x\r\n.").code == 250
        assert service.wait() == 0
    assert len(next_hop.messages) == 2
    assert not any(worker.is_running() for worker in there)


def test_a_worker_that_does_not_end_is_killed(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """One that hangs must not keep the service from ending."""
    with ServiceProcess(tmp_path, next_hop.address, "[smtp]\nworkers = 2\ndrain_seconds = 0.1\n") as service:
        hanging = workers(service)[0]
        hanging.suspend()
        service.stop()
        assert service.wait() == 0
        assert "worker killed, it did not end: worker=1" in service.log
    assert not hanging.is_running()


def test_workers_end_with_their_supervisor(service: ServiceProcess) -> None:
    """Left alone they would keep the port from the next service; but messages under way come to their end."""
    there = workers(service)
    with ExitStack() as stack:
        clients = client_of_each(service, service.outbound, stack)
        for client in clients:
            assert client.say(b"MAIL FROM:<joe@example.com>").code == 250
            assert client.say(b"RCPT TO:<ann@peer.example>").code == 250
            assert client.say(b"DATA").code == 354
        os.kill(service.pid, signal.SIGKILL)
        for worker in (1, 2):
            service.wait_for_log(rf"stopping: .*worker={worker}$")
        for client in clients:
            assert client.say(b"x\r\n.").code == 250
    _, left = psutil.wait_procs(there, 30)
    assert left == []


# The start.


def test_a_start_with_workers_on_a_taken_port_says_which(tmp_path: Path, service: ServiceProcess) -> None:
    """One line, exit status 69: a second service with workers must not get a share of the first one's mail."""
    host, port = service.inbound
    second = ServiceProcess(tmp_path, "127.0.0.1:9")
    second.configure(_TWO, listen=f"{host}:{port}")
    status, lines = failed_start(second)
    assert (status, len(lines)) == (69, 1)
    assert lines[0].startswith(f"batv: cannot listen on {host}:{port}: ")


def test_a_start_with_workers_on_a_taken_unix_socket_says_which(tmp_path: Path) -> None:
    """As for a port: whoever listens there keeps it."""
    path = tmp_path / "inbound"
    service = ServiceProcess(tmp_path, "127.0.0.1:9")
    service.configure(_TWO, listen=f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(path))
        taken.listen()
        status, lines = failed_start(service)
    assert (status, len(lines)) == (69, 1)
    assert lines[0].startswith(f"batv: cannot listen on unix:{path}: ")
    assert path.exists()


def test_what_keeps_workers_from_starting_is_said_once(tmp_path: Path) -> None:
    """One line, and the exit status that one process has."""
    service = ServiceProcess(tmp_path, "127.0.0.1:9", _TWO)
    (tmp_path / "keys/default.ring").unlink()
    status, lines = failed_start(service)
    assert (status, len(lines)) == (78, 1)
    assert "batv key new" in lines[0]


# What it costs.


def test_a_second_worker_shares_most_of_its_memory(service: ServiceProcess) -> None:
    """The modules are in memory once, whatever the number of workers."""
    for worker in workers(service):
        memory = worker.memory_full_info()
        assert memory.pss < 0.6 * memory.rss
