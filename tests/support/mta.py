"""Real mail servers for tests: instances of Debian's Postfix with their own configuration, queue, log and ports.

The system's own instance is neither read nor touched. Only root can start a Postfix.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import smtplib
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tests.support.port import free_port
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from email.message import EmailMessage

__all__ = ["Maildir", "Postfix", "ServiceTable", "free_ports", "greeted", "mta_folder"]

_COMMANDS: Final = Path("/usr/sbin")
_SHIPPED_MASTER: Final = Path("/usr/share/postfix/master.cf.dist")
_STOP_SECONDS: Final = 30
_OWNER: Final = 65534  # nobody, as Debian numbers it: owns the mailboxes of tests


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return so many ports of a loopback address, each as `free_port` gives it."""
    return [free_port(host) for _ in range(count)]


def greeted(host: str, port: int) -> bool:
    """Whether an SMTP server answers there."""
    try:
        with smtplib.SMTP(host, port, local_hostname="probe.example", timeout=10) as client:
            return client.noop()[0] == 250
    except (OSError, smtplib.SMTPException):
        return False


@contextmanager
def mta_folder() -> Iterator[Path]:
    """Give a folder that the users of mail servers may enter, as they may not enter pytest's, and remove it."""
    folder = Path(tempfile.mkdtemp(prefix="batv-mta-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


class Maildir:
    """A user's mailbox.

    Args:
        path: the Maildir's folder, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path

    def messages(self) -> list[EmailMessage]:
        """Return the messages that were delivered, the oldest first."""
        files = sorted((self.path / "new").glob("*"), key=lambda file: file.stat().st_mtime_ns)
        return [message_from_bytes(file.read_bytes(), policy=policy.default) for file in files]

    def holding(self, token: str) -> list[EmailMessage]:
        """Return the messages in which the token stands, in any part of them."""
        return [message for message in self.messages() if token in message.as_string()]

    def wait_for(self, token: str, count: int = 1) -> EmailMessage:
        """Return the newest message in which the token stands, once there are so many of them."""

        def look() -> list[EmailMessage]:
            found = self.holding(token)
            return found if len(found) >= count else []

        return until(look, f"message with {token} in {self.path}")[-1]


@dataclass(slots=True)
class ServiceTable:
    """What master.cf says: the entries, by name and type of the service."""

    entries: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def shipped(cls) -> ServiceTable:
        """Return Debian's table without network services, and without chroot: these queues hold no libraries."""
        table = cls()
        table.put(_SHIPPED_MASTER.read_text())
        for (name, kind), entry in list(table.entries.items()):
            if kind == "inet":
                del table.entries[name, kind]
            else:
                table.entries[name, kind] = re.sub(r"^((?:\S+\s+){4})[y-]", r"\1n", entry)
        return table

    def put(self, text: str) -> None:
        """Put in the entries of a master.cf, in the place of those of the same name and type."""
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        for entry in re.split(r"\n(?=\S)", "\n".join(lines)):
            name, kind, _ = entry.split(maxsplit=2)
            self.entries[name, kind] = entry

    def __str__(self) -> str:
        """Return the table as a master.cf."""
        return "".join(f"{entry}\n" for entry in self.entries.values())


class Postfix:
    """One instance of Postfix, running as long as the context lasts.

    Args:
        folder: where everything of the instance goes; users of mail servers may enter it.
        name: its host name.
        settings: lines of main.cf beside those that make the instance independent; later ones count.
        services: its master.cf.
        files: further files of its configuration, by name; they go to `folder / "etc"`.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: Sequence[str],
        services: ServiceTable,
        files: Mapping[str, str],
    ) -> None:
        self.name: Final = name
        self.etc: Final = folder / "etc"
        self.mail: Final = folder / "mail"
        self.log_file: Final = folder / "mail.log"
        self._queue: Final = folder / "queue"
        for directory in (self.etc, self.mail, self._queue):
            directory.mkdir(parents=True)
        data = folder / "data"
        data.mkdir()
        shutil.chown(data, "postfix")
        os.chown(self.mail, _OWNER, -1)
        base = [
            "compatibility_level = 3.6",
            f"queue_directory = {self._queue}",
            f"data_directory = {data}",
            f"maillog_file = {self.log_file}",
            f"maillog_file_prefixes = {folder}",
            f"myhostname = {name}",
            "mydestination =",
            "alias_maps =",
            "alias_database =",
            "local_recipient_maps =",
            "inet_protocols = ipv4",
            "inet_interfaces = 127.0.0.1",  # an interface's own address; where it listens is for its master.cf
            "smtp_dns_support_level = disabled",
            "smtpd_peername_lookup = no",
            "smtp_host_lookup = native",
            f"virtual_mailbox_base = {self.mail}",
            "virtual_mailbox_limit = 0",
            f"virtual_uid_maps = static:{_OWNER}",
            f"virtual_gid_maps = static:{_OWNER}",
        ]
        for file, text in {**files, "main.cf": "\n".join([*base, *settings, ""]), "master.cf": str(services)}.items():
            (self.etc / file).write_text(text)

    def __enter__(self) -> Self:
        """Start the instance; its ports take connections when this returns."""
        started = self._run("postfix", "-c", self.etc, "start")
        if started.returncode != 0:
            raise AssertionError(f"{self.name} does not start: {started!r}\n{self.log()}")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the instance and wait for its end."""
        pid = int((self._queue / "pid/master.pid").read_text())
        with _process(pid) as ended:
            os.kill(pid, signal.SIGTERM)
            if not select.select([ended], [], [], _STOP_SECONDS)[0]:
                raise AssertionError(f"{self.name} does not stop: {self.log()}")

    def maildir(self, user: str) -> Maildir:
        """Return the mailbox of a user for whom `virtual_mailbox_maps` says `USER/`."""
        return Maildir(self.mail / user)

    def log(self) -> str:
        """Return what the instance has logged."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        """Return the first match of a regular expression in the log, once it is there."""
        return until(lambda: re.search(pattern, self.log()), f"/{pattern}/ in the log of {self.name}")

    def sendmail(self, message: bytes, *arguments: str) -> None:
        """Submit a message as programs of this host do."""
        sent = self._run("sendmail", "-C", self.etc, *arguments, stdin=message)
        if sent.returncode != 0:
            raise AssertionError(f"sendmail: {sent.stderr.decode()}")

    def queued(self) -> str:
        """Return what the queue holds, as text for people."""
        return self._run("postqueue", "-c", self.etc, "-p").stdout.decode()

    def flush(self) -> None:
        """Try now whatever waits in the queue to be tried again."""
        self._run("postqueue", "-c", self.etc, "-f")

    @staticmethod
    def _run(program: str, *arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [_COMMANDS / program, *arguments], input=stdin, capture_output=True, check=False, timeout=60
        )


@contextmanager
def _process(pid: int) -> Iterator[int]:
    """Give a descriptor that becomes readable when the process ends."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
