"""A site as an administrator builds it from `scripts/mta/postfix`, with both proxies, and a remote site.

`example.com` is one host: MX, submission and mailboxes in one Postfix, wired through `batv serve`. The remote host has
another loopback address, so that it is a stranger to the site. It serves `strict.example`, which refuses unknown users
in the session, and `lax.example`, which takes mail for anybody and sends bounces later.
"""

from __future__ import annotations

import json
import re
import signal
import smtplib
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from tests.support.mta import Postfix, ServiceTable, free_ports, greeted, mta_folder
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Proxies", "Site", "running_site"]

_RECIPE: Final = Path(__file__).parents[2] / "scripts/mta/postfix"
_BATV: Final = Path(sys.executable).with_name("batv")
_SITE_HOST: Final = "127.0.0.1"
_REMOTE_HOST: Final = "127.0.0.2"
_STOP_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class _Ports:
    """Ports of the site, in the place of those that the recipe names."""

    mx: int  # smtp, 25
    submission: int  # submission, 587
    outbound: int  # 10025
    after_outbound: int  # 10026
    inbound: int  # 10027
    after_inbound: int  # 10028
    local: int  # 2525

    def put_into(self, recipe: str) -> str:
        """Return the recipe with these ports."""
        by_number = {
            "10025": self.outbound,
            "10026": self.after_outbound,
            "10027": self.inbound,
            "10028": self.after_inbound,
            "2525": self.local,
        }
        recipe = re.sub(r"\b(?:1002[5-8]|2525)\b", lambda match: str(by_number[match[0]]), recipe)
        recipe = re.sub(r"(?m)^smtp(?= +inet )", f"{_SITE_HOST}:{self.mx}", recipe)
        return re.sub(r"(?m)^submission(?= +inet )", f"{_SITE_HOST}:{self.submission}", recipe)


class Proxies:
    """Both proxies, as `batv serve` runs them, for as long as the context lasts.

    Args:
        folder: where configuration, keys and state go.
        ports: where they listen and where the next hops are.
        more: further settings, at the end.
    """

    def __init__(self, folder: Path, ports: _Ports, more: str = "") -> None:
        self._folder: Final = folder
        self._ports: Final = ports
        self._config: Final = folder / "batv.toml"
        folder.mkdir()
        self._config.write_text(
            f"""\
[keys]
directory = "keys"

[outbound]
listen = ["127.0.0.1:{ports.outbound}"]
next_hop = "127.0.0.1:{ports.after_outbound}"
clients = ["127.0.0.1/32"]
xforward_from = ["127.0.0.1/32"]
require_local_source = true

[inbound]
xforward_from = ["127.0.0.1/32"]
listen = ["127.0.0.1:{ports.inbound}"]
next_hop = "127.0.0.1:{ports.after_inbound}"

[domains."example.com"]
on_forged = "discard"

[state]
directory = "var"
{more}"""
        )

    def __enter__(self) -> Self:
        """Make a key and start; the proxies answer when this returns. Their next hop must answer by then."""
        self.command("key", "new")
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen([_BATV, "--config", self._config, "serve"], stderr=log, stdout=log)
        until(self._answers, "answer of the proxies")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and wait for the end."""
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(_STOP_SECONDS)
        assert status == 0, self.log()

    def command(self, *arguments: str, status: int = 0) -> str:
        """Return what a command of `batv` prints with this site's configuration; it ends with this exit status."""
        done = subprocess.run(
            [_BATV, "--config", self._config, *arguments], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout.strip()

    def log(self) -> str:
        """Return what the proxies have logged."""
        return (self._folder / "log").read_text()

    def journal(self, **fields: str) -> list[dict[str, Any]]:
        """Return the entries of the journal that have these values."""
        file = self._folder / "var/journal.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
        return [entry for entry in entries if fields.items() <= entry.items()]

    def wait_for_journal(self, **fields: str) -> dict[str, Any]:
        """Return the newest entry of the journal that has these values, once there is one."""
        return until(lambda: self.journal(**fields), f"journal entry with {fields}")[-1]

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"batv serve has ended: {self.log()}")
        return all(greeted("127.0.0.1", port) for port in (self._ports.outbound, self._ports.inbound))


@dataclass(frozen=True, slots=True)
class Site:
    """What tests work with.

    Attributes:
        home: the Postfix of `example.com`, whose users are joe and ann; mail for forward goes on to
            bob, mail for root to joe.
        remote: the Postfix of `strict.example` and `lax.example`, whose user is bob.
        proxies: those of `example.com`.
    """

    home: Postfix
    remote: Postfix
    proxies: Proxies
    _ports: _Ports
    _lax_port: int

    def submission(self) -> smtplib.SMTP:
        """Return a connection of a user of `example.com` to its submission port."""
        return smtplib.SMTP(_SITE_HOST, self._ports.submission, local_hostname="laptop.example.com", timeout=60)

    def mx(self, client: str = _REMOTE_HOST) -> smtplib.SMTP:
        """Return a connection of a stranger, or of another client, to the MX of `example.com`."""
        return smtplib.SMTP(
            _SITE_HOST, self._ports.mx, local_hostname="remote.example", timeout=60, source_address=(client, 0)
        )

    def inbound(self) -> smtplib.SMTP:
        """Return a connection to the inbound proxy, such as a server that faces the Internet has."""
        return smtplib.SMTP(_SITE_HOST, self._ports.inbound, local_hostname="front.example.com", timeout=60)

    def local(self) -> smtplib.SMTP:
        """Return a connection of a program of the site's host to the port for such programs."""
        return smtplib.SMTP(_SITE_HOST, self._ports.local, local_hostname="localhost", timeout=60)

    def lax_mx(self) -> smtplib.SMTP:
        """Return a connection to the MX of `lax.example`."""
        return smtplib.SMTP(_REMOTE_HOST, self._lax_port, local_hostname="anywhere.example", timeout=60)


@contextmanager
def running_site(variant: str = "", main: str = "", more: str = "") -> Iterator[Site]:
    """Start both hosts and the proxies, and stop them.

    Args:
        variant: name of a file of the recipe whose services stand in the place of those of its master.cf; or none.
        main: a further line of main.cf of `example.com`.
        more: further settings of the proxies.
    """
    ports = _Ports(*free_ports(7, _SITE_HOST))
    strict_port, lax_port = free_ports(2, _REMOTE_HOST)
    with ExitStack() as stack:
        folder = stack.enter_context(mta_folder())
        home = stack.enter_context(_home(folder / "home", ports, (strict_port, lax_port), variant, main))
        remote = stack.enter_context(_remote(folder / "remote", ports, strict_port, lax_port))
        proxies = stack.enter_context(Proxies(folder / "batv", ports, more))
        yield Site(home, remote, proxies, ports, lax_port)


def _home(folder: Path, ports: _Ports, remote_ports: tuple[int, int], variant: str, main: str) -> Postfix:
    recipe = (_RECIPE / "main.cf").read_text().strip().replace("/etc/postfix", f"{folder}/etc")
    strict, lax = (
        f"{{{name}.example=smtp:[{_REMOTE_HOST}]:{port}}}"
        for name, port in zip(("strict", "lax"), remote_ports, strict=True)
    )
    services = ServiceTable.shipped()
    for name in filter(None, ("master.cf", variant)):
        services.put(ports.put_into((_RECIPE / name).read_text()))
    return Postfix(
        folder,
        "mail.example.com",
        [
            f"mynetworks = {_SITE_HOST}/32",
            "myorigin = example.com",
            "postscreen_greet_wait = 1s",
            "virtual_mailbox_domains = example.com",
            "virtual_mailbox_maps = inline:{ {joe@example.com=joe/}, {ann@example.com=ann/} }",
            f"transport_maps = inline:{{ {strict}, {lax} }}",
            f"{recipe}, inline:{{ {{forward@example.com=bob@lax.example}}, {{root@example.com=joe@example.com}} }}",
            *filter(None, [main]),
        ],
        services,
        {"batv-strip": (_RECIPE / "batv-strip").read_text()},
    )


def _remote(folder: Path, ports: _Ports, strict_port: int, lax_port: int) -> Postfix:
    services = ServiceTable.shipped()
    services.put(
        f"{_REMOTE_HOST}:{strict_port} inet n - n - - smtpd\n"
        f"{_REMOTE_HOST}:{lax_port} inet n - n - - smtpd\n  -o smtpd_reject_unlisted_recipient=no\n"
    )
    return Postfix(
        folder,
        "mail.remote.example",
        [
            f"mynetworks = {_REMOTE_HOST}/32",
            f"smtp_bind_address = {_REMOTE_HOST}",
            "virtual_mailbox_domains = strict.example, lax.example",
            "virtual_mailbox_maps = inline:{ {bob@strict.example=bob/}, {bob@lax.example=bob/} }",
            f"transport_maps = inline:{{ {{example.com=smtp:[{_SITE_HOST}]:{ports.mx}}} }}",
        ],
        services,
        {},
    )
