"""Who the client is, told by real programs and to real programs: HAProxy and Postfix before and behind the proxies."""

from __future__ import annotations

import re
import shutil
import smtplib
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Event, Thread
from typing import TYPE_CHECKING, Final, Self

import pytest

from tests.support.haproxy import HAProxy
from tests.support.mta import Postfix, ServiceTable, free_ports, mta_folder
from tests.support.next_hop import RecordingNextHop
from tests.support.service import ServiceProcess
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.mta("postfix", "haproxy"), pytest.mark.timeout(180)]

_CLIENT: Final = "127.0.0.2"
_HELO: Final = "mx.client.example"
_HOSTNAME: Final = socket.gethostname()
_SINK_USER: Final = "nobody"
_TURNS: Final = 3
_numbers = count(1)


@pytest.fixture
def token() -> str:
    """Give a word that stands in no other test's messages."""
    return f"identity-{next(_numbers)}-of-this-test"


def service_with(
    folder: Path, next_hop: str, *, outbound: str = "", inbound: str = "", listen: str = "127.0.0.1:0"
) -> ServiceProcess:
    """Return a service, not started yet, with more options in the tables of the proxies."""
    service = ServiceProcess(folder, next_hop)
    service.configure(listen=listen)
    text = service.config.read_text()
    text = text.replace("[outbound]\n", f"[outbound]\n{outbound}\n", 1).replace(
        "[inbound]\n", f"[inbound]\n{inbound}\n", 1
    )
    service.config.write_text(text)
    return service


def connected(address: tuple[str, int], client: str = _CLIENT, helo: str = _HELO) -> smtplib.SMTP:
    """Return a connection of a client with an address and a name of its own, past EHLO."""
    connection = smtplib.SMTP(*address, local_hostname=helo, timeout=60, source_address=(client, 0))
    assert connection.ehlo()[0] == 250
    return connection


def send(connection: smtplib.SMTP, sender: str, recipient: str, token: str) -> None:
    """Hand a message over, each step of it accepted."""
    assert connection.mail(sender)[0] == 250
    assert connection.rcpt(recipient)[0] == 250
    assert connection.data(f"From: ann@remote.example\r\nSubject: {token}\r\n\r\ntext\r\n".encode())[0] == 250


# Behind HAProxy.


class TestBehindHAProxy:
    """The load balancer's address is in no record, and its checks are in no log."""

    @pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
    def test_log_and_journal_name_the_client(self, option: str, tmp_path: Path) -> None:
        """And the client is let in for its own address."""
        listed = f'proxy_protocol_from = ["127.0.0.1/32"]\nclients = ["{_CLIENT}/32"]'
        with (
            RecordingNextHop() as hop,
            service_with(tmp_path, hop.address, outbound=listed) as service,
            HAProxy(tmp_path, service.outbound, option) as balancer,
        ):
            with connected(("127.0.0.1", balancer.port)) as client:
                send(client, "joe@example.com", "bob@peer.example", "through the balancer")
            assert [record["client"] for record in service.journal()] == [_CLIENT]
            service.wait_for_log(rf"client=<?{re.escape(_CLIENT)}>?,.* helo=<?{_HELO}")
            with pytest.raises(smtplib.SMTPConnectError, match="554"):
                connected(("127.0.0.1", balancer.port), "127.0.0.3")

    @pytest.mark.parametrize(
        ("options", "lines", "status"),
        [
            ("send-proxy check-send-proxy", [], "UP L4OK"),
            ("send-proxy-v2 check-send-proxy", [], "UP L4OK"),
            ("send-proxy check-send-proxy", ["option smtpchk EHLO balancer.example"], "UP L7OK"),
            ("send-proxy-v2 check-send-proxy", ["option smtpchk EHLO balancer.example"], "UP L7OK"),
        ],
    )
    def test_health_checks_find_us_up_and_leave_no_line(
        self, options: str, lines: list[str], status: str, tmp_path: Path
    ) -> None:
        """A balancer that looks several times a second would fill the log otherwise."""
        listed = f'proxy_protocol_from = ["127.0.0.1/32"]\nclients = ["{_CLIENT}/32"]'
        with RecordingNextHop() as hop, service_with(tmp_path, hop.address, outbound=listed) as service:
            with _Counter(20) as counter:
                other = f"server counter 127.0.0.1:{counter.port} check check-send-proxy inter 50ms backup"
                check = f"{options} check inter 50ms"
                with HAProxy(tmp_path, service.outbound, check, [*lines, other]) as balancer:
                    # Both servers are looked at as often. A check that sends nothing would not even reach them: HAProxy
                    # then takes the second step of the handshake for an answer, and resets.
                    counter.wait()
                    assert balancer.status.replace(" * ", " ") == status
            service.stop()
            assert service.wait() == 0
            assert [line for line in service.log.splitlines() if not line.startswith("batv/INFO: ")] == []
            assert not re.search(r"client=|helo=", service.log)


class _Counter:
    """A port that counts its connections, for as long as the context lasts."""

    def __init__(self, wanted: int) -> None:
        self._server: Final = socket.create_server(("127.0.0.1", 0))
        self.port: Final = self._server.getsockname()[1]
        self._wanted: Final = wanted
        self._enough: Final = Event()
        self._thread: Final = Thread(target=self._count, name="counter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def wait(self) -> None:
        """Wait for as many connections as are wanted."""
        assert self._enough.wait(60)

    def _count(self) -> None:
        seen = 0
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            connection.close()
            seen += 1
            if seen == self._wanted:
                self._enough.set()


# In front of Postfix, and within it.


class Behind:
    """A Postfix with a port for each way to tell it who the client is, and one with a proxy filter.

    Attributes:
        postfix: the instance; joe and jim have mailboxes.
        ports: by the value of `next_hop_identity`.
        front: the port whose mail passes the proxy that listens at `filter`.
        filter: port of that proxy.
    """

    def __init__(self, folder: Path) -> None:
        xforward, xclient, proxied, self.front, self.filter = free_ports(5)
        self.ports: Final = {"xforward": xforward, "xclient": xclient, "proxy-v1": proxied, "proxy-v2": proxied}
        services = ServiceTable.shipped()
        services.put(
            f"""\
127.0.0.1:{xforward} inet n - n - - smtpd
  -o smtpd_authorized_xforward_hosts=127.0.0.1/32
127.0.0.1:{xclient} inet n - n - - smtpd
  -o smtpd_authorized_xclient_hosts=127.0.0.1/32
127.0.0.1:{proxied} inet n - n - - smtpd
  -o smtpd_upstream_proxy_protocol=haproxy
127.0.0.1:{self.front} inet n - n - - smtpd
  -o smtpd_proxy_filter=127.0.0.1:{self.filter}
"""
        )
        settings = [
            "mynetworks = 127.0.0.1/32",
            "header_checks = static:INFO",  # the log then has each line of a header, and the client as Postfix knows it
            "virtual_mailbox_domains = example.com",
            "virtual_mailbox_maps = inline:{ {joe@example.com=joe/}, {jim@example.com=jim/} }",
        ]
        self.postfix: Final = Postfix(folder / "postfix", "mail.example.com", settings, services, {})

    def heard_of(self, subject: str) -> tuple[str, str]:
        """Return the address of the client and its name in EHLO, as logged with a message."""
        found = self.postfix.wait_for_log(
            rf"info: header Subject: {re.escape(subject)} from unknown\[([0-9.]+)\]; .* helo=<(.+?)>"
        )
        return found[1], found[2]


@pytest.fixture(scope="module")
def behind() -> Iterator[Behind]:
    """Give the Postfix, running."""
    with mta_folder() as folder:
        site = Behind(folder)
        with site.postfix:
            yield site


_WAYS: Final = ("xforward", "xclient", "auto over xforward", "auto over xclient", "proxy-v1", "proxy-v2")


@pytest.mark.parametrize("identity", _WAYS)
class TestBeforePostfix:
    """What Postfix logs is the client that spoke to the proxy."""

    def test_postfix_knows_the_client(self, identity: str, behind: Behind, token: str, tmp_path: Path) -> None:
        """Its address and, where PROXY leaves room for it, its name are in the log of the message."""
        way, _, port = identity.partition(" over ")
        address = f"127.0.0.1:{behind.ports[port or way]}"
        with service_with(tmp_path, address, inbound=f'next_hop_identity = "{way}"') as service:
            with connected(service.inbound) as client:
                send(client, "ann@remote.example", "joe@example.com", token)
            assert behind.heard_of(token) == (_CLIENT, _HELO if "proxy" not in way else _HOSTNAME)
            assert not re.search(r"batv/(?:WARNING|ERROR)", service.log), service.log

    def test_no_message_goes_under_the_name_of_another_client(
        self, identity: str, behind: Behind, token: str, tmp_path: Path
    ) -> None:
        """Clients one after the other and side by side, with probes of forged bounces among their messages."""
        way, _, port = identity.partition(" over ")
        address = f"127.0.0.1:{behind.ports[port or way]}"

        def one(client: str) -> None:
            for turn in range(_TURNS):
                with connected(service.inbound, client, f"mx-{client}.example") as connection:
                    send(connection, "", "jim@example.com", f"forged-{token}")
                    for which in ("first", "second"):
                        send(connection, "ann@remote.example", "jim@example.com", f"{token}.{client}.{turn}.{which}")

        clients = [f"127.0.1.{number}" for number in range(2, 7)]
        with service_with(tmp_path, address, inbound=f'next_hop_identity = "{way}"') as service:
            with ThreadPoolExecutor(len(clients)) as pool:
                list(pool.map(one, clients))
            records = service.journal()
            assert not re.search(r"batv/(?:WARNING|ERROR)", service.log), service.log
        assert sorted(record["client"] for record in records) == sorted(clients * _TURNS)
        assert {record["disposition"] for record in records} == {"discard"}
        expected = [
            f"{token}.{client}.{turn}.{which}"
            for client in clients
            for turn in range(_TURNS)
            for which in ("first", "second")
        ]
        for subject in expected:
            client = subject.removeprefix(token)[1:].rsplit(".", 2)[0]
            assert behind.heard_of(subject) == (client, f"mx-{client}.example" if "proxy" not in way else _HOSTNAME)
        mailbox = behind.postfix.maildir("jim")
        mailbox.wait_for(token, len(expected))
        assert sorted(message["Subject"] for message in mailbox.holding(token)) == sorted(expected)


def test_within_postfix_the_journal_names_the_client(behind: Behind, token: str, tmp_path: Path) -> None:
    """As `smtpd_proxy_filter` the proxy is told with XFORWARD who the client is, and tells the Postfix behind it."""
    listed = 'xforward_from = ["127.0.0.1/32"]'
    address, listen = f"127.0.0.1:{behind.ports['xforward']}", f"127.0.0.1:{behind.filter}"
    with service_with(tmp_path, address, inbound=listed, listen=listen) as service:
        with connected(("127.0.0.1", behind.front)) as client:
            send(client, "", "joe@example.com", f"forged-{token}")
            send(client, "ann@remote.example", "joe@example.com", f"ordinary-{token}")
        assert behind.heard_of(f"ordinary-{token}") == (_CLIENT, _HELO)
        (record,) = service.journal()
        assert (record["client"], record["disposition"]) == (_CLIENT, "discard")
        service.wait_for_log(rf"client=<?{re.escape(_CLIENT)}>?,.* helo=<?{_HELO}")


def test_a_mail_store_takes_messages_over_lmtp(tmp_path: Path) -> None:
    """One recipient with each message; the client sends to the others in further transactions."""
    (port,) = free_ports(1)
    with mta_folder() as store:
        shutil.chown(store, _SINK_USER)
        command = [
            "/usr/sbin/smtp-sink",
            "-L",
            "-u",
            _SINK_USER,
            "-R",
            str(store),
            "-d",
            "m.",
            f"127.0.0.1:{port}",
            "10",
        ]
        with subprocess.Popen(command) as sink:
            try:
                until(lambda: _listening(port), "answer of smtp-sink")
                _through_lmtp(tmp_path, port)
            finally:
                sink.terminate()
        mails = [file.read_text() for file in store.iterdir()]
    heard = sorted(tuple(re.findall(r"(?m)^(?:X-Rcpt-Args|Subject): (.*)$", mail)) for mail in mails)
    assert heard == [("<jim@example.com>", "both"), ("<joe@example.com>", "both"), ("<joe@example.com>", "genuine")]


def _through_lmtp(folder: Path, port: int) -> None:
    service = service_with(folder, f"127.0.0.1:{port}")
    outbound, inbound, domains = service.config.read_text().partition("[inbound]")
    service.config.write_text(
        outbound + inbound + domains.replace("127.0.0.1:", "lmtp:127.0.0.1:").replace('["lmtp:', '["')
    )
    with service, connected(service.inbound) as client:
        client.mail("ann@remote.example")
        assert client.rcpt("joe@example.com")[0] == 250
        assert client.rcpt("jim@example.com") == (452, b"4.5.3 Send to this recipient in a transaction of its own")
        assert client.data(b"Subject: both\r\n\r\ntext\r\n")[0] == 250
        send(client, "ann@remote.example", "jim@example.com", "both")
        send(client, "", service.tagged(b"joe@example.com").decode(), "genuine")
        send(client, "", "joe@example.com", "forged")


def _listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except OSError:
        return False
    return True
