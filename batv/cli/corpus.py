"""`batv corpus`: labelled bounces, made, replayed and scored."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from batv.cli import Site
from batv.cli.output import json_option, print_json, print_table, remark
from batv.cli.values import ENDPOINT
from batv.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from batv.config import Endpoint, Settings
    from batv.corpus.manifest import Corpus
    from batv.corpus.score import Score

__all__ = ["corpus"]

_LISTED: Final = 20
_WRONG: Final = 1


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
def corpus() -> None:
    """Generate labelled bounces, replay them over SMTP, and see what a configuration loses and lets through."""


def _progress(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--quiet", is_flag=True, help="No progress bar.")(command)


class _Weight(click.ParamType[tuple[str, float]]):
    name = "class=number"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Return class and weight."""
        from batv.corpus.classes import CLASSES  # noqa: PLC0415 -- only where a corpus is made

        kind, _, number = str(value).partition("=")
        if kind not in CLASSES:
            self.fail(f"there is no class '{kind}'; there are {', '.join(CLASSES)}", param, ctx)
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if not 0 <= weight < float("inf"):
            self.fail(f"'{number}' is no weight: write a number from 0 up", param, ctx)
        return kind, weight


@corpus.command()
@click.option("--out", "folder", metavar="DIR", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--count", default=1000, show_default=True, type=click.IntRange(1), help="Messages.")
@click.option("--seed", default="1", show_default=True, help="The same seed makes the same corpus.")
@click.option("--weight", "weights", multiple=True, type=_Weight(), help="How often a class comes; 0 leaves it out.")
@_progress
@json_option
@click.pass_obj
def generate(  # noqa: PLR0913 -- one argument for each option
    site: Site,
    folder: Path,
    *,
    count: int,
    seed: str,
    weights: tuple[tuple[str, float], ...],
    quiet: bool,
    as_json: bool,
) -> None:
    """Make a corpus for this configuration, its rings and today.

    Its addresses hold live tags: keep it as you keep a password. The folder is made for its owner only.
    """
    from batv.corpus.classes import CLIENTS  # noqa: PLC0415 -- only where a corpus is made
    from batv.corpus.generate import generate as make  # noqa: PLC0415 -- see above
    from batv.corpus.ground import Ground  # noqa: PLC0415 -- see above
    from batv.corpus.manifest import CorpusWriter  # noqa: PLC0415 -- see above

    settings = site.settings()
    ground = Ground.of(settings, site.rings(settings), site.today())
    with _ended_by_sigterm(), CorpusWriter(folder) as writer, _bar("messages", count, quiet=quiet) as progress:
        about = make(writer, ground, count=count, seed=seed, weights=dict(weights), progress=progress)
    for kind, why in about.left_out.items():
        remark(f"{kind} is left out: {why}")
    exempt = sum(ground.policy.exempt_client(client) is not None for client in CLIENTS)
    if exempt:
        some = f"{exempt} of the {len(CLIENTS)} clients of the corpus"
        remark(f"{some} are in exempt_clients: no forged bounce of theirs is judged")
    result = {
        "directory": str(folder),
        "count": count,
        "seed": seed,
        "day": str(ground.day),
        "left_out": about.left_out,
    }
    if as_json:
        print_json(result)
    else:
        click.echo(f"{counted(count, 'message')} in {folder}, for {ground.day}")


@corpus.command(name="import")
@click.argument("source", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--out", "folder", metavar="DIR", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@_progress
@json_option
def import_(source: Path, folder: Path, *, quiet: bool, as_json: bool) -> None:
    """Make a corpus of your own messages: a Maildir, an mbox file or a folder of .eml files. Labels are left open."""
    from batv.corpus.importing import import_messages  # noqa: PLC0415 -- only where it is asked for
    from batv.corpus.manifest import CorpusWriter  # noqa: PLC0415 -- see above

    with _ended_by_sigterm(), CorpusWriter(folder) as writer, _bar("messages", None, quiet=quiet) as progress:
        found = import_messages(writer, source, progress)
    for name, why in found.passed_over.items():
        remark(f"{name} is left out: {why}")
    if as_json:
        print_json({"directory": str(folder), "count": found.messages, "left_out": found.passed_over})
    else:
        click.echo(f"{counted(found.messages, 'message')} in {folder}")


@corpus.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--inbound", type=ENDPOINT, help="A proxy that runs; its next hop must be the sink.")
@click.option("--sink", type=ENDPOINT, help="Where the sink listens; only with --inbound.")
@click.option("--concurrency", default=12, show_default=True, type=click.IntRange(1, 500), help="Sessions at once.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Messages a second; as many as go unless said.")
@click.option("--html", "page", metavar="FILE", type=click.Path(path_type=Path), help="Write a page with the score.")
@_progress
@json_option
@click.pass_context
def run(  # noqa: PLR0913 -- one argument for each option
    ctx: click.Context,
    folder: Path,
    *,
    inbound: Endpoint | None,
    sink: Endpoint | None,
    concurrency: int,
    rate: float | None,
    page: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Replay a corpus over SMTP and score it; exit status 1 if a message met another disposition than expected.

    Without --inbound and --sink the proxy is one of our own, on loopback, with the policy and the rings of this
    configuration: nothing that runs is touched.
    """
    from batv.corpus.replay import Speed  # noqa: PLC0415 -- only where a corpus is replayed
    from batv.corpus.run import run_against, run_own  # noqa: PLC0415 -- see above

    if (inbound is None) != (sink is None):
        raise click.UsageError("--inbound and --sink come together")
    site = ctx.ensure_object(Site)
    settings = site.settings()
    read = _read(folder)
    speed = Speed(concurrency, rate)
    with _bar("messages", len(read.entries), quiet=quiet) as progress:
        if inbound is None or sink is None:
            found = asyncio.run(run_own(read, settings, site.store, site.today(), speed=speed, progress=progress))
        else:
            found = asyncio.run(
                run_against(read, settings, inbound, sink, site.today(), speed=speed, progress=progress)
            )
    if page is not None:
        _write_page(page, found, read)
    _print_score(found, read, as_json=as_json)
    ctx.exit(0 if found.right else _WRONG)


@corpus.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option("--concurrency", default=12, show_default=True, type=click.IntRange(1, 500), help="Sessions at once.")
@_progress
@json_option
@click.pass_obj
def diff(  # noqa: PLR0913 -- one argument for each option
    site: Site, folder: Path, first: Path, second: Path, *, concurrency: int, quiet: bool, as_json: bool
) -> None:
    """Replay the corpus DIR under the configurations A and B, and list what changes hands."""
    from batv.corpus.replay import Speed  # noqa: PLC0415 -- only where a corpus is replayed
    from batv.corpus.run import changes, run_own  # noqa: PLC0415 -- see above
    from batv.tag import shorten  # noqa: PLC0415 -- see above

    read = _read(folder)
    settings: list[Settings] = []
    sites = [Site(str(path), site.today) for path in (first, second)]
    settings = [each.settings() for each in sites]
    scores = []
    for each, wanted in zip(sites, settings, strict=True):
        with _bar(f"messages under {each.config_path}", len(read.entries), quiet=quiet) as progress:
            speed = Speed(concurrency)
            scores.append(asyncio.run(run_own(read, wanted, each.store, site.today(), speed=speed, progress=progress)))
    found = changes(*scores)
    if as_json:
        rows = [
            {
                "file": change.before.file,
                "class": change.before.kind,
                "recipient": shorten(change.before.recipient.forward_path),
                "before": change.before.outcome.value,
                "after": change.after.outcome.value,
                "reason": change.after.finding.reason if change.after.finding is not None else "",
            }
            for change in found
        ]
        print_json({"recipients": len(scores[0].fates), "changes": rows})
        return
    counts: dict[tuple[str, str, str], int] = {}
    for change in found:
        key = (change.before.kind, change.before.outcome.value, change.after.outcome.value)
        counts[key] = counts.get(key, 0) + 1
    print_table(("class", str(first), str(second), "recipients"), ((*key, str(count)) for key, count in counts.items()))
    click.echo(f"{len(found)} of {counted(len(scores[0].fates), 'recipient')} meet something else")


def _read(folder: Path) -> Corpus:
    from batv.corpus.classes import CLASSES  # noqa: PLC0415 -- only where a corpus is read
    from batv.corpus.manifest import read_corpus  # noqa: PLC0415 -- see above

    return read_corpus(folder, CLASSES)


def _write_page(path: Path, found: Score, read: Corpus) -> None:
    from batv.corpus.page import page  # noqa: PLC0415 -- only where it is asked for
    from batv.store.files import write_atomically  # noqa: PLC0415 -- see above

    text = page(found, f"Bounce corpus {read.directory.name}", read.about.left_out)
    write_atomically(path, text.encode(), mode=0o644)


def _print_score(found: Score, read: Corpus, *, as_json: bool) -> None:
    from batv.corpus.score import COLUMNS  # noqa: PLC0415 -- only where a corpus was replayed

    mistakes = found.mistakes()
    if as_json:
        print_json(
            {
                "messages": found.messages,
                "recipients": len(found.fates),
                "seconds": round(found.seconds, 3),
                "genuine_lost": found.genuine_lost,
                "forged_delivered": found.forged_delivered,
                "ordinary_touched": found.ordinary_touched,
                "matrix": {
                    kind: {outcome.value: counts[outcome] for outcome in COLUMNS} | {"wrong": found.wrong_by_kind[kind]}
                    for kind, counts in found.matrix.items()
                },
                "mistakes": [asdict(mistake) for mistake in mistakes],
                "left_out": read.about.left_out,
            }
        )
        return
    shown = [outcome for outcome in COLUMNS if any(counts[outcome] for counts in found.matrix.values())]
    print_table(
        ("class", *(outcome.value for outcome in shown), "wrong"),
        (
            (kind, *(str(counts[outcome]) for outcome in shown), str(found.wrong_by_kind[kind]))
            for kind, counts in found.matrix.items()
        ),
    )
    click.echo(
        f"\n{counted(found.messages, 'message')} to {counted(len(found.fates), 'recipient')} in {found.seconds:.1f} s;"
        f" genuine bounces lost: {found.genuine_lost}; forged delivered: {found.forged_delivered};"
        f" ordinary mail touched: {found.ordinary_touched}"
    )
    for kind, why in read.about.left_out.items():
        remark(f"{kind} is not in the corpus: {why}")
    for mistake in mistakes[:_LISTED]:
        click.echo(
            f"wrong: {mistake.file} {mistake.kind} {mistake.recipient}: expected {mistake.expected}, happened"
            f" {mistake.happened}: {mistake.faults}; the proxy: {mistake.reason}; the label: {mistake.why}"
        )
    if len(mistakes) > _LISTED:
        click.echo(f"and {len(mistakes) - _LISTED} more: see --json or --html FILE")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, so that nothing half-written stays."""

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _bar(what: str, total: int | None, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal; nothing where standard error is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 -- only where a bar is shown
    from rich.progress import Progress  # noqa: PLC0415 -- see above

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=total)
        yield lambda done: bars.update(task, completed=done)
