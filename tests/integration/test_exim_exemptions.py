"""Recipients that are exempt, with real Exim before the outbound proxy: each gets the message once, as he should."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.exim import Exim
from tests.support.mta import mta_folder
from tests.support.service import ServiceProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.next_hop import RecordingNextHop

pytestmark = [pytest.mark.mta("exim"), pytest.mark.root, pytest.mark.timeout(120)]

_JOE: Final = "joe@example.com"
_TAGGED: Final = re.compile(rb"<prvs=[0-9]{4}[0-9a-f]{6}=joe@example\.com>")
_PLAIN: Final = re.compile(rb"<joe@example\.com>")
_EXEMPTIONS: Final = """
[[exemptions]]
reason = "a list that knows its senders"
recipients = ["*@lists.example"]
"""
_USER: Final = 64991  # as scripts/mta/fetch-exim numbers it where the system has none

# Whoever is put off waits for a quarter of an hour, as with the rule that Debian has.
_SETTINGS: Final = """\
exim_path = {program}
exim_user = {user}
exim_group = {user}
primary_hostname = mail.example.com
spool_directory = {folder}/spool
log_file_path = {folder}/%slog
host_lookup =
keep_environment =
begin routers
batv:
  driver = manualroute
  domains = *
  transport = batv_out
  route_list = * {host}
  self = send
begin transports
batv_out:
  driver = smtp
  port = {port}
  allow_localhost
  {limit}
begin retry
* * F,2h,15m; G,16h,1h,1.5; F,4d,6h
"""


@pytest.fixture(scope="module")
def exim() -> Exim:
    """Give the program."""
    return Exim()


@pytest.fixture
def service(tmp_path: Path, next_hop: RecordingNextHop) -> Iterator[ServiceProcess]:
    """Give the proxies."""
    with ServiceProcess(tmp_path, next_hop.address, _EXEMPTIONS) as running:
        yield running


@pytest.fixture(params=["", "max_rcpt = 1"], ids=["together", "one-at-a-time"])
def config(request: pytest.FixtureRequest, exim: Exim, service: ServiceProcess) -> Iterator[Path]:
    """Give a configuration of Exim, in a folder of its own, with and without the line that keeps recipients apart."""
    host, port = service.outbound
    with mta_folder() as folder:
        (folder / "spool").mkdir()
        for path in (folder, folder / "spool"):
            os.chown(path, _USER, _USER)
        path = folder / "exim.conf"
        names = {"program": exim.program, "user": _USER, "folder": folder, "host": host, "port": port}
        path.write_text(_SETTINGS.format(**names, limit=request.param))
        yield path


@pytest.mark.parametrize(
    "recipients",
    [
        ("bob@peer.example", "list@lists.example", "ann@peer.example", "other@lists.example"),
        ("list@lists.example", "bob@peer.example", "other@lists.example", "ann@peer.example"),
    ],
    ids=["exempt-last", "exempt-first"],
)
def test_each_recipient_gets_the_message_once_and_as_he_should_at_the_first_try(
    exim: Exim, config: Path, service: ServiceProcess, next_hop: RecordingNextHop, recipients: tuple[str, ...]
) -> None:
    """Who hears 452 gets it in another transaction of the same connection: nobody waits in the queue."""
    exim.submit(config, _JOE, recipients, b"Subject: x\n\ntext\n")
    assert "Completed" in config.with_name("mainlog").read_text()
    replies = [record["reply"][:9] for record in service.journal()]
    assert replies.count("452 4.5.3") == (0 if "max_rcpt" in config.read_text() else 2)
    taken = {record["forward_path"]: record for record in service.journal() if record["reply"].startswith("250")}
    got = {path.decode(): message for message in next_hop.messages for path in message.recipients}
    assert sum(len(message.recipients) for message in next_hop.messages) == len(recipients)
    for path in (f"<{each}>" for each in recipients):
        exempt = path.endswith("@lists.example>")
        assert taken[path]["verdict"] == ("unsigned" if exempt else "signed")
        assert (_PLAIN if exempt else _TAGGED).fullmatch(got[path].mail)
        assert b"Subject: x\r\n" in got[path].content
