"""`batv key`: the ring of keys.

Each change is worked out by `batv.keyring`, which knows the rules, and carried out by `batv.store.rings` under a
lock. What is left to this module: words, and secrets, which it makes, reads and hands over, and never prints unless
told to.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from batv.cli.output import json_option, print_json, print_table, remark
from batv.errors import ConfigError, IoError, KeyRingDataError, KeyRingRuleError
from batv.keyring import (
    DEFAULT_LIFETIME_DAYS,
    MAX_LIFETIME_DAYS,
    MAX_STEP_DAYS,
    SECRET_OCTETS,
    Key,
    KeyRing,
    Role,
    Secret,
)
from batv.mac import Case
from batv.store.files import read_bounded, write_atomically
from batv.store.rings import MAX_SECRET_OCTETS

if TYPE_CHECKING:
    from collections.abc import Callable

    from batv.cli import Site
    from batv.config import Settings
    from batv.day import Day
    from batv.store.rings import RingStore

__all__ = ["key"]

Command = TypeVar("Command", bound="Callable[..., Any]")

_LONG_SIGNING_DAYS: Final = 300
"""After so many days of signing a key is due: every message gives away one more pair of address and tag."""

_EXIM_SECRET_OCTETS: Final = 64
"""SHA-1's block: up to there every HMAC uses the secret as it is."""

_EXIM_LIFETIME_DAYS: Final = 7
"""Exim's `prvs` puts the day seven days ahead."""

_STANDARD_OUTPUT: Final = "-"

_EXACT: Final = 'set [tags] case = "exact" to sign alike'

_NUMBER = click.IntRange(0, 9)
_DAYS = click.IntRange(0, 365)


def _domain_option(command: Command) -> Command:
    return click.option("--domain", metavar="D", help="The domain's own ring, not the default ring.")(command)


def _number_argument(example: str) -> Callable[[Command], Command]:
    """Give a command the number of a key; where it is missing, an example says how to give it."""

    def given(ctx: click.Context, _param: click.Parameter, number: int | None) -> int:
        if number is None:
            raise click.UsageError(f"which key? Give its number, as in '{example}'", ctx)
        return number

    return click.argument("number", type=_NUMBER, required=False, callback=given, metavar="NUMBER")


def _dry_run_option(command: Command) -> Command:
    return click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")(command)


def _lifetime_option(command: Command) -> Command:
    return click.option(
        "--lifetime",
        type=click.IntRange(1, MAX_LIFETIME_DAYS),
        metavar="DAYS",
        help=f"Days for which tags of the key are good; default: as the signing key, else {DEFAULT_LIFETIME_DAYS}.",
    )(command)


def _step_option(command: Command) -> Command:
    return click.option(
        "--step",
        type=click.IntRange(1, MAX_STEP_DAYS),
        metavar="DAYS",
        help="Days for which an address keeps one tag; default: what tags.step says.",
    )(command)


@dataclass(frozen=True, slots=True)
class _Ring:
    """The ring that a command is about.

    Attributes:
        store: where it is kept.
        domain: whose it is; None for the default ring.
        settings: the settings.
        today: the day in UTC.
    """

    store: RingStore
    domain: bytes | None
    settings: Settings
    today: Day

    @classmethod
    def of(cls, site: Site, domain: str | None) -> _Ring:
        settings = site.settings()
        octets = None
        if domain is not None:
            octets = domain.lower().encode("utf-8", "surrogateescape")
            if settings.policy.for_domain(octets) is None:
                raise ConfigError(
                    f"{domain} is not a domain of the configuration",
                    f'add [domains."{domain}"] to {site.config_path}',
                )
        return cls(site.store(settings), octets, settings, site.today())

    @property
    def option(self) -> str:
        """What further commands about the same ring need."""
        return "" if self.domain is None else f" --domain {self.domain.decode()}"

    @property
    def name(self) -> str | None:
        return None if self.domain is None else self.domain.decode()

    def change(self, change: Callable[[KeyRing], KeyRing], *, dry_run: bool, begin: bool = False) -> KeyRing:
        """Change the ring; `begin`: one that is not there yet is begun."""

        def changed(ring: KeyRing | None) -> KeyRing:
            if ring is None:
                ring = KeyRing(self.today, domain=self.domain) if begin else self.store.read(self.domain)
            return change(ring)

        return self.store.change(self.domain, changed, dry_run=dry_run)

    def say(self, ring: KeyRing, done: list[str], *, dry_run: bool, as_json: bool) -> None:
        """Print what was done, and warn where mail would be deferred."""
        if as_json:
            print_json({"domain": self.name, "dry_run": dry_run, "done": done, "keys": _described(ring, self.today)})
        else:
            for line in done:
                click.echo(f"would: {line}" if dry_run else line)
        gap = ring.unsigned_from(self.today)
        if gap is not None:
            remark(f"{_unsigned(ring, gap, self.today)}: {ring.signing_remedy}")


@click.group(no_args_is_help=False)
def key() -> None:
    """Make, list and change keys.

    A ring holds up to ten keys, of which one signs. `new` and `rotate` make a key, `activate` lets one sign,
    `retire` and `revoke` end it, `prune` removes what is spent.
    """


@key.command()
@_domain_option
@_lifetime_option
@_step_option
@click.option("--printable", is_flag=True, help="Make a secret that Exim can share: letters, digits, '-' and '_'.")
@_dry_run_option
@json_option
@click.pass_obj
def new(  # noqa: PLR0913 -- one for each option
    site: Site,
    *,
    domain: str | None,
    lifetime: int | None,
    step: int | None,
    printable: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a key: it signs at once where no key does, else it only verifies until it is activated."""
    at = _Ring.of(site, domain)
    secret = Secret(_printable_secret() if printable else secrets.token_bytes(SECRET_OCTETS))
    done: list[str] = []

    def change(ring: KeyRing) -> KeyRing:
        number = ring.free_number(at.today)
        made = Key(number, secret, at.today, _lifetime(lifetime, ring, at.today), step=step or at.settings.tags.step)
        return _joined(ring, made, at, done, "key {} made")

    ring = at.change(change, dry_run=dry_run, begin=True)
    at.say(ring, done, dry_run=dry_run, as_json=as_json)
    if at.domain is not None and len(ring.keys) == 1 and not dry_run:
        _tell_to_copy(ring, at.today, at.today)


@key.command(name="list")
@_domain_option
@json_option
@click.pass_obj
def list_(site: Site, *, domain: str | None, as_json: bool) -> None:
    """List the keys of all rings, or of one.

    The days: for how many a tag of the key is good (lifetime), and for how many the key that signs has signed (days).
    """
    at = _Ring.of(site, domain)
    rings: list[tuple[bytes | None, KeyRing]] = []
    if domain is not None:
        rings.append((at.domain, at.store.read(at.domain)))
    else:
        rings += [(owner, ring) for owner in (None, *at.store.domains()) if (ring := at.store.find(owner)) is not None]
        if not rings:
            at.store.read(None)
    if as_json:
        listed = [
            {
                "domain": None if owner is None else owner.decode(),
                "file": str(at.store.path(owner)),
                "created": ring.created.iso(),
                "keys": _described(ring, at.today),
            }
            for owner, ring in rings
        ]
        print_json({"today": at.today.iso(), "rings": listed})
    else:
        head = (
            "ring",
            "key",
            "role",
            "signs from",
            "retired",
            "tags alive until",
            "lifetime",
            "days",
            "remarks",
        )
        print_table(head, [row for owner, ring in rings for row in _rows(owner, ring, at.today)])
    for _, ring in rings:
        _warn(ring, at.today)


@key.command()
@_domain_option
@_lifetime_option
@_step_option
@click.option(
    "--activate-in",
    type=_DAYS,
    default=1,
    show_default=True,
    metavar="DAYS",
    help="Days until the new key signs: time for every node to get the ring.",
)
@click.option("--printable", is_flag=True, help="Make a secret that Exim can share: letters, digits, '-' and '_'.")
@_dry_run_option
@json_option
@click.pass_obj
def rotate(  # noqa: PLR0913 -- one for each option
    site: Site,
    *,
    domain: str | None,
    lifetime: int | None,
    step: int | None,
    activate_in: int,
    printable: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make the next key; it signs from a later day, and the old one verifies until its last tag has expired."""
    at = _Ring.of(site, domain)
    secret = Secret(_printable_secret() if printable else secrets.token_bytes(SECRET_OCTETS))
    done: list[str] = []
    on = at.today + activate_in

    def change(ring: KeyRing) -> KeyRing:
        number = ring.free_number(at.today)
        made = Key(number, secret, at.today, _lifetime(lifetime, ring, at.today), step=step or at.settings.tags.step)
        ring = ring.with_key(made, at.today)
        done.append(f"key {number} made: it verifies now, and signs from {on}")
        return _activated(ring, number, at, on, done)

    ring = at.change(change, dry_run=dry_run)
    at.say(ring, done, dry_run=dry_run, as_json=as_json)
    if not dry_run:
        _tell_to_copy(ring, on, at.today)


@key.command()
@_number_argument("batv key activate 1")
@_domain_option
@click.option("--activate-in", type=_DAYS, default=0, show_default=True, metavar="DAYS", help="Days until it signs.")
@_dry_run_option
@json_option
@click.pass_obj
def activate(  # noqa: PLR0913 -- one for each option
    site: Site, *, number: int, domain: str | None, activate_in: int, dry_run: bool, as_json: bool
) -> None:
    """Let a pending key sign; the key that signs until then stops, and goes on verifying."""
    at = _Ring.of(site, domain)
    done: list[str] = []
    on = at.today + activate_in

    def change(ring: KeyRing) -> KeyRing:
        changed = _activated(ring, number, at, on, done)
        done.insert(0, f"key {number} signs from {on}")
        return changed

    ring = at.change(change, dry_run=dry_run)
    at.say(ring, done, dry_run=dry_run, as_json=as_json)
    if not dry_run:
        _tell_to_copy(ring, on, at.today)


@key.command()
@_number_argument("batv key retire 0")
@_domain_option
@click.option("--force", is_flag=True, help="Even if no key signs then.")
@_dry_run_option
@json_option
@click.pass_obj
def retire(  # noqa: PLR0913 -- one for each option
    site: Site, *, number: int, domain: str | None, force: bool, dry_run: bool, as_json: bool
) -> None:
    """Let a key sign no more; its tags stay good until they expire."""
    at = _Ring.of(site, domain)
    done: list[str] = []

    def change(ring: KeyRing) -> KeyRing:
        changed = ring.with_retired(number, at.today)
        gap = changed.unsigned_from(at.today)
        if gap is not None and gap != ring.unsigned_from(at.today) and not force:
            raise KeyRingRuleError(
                f"without key {number} {_unsigned(ring, gap, at.today)}",
                f"run 'batv key rotate{at.option}', which retires it when the next key signs, or say --force",
            )
        last = _key(changed, number).last_alive
        if _key(ring, number).role(at.today) is Role.PENDING:
            done.append(f"key {number} will not sign; its number is free after {last}")
        else:
            done.append(f"key {number} signs no more; its tags stay good until {last}")
        _tell_others(ring, changed, number, done)
        return changed

    ring = at.change(change, dry_run=dry_run)
    at.say(ring, done, dry_run=dry_run, as_json=as_json)


@key.command()
@_number_argument("batv key revoke 0")
@_domain_option
@click.option("--force", is_flag=True, help="Even if no key signs then.")
@_dry_run_option
@json_option
@click.pass_obj
def revoke(  # noqa: PLR0913 -- one for each option
    site: Site, *, number: int, domain: str | None, force: bool, dry_run: bool, as_json: bool
) -> None:
    """Let a key count for nothing from now on: bounces of mail that it signed are taken for forged."""
    at = _Ring.of(site, domain)
    done: list[str] = []

    def change(ring: KeyRing) -> KeyRing:
        changed = ring.with_revoked(number, at.today)
        gap = changed.unsigned_from(at.today)
        if gap is not None and gap != ring.unsigned_from(at.today) and not force:
            raise KeyRingRuleError(
                f"without key {number} {_unsigned(ring, gap, at.today)}",
                f"first run '{_successor(ring, number, at)}', then 'batv key revoke {number}{at.option}'; or say"
                " --force",
            )
        done.append(
            f"key {number} revoked: bounces of mail that it signed count as forged from now on;"
            f" its number is free after {_key(changed, number).last_alive}"
        )
        _tell_others(ring, changed, number, done)
        return changed

    ring = at.change(change, dry_run=dry_run)
    at.say(ring, done, dry_run=dry_run, as_json=as_json)
    if not dry_run:
        remark(
            f"if other hosts share {ring.name}, they go on accepting key {number} until they have the ring:"
            " copy it to them now"
        )


@key.command()
@_domain_option
@click.option("--number", type=_NUMBER, help="Only this key.")
@_dry_run_option
@json_option
@click.pass_obj
def prune(site: Site, *, domain: str | None, number: int | None, dry_run: bool, as_json: bool) -> None:
    """Remove the keys of which no tag is alive."""
    at = _Ring.of(site, domain)
    done: list[str] = []

    def change(ring: KeyRing) -> KeyRing:
        doomed = [spent.number for spent in ring.prunable(at.today)] if number is None else [number]
        for one in doomed:
            ring = ring.pruned(one, at.today)
            done.append(f"key {one} removed")
        for kept in ring.keys if number is None else ():
            last = kept.last_alive
            until = f"until {last}" if last is not None else "for as long as it may sign"
            done.append(f"key {kept.number} kept {until} ({kept.role(at.today)})")
        return ring

    ring = at.change(change, dry_run=dry_run)
    at.say(ring, done, dry_run=dry_run, as_json=as_json)


@key.command(name="import")
@_domain_option
@click.option("--number", type=_NUMBER, required=True, help="The K of its tags.")
@click.option(
    "--secret-file",
    required=True,
    metavar="FILE",
    help="Its octets are the secret; one final newline is dropped.",
)
@_lifetime_option
@click.option("--allow-weak", is_flag=True, help="Take a secret shorter than 16 octets.")
@_dry_run_option
@json_option
@click.pass_obj
def import_(  # noqa: PLR0913 -- one for each option
    site: Site,
    *,
    domain: str | None,
    number: int,
    secret_file: str,
    lifetime: int | None,
    allow_weak: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take in a key that is shared with Exim or batv-tools."""
    at = _Ring.of(site, domain)
    secret = _secret_from(secret_file)
    done: list[str] = []

    def change(ring: KeyRing) -> KeyRing:
        taken = Key(number, secret, at.today, _lifetime(lifetime, ring, at.today))
        if taken.weak and not allow_weak:
            raise KeyRingRuleError(
                f"the secret in {secret_file} has {len(secret.octets)} octets, so one harvested tag lets it be guessed",
                "share one of 16 octets or more, or say --allow-weak",
            )
        return _joined(ring, taken, at, done, "key {} taken in")

    ring = at.change(change, dry_run=dry_run, begin=True)
    at.say(ring, done, dry_run=dry_run, as_json=as_json)
    if at.settings.tags.case is Case.FOLD:
        remark(f"addresses with capitals get other tags from Exim and batv-tools: {_EXACT}")


@key.command()
@_number_argument("batv key export 1 --exim --out exim.secret")
@_domain_option
@click.option(
    "--out",
    metavar="FILE",
    help="File to write, mode 0600, that must not be there yet; '-': standard output.",
)
@click.option("--exim", is_flag=True, help="Check that Exim can share the key, and say how.")
@json_option
@click.pass_obj
def export(  # noqa: PLR0913 -- one for each option
    site: Site, *, number: int, domain: str | None, out: str | None, exim: bool, as_json: bool
) -> None:
    """Hand over the secret of one key, as its raw octets. Whole rings move by copying their files."""
    at = _Ring.of(site, domain)
    if out is None and not exim:
        raise click.UsageError("say --out FILE, or --out - for standard output", click.get_current_context())
    if out == _STANDARD_OUTPUT and as_json:
        raise click.UsageError("--json and --out - exclude each other", click.get_current_context())
    ring = at.store.read(at.domain)
    found = ring.key(number)
    if found is None:
        raise KeyRingRuleError(f"there is no key {number} in {ring.name}", f"see 'batv key list{at.option}'")
    if exim:
        _check_exim(found, at.option)
    done = _handed_over(found, out)
    if exim:
        file = "FILE" if out is None or out == _STANDARD_OUTPUT else Path(out).absolute()
        done.append(f"Exim signs alike with ${{prvs{{ADDRESS}}{{${{readfile{{{file}}}}}}}{{{number}}}}}")
    if as_json:
        print_json(
            {
                "domain": at.name,
                "number": number,
                "out": out,
                "octets": len(found.secret.octets),
                "done": done,
            }
        )
    else:
        for line in done:
            click.echo(line, err=out == _STANDARD_OUTPUT)
    if exim and at.settings.tags.case is Case.FOLD:
        remark(f"addresses with capitals get other tags from Exim: {_EXACT}")


@key.command()
@_dry_run_option
@json_option
@click.pass_obj
def seal(site: Site, *, dry_run: bool, as_json: bool) -> None:
    """Seal all rings under the master key that the settings name."""
    changed = site.store(site.settings()).seal(dry_run=dry_run)
    _say_files(changed, "sealed", dry_run=dry_run, as_json=as_json)


@key.command()
@_dry_run_option
@json_option
@click.pass_obj
def unseal(site: Site, *, dry_run: bool, as_json: bool) -> None:
    """Make all rings plain again; afterwards take the master key out of the settings."""
    changed = site.store(site.settings()).unseal(dry_run=dry_run)
    _say_files(changed, "unsealed", dry_run=dry_run, as_json=as_json)


def _handed_over(found: Key, out: str | None) -> list[str]:
    if out is None:
        return []
    if out == _STANDARD_OUTPUT:
        click.echo(found.secret.octets, nl=False)
        return []
    write_atomically(Path(out), found.secret.octets, replace=False)
    return [f"secret of key {found.number} written to {out}"]


def _say_files(paths: tuple[Path, ...], word: str, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({"dry_run": dry_run, word: [str(path) for path in paths]})
        return
    for path in paths:
        click.echo(f"would: {path} {word}" if dry_run else f"{path} {word}")
    if not paths:
        click.echo(f"every ring is {word} already")


def _joined(ring: KeyRing, made: Key, at: _Ring, done: list[str], words: str) -> KeyRing:
    changed = ring.with_newcomer(made, at.today)
    said = words.format(made.number)
    joined = _key(changed, made.number)
    if joined.role(at.today) is Role.SIGNING:
        until = f" until {joined.retired}, when another key begins" if joined.retired is not None else ""
        done.append(f"{said}: it signs from today{until}")
    else:
        done.append(f"{said}: it verifies, and signs after 'batv key activate {made.number}{at.option}'")
    return changed


def _activated(ring: KeyRing, number: int, at: _Ring, on: Day, done: list[str]) -> KeyRing:
    changed = ring.activated(number, at.today, on)
    _tell_others(ring, changed, number, done)
    return changed


def _tell_others(ring: KeyRing, changed: KeyRing, number: int, done: list[str]) -> None:
    """Say what a change of one key means for the others."""
    for old, now in zip(ring.keys, changed.keys, strict=True):
        if old.number == number or old == now:
            continue
        if now.retired is None and now.signs_from is not None:
            done.append(f"key {now.number} goes on signing")
        elif now.retired is not None:
            done.append(f"key {now.number} stops signing on {now.retired}; its tags stay good until {now.last_alive}")
        else:
            done.append(f"key {now.number} is no longer set to sign from {old.signs_from}; it goes on verifying")


def _key(ring: KeyRing, number: int) -> Key:
    return next(found for found in ring.keys if found.number == number)


def _lifetime(asked: int | None, ring: KeyRing, day: Day) -> int:
    if asked is not None:
        return asked
    return ring.signing_key(day).lifetime if ring.signs(day) else DEFAULT_LIFETIME_DAYS


def _printable_secret() -> bytes:
    # 43 letters, digits, '-' and '_': nothing that a configuration file would take for syntax.
    return secrets.token_urlsafe(SECRET_OCTETS).encode("ascii")


def _secret_from(path: str) -> Secret:
    try:
        octets = read_bounded(Path(path), MAX_SECRET_OCTETS + 1)
    except FileNotFoundError as error:
        raise IoError(f"there is no file {path}", "name the file that holds the secret") from error
    octets = octets.removesuffix(b"\n")
    if not octets:
        raise KeyRingDataError(f"{path} holds no secret", "name the file that holds the secret")
    if len(octets) > MAX_SECRET_OCTETS:
        raise KeyRingDataError(
            f"{path} is longer than {MAX_SECRET_OCTETS} octets", "name the file that holds the secret"
        )
    if octets.endswith(b"\r"):
        remark(f"the secret in {path} ends with a carriage return, which counts: was the file written on Windows?")
    return Secret(octets)


def _check_exim(found: Key, option: str) -> None:
    octets = found.secret.octets
    remedy = f"make one that it can with 'batv key new --printable{option}'"
    if any(octet < 0x20 or octet == 0x7F for octet in octets):  # noqa: PLR2004 -- ASCII's controls
        raise KeyRingRuleError(f"Exim cannot share key {found.number}: its secret has NUL or control octets", remedy)
    if len(octets) > _EXIM_SECRET_OCTETS:
        raise KeyRingRuleError(
            f"Exim cannot share key {found.number}: its secret has more than {_EXIM_SECRET_OCTETS} octets",
            remedy,
        )
    if found.step != 1:
        remark(f"Exim takes no tag whose day lies more than {_EXIM_LIFETIME_DAYS} days ahead: use a key with --step 1")
    if found.lifetime != _EXIM_LIFETIME_DAYS:
        remark(f"Exim's tags are good for {_EXIM_LIFETIME_DAYS} days, those of key {found.number} for {found.lifetime}")


def _tell_to_copy(ring: KeyRing, on: Day, today: Day) -> None:
    when = "now" if on <= today else f"before {on}"
    remark(f"if other hosts share {ring.name}, copy it to them {when}: without it they take the new tags for forged")


def _unsigned(ring: KeyRing, day: Day, today: Day) -> str:
    when = "today" if day <= today else f"from {day} on"
    return f"no key of {ring.name} signs {when}, and mail is then answered 451"


def _successor(ring: KeyRing, number: int, at: _Ring) -> str:
    """Return the command that lets another key sign at once."""
    pending = (each.number for each in ring.keys if each.number != number and each.role(at.today) is Role.PENDING)
    other = next(pending, None)
    return f"batv key rotate --activate-in 0{at.option}" if other is None else f"batv key activate {other}{at.option}"


def _described(ring: KeyRing, today: Day) -> list[dict[str, object]]:
    return [
        {
            "number": each.number,
            "role": str(each.role(today)),
            "created": each.created.iso(),
            "signs_from": None if each.signs_from is None else each.signs_from.iso(),
            "retired": None if each.retired is None else each.retired.iso(),
            "revoked": None if each.revoked is None else each.revoked.iso(),
            "tags_alive_until": None if each.last_alive is None else each.last_alive.iso(),
            "lifetime": each.lifetime,
            "step": each.step,
            "days_signing": _days_signing(each, today),
            "weak": each.weak,
        }
        for each in ring.keys
    ]


def _rows(owner: bytes | None, ring: KeyRing, today: Day) -> list[tuple[str, ...]]:
    # In brackets, since a domain may be called `default`.
    name = "(default)" if owner is None else owner.decode()
    if not ring.keys:
        return [(name, "-", "no key", "", "", "", "", "", "")]
    rows: list[tuple[str, ...]] = []
    for each in ring.keys:
        days = _days_signing(each, today)
        remarks = [word for word, holds in (("weak", each.weak), ("spent: prune", each.free(today))) if holds]
        if each.revoked is not None:
            remarks.append(f"revoked {each.revoked}")
        if each.step != 1:
            remarks.append(f"a tag for {each.step} days")
        rows.append(
            (
                name,
                str(each.number),
                str(each.role(today)),
                str(each.signs_from or "-"),
                str(each.retired or "-"),
                str(each.last_alive or "-"),
                str(each.lifetime),
                "-" if days is None else str(days),
                ", ".join(remarks),
            )
        )
    return rows


def _days_signing(each: Key, today: Day) -> int | None:
    if each.role(today) is not Role.SIGNING or each.signs_from is None:
        return None
    return today - each.signs_from


def _warn(ring: KeyRing, today: Day) -> None:
    for each in ring.keys:
        days = _days_signing(each, today)
        if days is not None and days > _LONG_SIGNING_DAYS:
            what = f"key {each.number} of {ring.name} has signed for {days} days"
            remark(f"{what}: change it with 'batv key rotate{ring.option}'")
    if not ring.signs(today):
        remark(f"{_unsigned(ring, today, today)}: {ring.signing_remedy}")
