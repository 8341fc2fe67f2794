"""`batv sign`, `verify` and `strip`: one address, judged by the same stages as mail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from batv import signing, stage
from batv.address import Mailbox, ReversePath
from batv.cli import Site
from batv.cli.output import json_option, print_json, remark, text_of
from batv.day import Day
from batv.errors import NoSigningKeyError
from batv.verdict import Disposition, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from batv.config import Settings
    from batv.keyring import KeyRings
    from batv.signing import Verification

__all__ = ["HERE", "day_option", "parsed_mailbox", "reverse_path", "sign", "strip", "verified", "verify"]

Command = TypeVar("Command", bound="Callable[..., Any]")

_NO: Final = 1
HERE: Final = stage.Client("")
"""The client where nobody speaks to a proxy."""


def parsed_mailbox(text: str) -> Mailbox:
    """Return the mailbox that an argument names; raises AddressError where it names none."""
    # As the shell handed it over, octet for octet.
    return Mailbox.parse(text.encode("utf-8", "surrogateescape"))


def _mailbox(_ctx: click.Context, _param: click.Parameter, text: str) -> Mailbox:
    return parsed_mailbox(text)


def _day(_ctx: click.Context, _param: click.Parameter, text: str | None) -> Day | None:
    return None if text is None else Day.from_iso(text)


def _address_argument(command: Command) -> Command:
    return click.argument("address", callback=_mailbox)(command)


def day_option(command: Command) -> Command:
    """Give a command the option `--day`; it reaches the command as a Day, or None."""
    return click.option("--day", callback=_day, metavar="YYYY-MM-DD", help="Day in UTC; default: today.")(command)


@click.command()
@_address_argument
@day_option
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
    decision = signer.sender(reverse_path(address), HERE, site.rings(settings), day)
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
@day_option
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
    found = verified(address, settings, rings, day)
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


def verified(address: Mailbox, settings: Settings, rings: KeyRings, day: Day) -> Verification:
    """Return what the tag of an address is worth on a day; FOREIGN where its domain is not of ours."""
    policy = settings.policy.for_domain(address.domain)
    if policy is None:
        reason = f"{text_of(address.domain)} is not a domain of ours"
        return signing.Verification(Verdict.FOREIGN, reason, address)
    return signing.verify_any(address, rings.rings_for(address.domain, day), day, policy.draft_until)


def _last_day(found: Verification, day: Day) -> str:
    left = found.days_left or 0
    return f"good until {day + left}" if left else "good today for the last time"


def reverse_path(mailbox: Mailbox) -> ReversePath:
    """Return the reverse path that holds a mailbox."""
    return ReversePath(b"<%b>" % mailbox.octets, mailbox)


def _print_octets(mailbox: Mailbox) -> None:
    # As octets: what a terminal's character set would make of them is not the address.
    click.echo(mailbox.octets)
