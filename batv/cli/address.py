"""`batv sign`, `verify`, `strip` and `explain`: one address, judged by the same stages as mail."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from batv import signing, stage
from batv.address import NULL_REVERSE_PATH, ForwardPath, Mailbox, ReversePath
from batv.cli import Site
from batv.cli.output import json_option, print_fields, print_json, remark, text_of
from batv.day import CYCLE, Day, stamp_distance
from batv.errors import NoSigningKeyError
from batv.proxy.rollout import Rollout
from batv.rollout import Phase
from batv.store.rollout import RolloutStore
from batv.tag import take_off
from batv.verdict import FORGED, Disposition, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from batv.config import Settings
    from batv.keyring import KeyRings
    from batv.signing import Verification
    from batv.tag import Tagged

__all__ = ["explain", "sign", "strip", "verify"]

Command = TypeVar("Command", bound="Callable[..., Any]")

_NO: Final = 1
_HERE: Final = stage.Client("")


def _mailbox(_ctx: click.Context, _param: click.Parameter, text: str) -> Mailbox:
    # As the shell handed it over, octet for octet.
    return Mailbox.parse(text.encode("utf-8", "surrogateescape"))


def _day(_ctx: click.Context, _param: click.Parameter, text: str | None) -> Day | None:
    return None if text is None else Day.from_iso(text)


def _address_argument(command: Command) -> Command:
    return click.argument("address", callback=_mailbox)(command)


def _day_option(command: Command) -> Command:
    return click.option("--day", callback=_day, metavar="YYYY-MM-DD", help="Day in UTC; default: today.")(command)


@click.command()
@_address_argument
@_day_option
@json_option
@click.pass_context
def sign(ctx: click.Context, *, address: Mailbox, day: Day | None, as_json: bool) -> None:
    """Print the signed address.

    An address that mail would carry unsigned gives no output, the reason on standard error, and exit status 1.
    """
    site = ctx.ensure_object(Site)
    settings = site.settings()
    day = day or site.today()
    signer = stage.SigningStage(settings.policy, settings.tags.style)
    decision = signer.sender(_reverse_path(address), _HERE, site.rings(settings), day)
    if decision.disposition is Disposition.DEFER:
        raise NoSigningKeyError(decision.reason)
    if decision.verdict is not Verdict.SIGNED or decision.path.mailbox is None:
        remark(f"{address} stays unsigned: {decision.reason.removeprefix('unsigned: ')}")
        ctx.exit(_NO)
    signed = decision.path.mailbox
    if as_json:
        fields = {
            "address": text_of(address.octets),
            "signed": text_of(signed.octets),
            "key": decision.key_number,
        }
        print_json(fields | {"day": day.iso()})
    else:
        _print_octets(signed)


@click.command()
@_address_argument
@_day_option
@json_option
@click.pass_context
def verify(ctx: click.Context, *, address: Mailbox, day: Day | None, as_json: bool) -> None:
    """Say what the tag of an address is worth.

    The first word is the verdict: valid, untagged, malformed, unknown-key, bad-signature, expired, or foreign for a
    domain that is not of ours. Exit status 0 only for valid.
    """
    site = ctx.ensure_object(Site)
    settings = site.settings()
    day = day or site.today()
    rings = site.rings(settings)
    found = _verified(address, settings, rings, day)
    if as_json:
        print_json(
            {
                "verdict": str(found.verdict),
                "reason": found.reason,
                "address": text_of(found.mailbox.octets),
                "key": None if found.tag is None else found.tag.key_number,
                "case": None if found.case is None else found.case.value,
                "days_left": found.days_left,
                "day": day.iso(),
            }
        )
    else:
        words = f"{found.verdict} {found.mailbox}: {found.reason}"
        if found.key is not None and found.days_left is not None:
            words += f", key {found.key.number}, {_last_day(found, day)}"
        click.echo(words)
    ctx.exit(0 if found.verdict is Verdict.VALID else _NO)


@click.command()
@_address_argument
@json_option
def strip(*, address: Mailbox, as_json: bool) -> None:
    """Print the address without its tag, whatever the tag is worth."""
    stripped = signing.strip(address)
    if as_json:
        print_json({"address": text_of(address.octets), "stripped": text_of(stripped.octets)})
    else:
        _print_octets(stripped)


@click.command()
@_address_argument
@_day_option
@json_option
@click.pass_context
def explain(ctx: click.Context, *, address: Mailbox, day: Day | None, as_json: bool) -> None:
    """Say what the proxies would do with an address, and why."""
    site = ctx.ensure_object(Site)
    settings = site.settings()
    day = day or site.today()
    rollout = Rollout(settings)
    rollout.progress = RolloutStore(Path(settings.state.directory)).read()
    explained = _Explained(address, settings, site.rings(settings), day, rollout)
    if as_json:
        print_json(dict(explained.parts() | explained.bounce() | explained.mail()))
        return
    fields = explained.parts() | explained.bounce() | explained.mail()
    print_fields((name.replace("_", " "), "none" if value is None else str(value)) for name, value in fields.items())


@dataclass(frozen=True, slots=True)
class _Explained:
    """Everything there is to say about an address on a day."""

    address: Mailbox
    settings: Settings
    rings: KeyRings
    day: Day
    rollout: Rollout

    def parts(self) -> dict[str, object]:
        """Return the address, its tag piece by piece, and the key."""
        fields: dict[str, object] = {
            "address": text_of(self.address.octets),
            "today": self.day.iso(),
            "stamp_of_today": self.day.stamp.decode(),
        }
        tagged = take_off(self.address)
        if tagged is None:
            return fields | {"tag": None}
        tag = tagged.tag
        fields |= {
            "tag": tag.octets.decode(),
            "placement": tagged.placement.value,
            "without_tag": text_of(tagged.mailbox.octets),
            "key_number": tag.key_number,
            "key": self._key(tagged),
            "stamp": tag.stamp.decode(),
            "stamp_is_day": self._stamp_day(tagged).iso(),
            "signature": tag.signature.decode(),
        }
        found = _verified(self.address, self.settings, self.rings, self.day)
        if found.case is not None:
            fields["hashed_as"] = "lower case" if found.case.value == "fold" else "written"
        if found.days_left is not None:
            fields["days_left"] = found.days_left
        return fields

    def bounce(self) -> dict[str, object]:
        """Return what a bounce to the address would meet."""
        verifier = stage.VerifyingStage(self.rollout.applied(self.settings.policy))
        path = ForwardPath(b"<%b>" % self.address.octets, self.address)
        decision = verifier.recipient(NULL_REVERSE_PATH, path, _HERE, self.rings, self.day)
        goes_to = None
        if decision.disposition in {Disposition.PASS, Disposition.REWRITE, Disposition.MARK}:
            goes_to = text_of(decision.path.octets)
        return {
            "verdict": str(decision.verdict),
            "reason": decision.reason,
            "a_bounce_to_it": str(decision.disposition),
            "goes_on_to": goes_to,
            "rule": self._rule(decision.verdict, decision.reason),
        }

    def mail(self) -> dict[str, object]:
        """Return what mail from the address would meet."""
        signer = stage.SigningStage(self.settings.policy, self.settings.tags.style)
        path = _reverse_path(self.address)
        decision = signer.sender(path, _HERE, self.rings, self.day)
        if decision.verdict is Verdict.SIGNED:
            becomes = f"signed with key {decision.key_number}: {text_of(decision.path.octets)}"
            if signer.wants_recipient(path, _HERE, self.day):
                becomes += "; unsigned to recipients that are exempt"
        elif decision.disposition is Disposition.REJECT:
            becomes = f"answered 550: {decision.reason.removeprefix('unsigned: ')}"
        elif decision.disposition is Disposition.DEFER:
            becomes = f"answered 451: {decision.reason}"
        else:
            becomes = decision.reason
        return {"mail_from_it": becomes}

    def _key(self, tagged: Tagged) -> str:
        number = tagged.tag.key_number
        rings = self.rings.rings_for(self.address.domain, self.day)
        said = []
        for ring in rings:
            name = "default" if ring is self.rings.default else "own"
            key = ring.key(number)
            if key is None:
                said.append(f"not in the {name} ring")
                continue
            until = f", its tags are good until {key.last_alive}" if key.last_alive is not None else ""
            step = f", a tag for {key.step} days" if key.step != 1 else ""
            said.append(f"{key.role(self.day)} in the {name} ring, lifetime {key.lifetime} days{step}{until}")
        return "; ".join(said) or "there is no key ring"

    def _stamp_day(self, tagged: Tagged) -> Day:
        ahead = stamp_distance(tagged.tag.stamp, self.day)
        # A stamp names a day of every cycle; the nearest one is meant.
        return self.day + (ahead if ahead <= CYCLE // 2 else ahead - CYCLE)

    def _rule(self, verdict: Verdict, reason: str) -> str:
        policy = self.settings.policy.for_domain(self.address.domain)
        domain = text_of(self.settings.policy.name_for(self.address.domain) or self.address.domain)
        if verdict in FORGED and policy is not None:
            option = f"on_{verdict.word.replace('-', '_')}" if verdict in policy.by_verdict else "on_forged"
            rule = f'[domains."{domain}"] {option} = "{policy.disposition(verdict)}"'
            if (phase := self._phase()) is not Phase.ENFORCE:
                rule += f'; but rollout = "auto", which is at {phase.value}'
            if verdict is Verdict.UNTAGGED and policy.rescue:
                rule += "; but rescue = true, and what answers mail from it passes"
            return rule
        if verdict is Verdict.VALID:
            return "a genuine bounce goes on, its tag taken off"
        if verdict is Verdict.FOREIGN and policy is None:
            return f'there is no [domains."{domain}"], and [inbound] relay_domains does not have it'
        if verdict is Verdict.NOT_JUDGED and policy is not None and policy.left_alone(self.address) is not None:
            return f'[domains."{domain}"] leave_forms'
        if verdict is Verdict.NOT_JUDGED and policy is not None and policy.exempt_recipient(self.address) is not None:
            return f'[domains."{domain}"] exempt_recipients'
        if verdict is Verdict.NOT_JUDGED and policy is None:
            return "[inbound] relay_domains"
        return reason

    def _phase(self) -> Phase:
        name = self.settings.automatic.get(self.settings.policy.name_for(self.address.domain) or b"")
        if name is None:
            return Phase.ENFORCE
        progress = self.rollout.progress.get(name)
        return progress.phase if progress is not None else Phase.OBSERVE


def _verified(address: Mailbox, settings: Settings, rings: KeyRings, day: Day) -> Verification:
    policy = settings.policy.for_domain(address.domain)
    if policy is None:
        reason = f"{text_of(address.domain)} is not a domain of ours"
        return signing.Verification(Verdict.FOREIGN, reason, address)
    return signing.verify_any(address, rings.rings_for(address.domain, day), day, policy.draft_until)


def _last_day(found: Verification, day: Day) -> str:
    left = found.days_left or 0
    return f"good until {day + left}" if left else "good today for the last time"


def _reverse_path(mailbox: Mailbox) -> ReversePath:
    return ReversePath(b"<%b>" % mailbox.octets, mailbox)


def _print_octets(mailbox: Mailbox) -> None:
    # As octets: what a terminal's character set would make of them is not the address.
    click.echo(mailbox.octets)
