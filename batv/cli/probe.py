"""`batv probe`: sends a message whose bounce has to come home, and looks whether it does."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from batv.address import NULL_REVERSE_PATH, ForwardPath, ReversePath
from batv.cli import Site
from batv.cli.address import HERE
from batv.cli.output import json_option, print_json, remark
from batv.errors import ConfigError, TryAgainError
from batv.probe import WORD_DIGITS, Loop, Outcome, metrics
from batv.proxy.rollout import Rollout
from batv.report.probe import Course, Step
from batv.report.probe import probe as probed
from batv.stage import SigningStage, VerifyingStage
from batv.store.files import write_atomically
from batv.store.probe import ProbeStore
from batv.store.rollout import RolloutStore
from batv.verdict import Disposition, Verdict

if TYPE_CHECKING:
    from batv.address import Mailbox
    from batv.config import Endpoint, InboundSettings, OutboundSettings, Settings

__all__ = ["probe"]

_STATUS: Final = {Loop.WORKS: 0, Loop.INCONCLUSIVE: TryAgainError.exit_status, Loop.MISJUDGED: 1, Loop.BROKEN: 1}
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- not bound to, but read in the settings


@click.command()
@json_option
@click.pass_context
def probe(ctx: click.Context, *, as_json: bool) -> None:
    """Probe the whole loop: a message of [probe] sender bounces at another site, and its bounce has to come home.

    Then a bounce without a tag is tried, which has to fare as the settings say. Exit status 0 if all is as it is to be,
    75 if the probe could not be made, else 1. The other site gets one message in ten minutes at most.
    """
    site = ctx.ensure_object(Site)
    settings = site.settings()
    course = _course(site, settings)
    store = ProbeStore(Path(settings.state.directory))

    def tell(step: Step) -> None:
        # With --json the standard output is for the program that asked.
        click.echo(f"{step.name:<9} {step.loop.value:<13} {step.found}", err=as_json)

    steps = asyncio.run(probed(course, tell, lambda: store.begin(time.time())))
    worst = max(steps, key=lambda step: step.loop.severity)
    seconds = next((step.seconds for step in steps if step.seconds is not None), None)
    reason = f"{worst.name}: {worst.found}" if worst.loop is not Loop.WORKS else "the bounce came home"
    outcome = Outcome(worst.loop, reason, str(course.sender), time.time(), seconds)
    probes = store.end(outcome)
    if settings.probe.metrics_file is not None:
        write_atomically(Path(settings.probe.metrics_file), metrics(probes).encode(), mode=0o644)
    if worst.loop is Loop.BROKEN and worst.name == "bounce" and seconds is None:
        remark("the log of the queueing server says what became of it: a bounce of its own never passes the proxies")
    if as_json:
        told = [{"step": each.name, "result": each.loop.value, "found": each.found} for each in steps]
        fields = {"loop": outcome.loop.value, "reason": outcome.reason, "sender": outcome.sender}
        print_json({**fields, "bounce_seconds": seconds, "steps": told})
    else:
        click.echo(f"the loop: {outcome.loop.value}")
    ctx.exit(_STATUS[outcome.loop])


def _course(site: Site, settings: Settings) -> Course:
    wanted = settings.probe
    if wanted.sender is None or wanted.recipient is None:
        raise ConfigError("probe.sender is not set: there is nothing to probe with", "set [probe] sender and recipient")
    if settings.inbound is None:
        raise ConfigError("there is no [inbound]", "run this where the settings of the inbound proxy are")
    if settings.outbound is None and wanted.via is None:
        raise ConfigError("there is no [outbound]", "say with probe.via where mail of users is handed in")
    word = secrets.token_hex(WORD_DIGITS // 2)
    sender = wanted.sender.of(word)
    if settings.outbound is not None:
        _check_signed(site, settings, sender, wanted.recipient)
    _untagged(site, settings, sender)  # what is not judged is told before anything is sent
    return Course(
        senders=wanted.sender,
        word=word,
        recipient=wanted.recipient,
        via=wanted.via or _listens(settings.outbound, "outbound"),
        inbound=_listens(settings.inbound, "inbound"),
        patience=settings.next_hop,
        hostname=settings.smtp.hostname or socket.gethostname(),
        journal=Path(settings.state.directory) / "journal.jsonl",
        wait_seconds=wanted.wait_seconds,
        untagged=lambda: _untagged(site, site.settings(), sender),
    )


def _listens(listener: OutboundSettings | InboundSettings | None, side: str) -> Endpoint:
    """Return where a proxy can be connected to without TLS."""
    if listener is None or not listener.listen:
        remedy = "give it one on loopback" if side == "inbound" else "give it one, or set probe.via"
        raise ConfigError(f"{side}.listen names no address", remedy)
    endpoint = listener.listen[0]
    return endpoint.model_copy(update={"host": _WILDCARDS.get(endpoint.host, endpoint.host)})


def _check_signed(site: Site, settings: Settings, sender: Mailbox, recipient: Mailbox) -> None:
    """Raise ConfigError where the settings leave the message unsigned: any loop would look broken then."""
    path = ReversePath(b"<%b>" % sender.octets, sender)
    to = ForwardPath(b"<%b>" % recipient.octets, recipient)
    signer = SigningStage(settings.policy, settings.tags.style)
    decision = signer.sender_for(path, to, HERE, site.rings(settings), site.today())
    if (decision.verdict, decision.disposition) == (Verdict.UNSIGNED, Disposition.PASS):
        raise ConfigError(
            f"mail from {sender} to {recipient} is not signed: {decision.reason.removeprefix('unsigned: ')}",
            "name others in probe.sender and probe.recipient",
        )


def _untagged(site: Site, settings: Settings, sender: Mailbox) -> Disposition:
    """Return what a bounce without a tag to an address gets, as far as its domain has been switched on.

    Raises:
        ConfigError: it would not be judged.
    """
    rollout = Rollout(settings)
    rollout.progress = RolloutStore(Path(settings.state.directory)).read()
    verifier = VerifyingStage(rollout.applied(settings.policy))
    path = ForwardPath(b"<%b>" % sender.octets, sender)
    decision = verifier.recipient(NULL_REVERSE_PATH, path, HERE, site.rings(settings), site.today())
    if decision.verdict is not Verdict.UNTAGGED:
        raise ConfigError(f"bounces to {sender} are not judged: {decision.reason}", "name others in probe.sender")
    return decision.disposition
