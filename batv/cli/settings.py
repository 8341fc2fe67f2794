"""`batv init` and `batv config`: the configuration file."""

from __future__ import annotations

import json
import os
import re
import secrets
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from pydantic import BaseModel

from batv.address import DOMAIN
from batv.cli import Site
from batv.cli.output import json_option, print_json, remark
from batv.cli.readiness import readiness
from batv.config import ARRAYS, SECTIONS, Endpoint, Settings, defaults, parse
from batv.errors import BatvError, CannotCreateError, ConfigError
from batv.keyring import DEFAULT_LIFETIME_DAYS, SECRET_OCTETS, Key, KeyRing, Secret
from batv.store.files import close_folder, make_folder, write_atomically
from batv.store.rings import RingStore
from batv.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batv.day import Day

__all__ = ["config", "init"]

_FILE: Final = "batv.toml"
_DOMAIN_NAME = re.compile(DOMAIN)
_FORGED_WORDS: Final = ("discard", "reject", "quarantine", "mark", "pass")

_TEMPLATE: Final = """\
# Settings of batv. 'batv config show' lists all there are, 'batv config check' finds errors.
# Relative paths belong to the folder of this file.

[keys]
directory = "keys"                       # mode 0700, owned by the service's user

[outbound]                               # signs: submission server -> here -> queueing server
listen   = ["127.0.0.1:10025"]
next_hop = "127.0.0.1:10026"
clients  = ["127.0.0.0/8", "::1/128"]    # whose mail is signed; any other client is refused

[inbound]                                # verifies: Internet-facing server -> here -> mail store
listen   = ["127.0.0.1:10027"]
next_hop = "127.0.0.1:10028"

[state]
directory = "var"                        # journal and quarantine

# Every domain whose mail is signed outbound and whose bounces are judged inbound.
# on_forged: what a bounce gets that answers no mail of ours:
#   discard     is taken, delivered to nobody, and written to the journal
#   reject      550 in the session
#   quarantine  as discard, and kept in a Maildir
#   mark        is delivered with an X-Batv-Status field
#   pass        is delivered as it is
# on_expired: the same for a bounce whose tag was ours and has expired, which may be a genuine one that comes late.
# rescue = true lets receipts and vacation notices through that answer mail from here, for what this table remembers:
# [ledger]
# enabled = true
{advice}"""


@click.command()
@click.option(
    "--dir",
    "folder",
    default=".",
    show_default=True,
    metavar="DIR",
    help="Where batv.toml and keys/ shall be.",
)
@click.option(
    "--domain",
    "domains",
    multiple=True,
    required=True,
    metavar="D",
    help="A domain of yours; may be repeated.",
)
@click.option(
    "--on-forged",
    type=click.Choice(_FORGED_WORDS),
    default="mark",
    show_default=True,
    help="What a forged bounce gets: mark delivers it with a status field.",
)
@click.option(
    "--on-expired",
    type=click.Choice(_FORGED_WORDS),
    default="quarantine",
    show_default=True,
    help="What a bounce gets whose tag has expired.",
)
@click.option("--quiet", is_flag=True, help="Say nothing where all goes well.")
@json_option
@click.pass_context
def init(  # noqa: PLR0913 -- one for each option
    ctx: click.Context,
    *,
    folder: str,
    domains: tuple[str, ...],
    on_forged: str,
    on_expired: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write a commented batv.toml and the first key. Nothing is overwritten.

    A folder keys/ that is there already is closed to other users (mode 0700).
    """
    today = ctx.ensure_object(Site).today()
    for domain in domains:
        if not _DOMAIN_NAME.fullmatch(domain.encode("utf-8", "surrogateescape")):
            what = f"'{domain}' is no domain name, write it as in example.com"
            raise click.BadParameter(what, ctx, param_hint="--domain")
    path = Path(folder, _FILE)
    text = _settings_text(domains, on_forged, on_expired, today)
    settings = parse(text, str(path), str(path.absolute().parent))
    if os.path.lexists(path):
        raise CannotCreateError(f"{path} exists already", "edit it, or name another folder with --dir DIR")
    make_folder(path.parent, 0o755)
    # The ring first: where this is cut short, the next call finds it, and writes what is missing.
    store = RingStore(settings.keys.directory)
    closed = False
    with suppress(FileNotFoundError):
        closed = close_folder(store.directory)
    had_ring = store.find(None) is not None
    if not had_ring:
        store.change(None, lambda ring: ring or _first_ring(today))
    write_atomically(path, text.encode(), mode=0o644, replace=False)
    if as_json:
        fields = {"config": str(path), "ring": str(store.path(None)), "ring_made": not had_ring, "keys_closed": closed}
        print_json(fields | {"discard_safe_from": _safe_from(today).iso()})
        return
    if quiet:
        return
    if closed:
        click.echo(f"{store.directory} closed to other users: mode 0700")
    click.echo(f"{path} written")
    click.echo(f"{store.path(None)} {'kept as it was' if had_ring else 'written: key 0 signs from today'}")
    click.echo("next: set listen and next_hop for your mail servers, then run 'batv config check' and 'batv serve'")


@click.group(no_args_is_help=False)
def config() -> None:
    """Check and show the settings."""


@config.command()
@json_option
@click.pass_context
def check(ctx: click.Context, *, as_json: bool) -> None:
    """Find at once all that would keep the service from its work, in the settings and in what they name.

    Exit status 0 if there is no error, else 78, or that of the error where all are of one kind. A key ring that is not
    made yet is no error of the settings: it is a warning, though the service does not start without it.
    """
    site = ctx.ensure_object(Site)
    path = site.config_path
    try:
        settings = site.settings()
    except ConfigError as error:
        if not as_json:
            raise
        print_json({"config": path, "errors": str(error).splitlines(), "warnings": []})
        ctx.exit(ConfigError.exit_status)
    found = readiness(site, settings)
    if as_json:
        print_json(
            {"config": path, "errors": [_one_line(error) for error in found.errors], "warnings": list(found.warnings)}
        )
        ctx.exit(found.status)
    for each in found.errors:
        remark(_one_line(each))
    for warning in found.warnings:
        remark(f"warning: {warning}")
    if not found.errors:
        sides = [name for name in ("outbound", "inbound") if getattr(settings, name) is not None]
        domains = counted(len(settings.domains), "domain")
        click.echo(f"{path} has no errors: {domains}, {' and '.join(sides)} proxy")
    ctx.exit(found.status)


@config.command()
@click.option(
    "--defaults", "only_defaults", is_flag=True, help="Every option there is, as it is by default; no file is read."
)
@json_option
@click.pass_context
def show(ctx: click.Context, *, only_defaults: bool, as_json: bool) -> None:
    """Print the effective settings, each with its meaning and whether it is the default."""
    site = ctx.ensure_object(Site)
    if only_defaults:
        settings = defaults()
        if as_json:
            print_json(_plain(settings))
            return
        for line in _options():
            click.echo(line)
        return
    settings = site.settings()
    if as_json:
        print_json(_plain(settings))
        return
    for line in _shown(settings, defaults(str(Path(site.config_path).absolute().parent))):
        click.echo(line)


def _one_line(error: BatvError) -> str:
    return " ".join(str(error).splitlines())


def _first_ring(today: Day) -> KeyRing:
    return KeyRing(today).with_newcomer(Key(0, Secret(secrets.token_bytes(SECRET_OCTETS)), today), today)


def _safe_from(today: Day) -> Day:
    # Mail sent until today carries no tag; its bounces come for as long as a tag would have been good.
    return today + DEFAULT_LIFETIME_DAYS + 1


def _settings_text(domains: Iterable[str], on_forged: str, on_expired: str, today: Day) -> str:
    safe = _safe_from(today)
    advice = (
        f"# Mail sent before {today} carries no tag, so until {safe} genuine bounces come without one:\n"
        f'# "discard" is safe from {safe} on.\n'
    )
    tables = [
        f'\n[domains.{_quoted(domain.lower())}]\non_forged = "{on_forged}"\non_expired = "{on_expired}"\n'
        for domain in dict.fromkeys(domains)
    ]
    return _TEMPLATE.format(advice=advice) + "".join(tables)


def _quoted(text: str) -> str:
    # Whatever JSON writes as a string is one to TOML too.
    return json.dumps(text, ensure_ascii=False)


def _plain(value: Any) -> Any:  # noqa: ANN401 -- settings of any kind, as JSON has them
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, BaseModel) and not isinstance(value, Endpoint):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | frozenset):
        items = [_plain(item) for item in value]
        return items if isinstance(value, tuple) else sorted(items)
    return str(value)


def _shown(settings: Settings, standard: Settings) -> Iterator[str]:
    """Yield the settings as TOML, which may be read in again, with a word about those that are as by default."""
    for name in type(settings).model_fields:
        section = getattr(settings, name)
        if section is None:
            yield f"# no [{name}]: that proxy does not run"
            yield ""
        elif isinstance(section, dict):
            for key, table in section.items():
                yield from _shown_table(f"[{name}.{_quoted(key)}]", table, None)
        elif isinstance(section, tuple):
            for table in section:
                yield from _shown_table(f"[[{name}]]", table, None)
        else:
            yield from _shown_table(f"[{name}]", section, getattr(standard, name))


def _options() -> Iterator[str]:
    """Yield every option as TOML: what must be set stands in a comment."""
    sections = [*SECTIONS.items(), *((name, None) for name in ARRAYS if "." not in name)]
    for name, table in sections:
        if table is None:
            yield from _options_of_array(name)
            continue
        yield f"[{name}]" if name != "domains" else '[domains."example.com"]'
        yield from _options_of(table)
        yield ""
        for array in ARRAYS:
            if array.startswith(f"{name}."):
                yield from _options_of_array(array)


def _options_of_array(name: str) -> Iterator[str]:
    # None is there by default, so all of it stands in comments.
    yield f"# [[{name}]]"
    yield from (line if line.startswith("#") else f"# {line}" for line in _options_of(ARRAYS[name]))
    yield ""


def _options_of(table: type[BaseModel]) -> Iterator[str]:
    for option, field in table.model_fields.items():
        yield f"# {field.description or ''}"
        value = None if field.is_required() else _plain(field.default)
        unset = "must be set" if field.is_required() else "is not set"
        yield f"# {option} {unset}" if value is None else f"{option} = {_toml(value)}"


def _shown_table(head: str, table: BaseModel, standard: BaseModel | None) -> Iterator[str]:
    yield head
    for option, field in type(table).model_fields.items():
        found = getattr(table, option)
        value = _plain(found)
        origin = " (default)" if found == (getattr(standard, option) if standard else field.default) else ""
        yield f"# {field.description or ''}{origin}"
        yield f"# {option} is not set" if value is None else f"{option} = {_toml(value)}"
    yield ""


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, dict):
        # TOML has no word for what is not set.
        items = (f"{option} = {_toml(item)}" for option, item in value.items() if item is not None)
        return f"{{ {', '.join(items)} }}"
    return json.dumps(value, ensure_ascii=False)
