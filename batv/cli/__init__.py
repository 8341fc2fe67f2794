"""The command `batv`: its frame, the exit statuses, and what commands need from outside.

Every error ends as one line on standard error, `batv: what is wrong: what to do`, and as the exit status that the
error carries; there is no traceback. A group of commands is imported when one of its commands is called, so that
the service loads nothing that only other commands need.

Source: exit statuses are those of sysexits(3) where it has one; 130 is that of a shell after SIGINT.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from batv.day import Day
from batv.errors import BatvError, ConfigError, IoError, UnsafeFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batv.config import Settings
    from batv.keyring import KeyRings
    from batv.store.rings import RingStore

__all__ = ["MAX_SETTINGS_OCTETS", "Site", "batv", "main", "run"]

MAX_SETTINGS_OCTETS: Final = 1 << 20
"""Largest configuration file that is read."""

_SEARCHED: Final = ("batv.toml", "/etc/batv/batv.toml")
_USAGE: Final = 2
_SOFTWARE: Final = 70  # EX_SOFTWARE
_INTERRUPTED: Final = 130
_NO_OUTPUT: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
"""What a file that standard output was sent to may say."""

# Name of a command -> module and attribute, and the line that `batv --help` shows without importing it.
_COMMANDS: Final = {
    "init": ("batv.cli.settings:init", "Write a commented batv.toml and the first key."),
    "serve": ("batv.cli.serve:serve", "Run both proxies, or one."),
    "sign": ("batv.cli.address:sign", "Print the signed address."),
    "verify": ("batv.cli.address:verify", "Say what the tag of an address is worth."),
    "strip": ("batv.cli.address:strip", "Print the address without its tag."),
    "explain": ("batv.cli.explain:explain", "Say what the proxies do with an address or a message, and why."),
    "key": ("batv.cli.keys:key", "Make, list and change keys."),
    "clock": ("batv.cli.clock:clock", "Show whether the clock can be believed, and say that it can."),
    "config": ("batv.cli.settings:config", "Check and show the settings."),
    "rollout": ("batv.cli.rollout:rollout", "Show and move how far domains have been switched on."),
    "doctor": ("batv.cli.doctor:doctor", "Look whether the site is wired as it must be, and say what to do."),
    "probe": ("batv.cli.probe:probe", "Look whether a bounce comes home, all the way round."),
    "quarantine": ("batv.cli.quarantine:quarantine", "Look into the quarantine, and let out what is genuine."),
    "report": ("batv.cli.report:report", "Find out what to do before bounces are withheld."),
    "corpus": ("batv.cli.corpus:corpus", "Generate labelled bounces and replay them."),
    "demo": ("batv.cli.demo:demo", "Take the tour."),
}


def _clock() -> Day:
    return Day.at(time.time())


class Site:
    """What commands need from outside: the configuration file, the key rings, the day.

    Args:
        config: path of the configuration file; None: BATV_CONFIG, else `batv.toml` here, else below /etc.
        today: returns the day in UTC.
    """

    def __init__(self, config: str | None = None, today: Callable[[], Day] = _clock) -> None:
        self.config = config
        self.today: Final = today

    @property
    def config_path(self) -> str:
        """The configuration file.

        Raises:
            ConfigError: none was named, and none is where they are looked for.
        """
        named = self.config or os.environ.get("BATV_CONFIG")
        if named:
            return named
        for path in _SEARCHED:
            if os.path.lexists(path):
                return path
        raise ConfigError(
            f"there is no configuration file: looked for {' and '.join(_SEARCHED)}",
            "make one with 'batv init --domain DOMAIN', or name one with --config FILE",
        )

    def settings(self) -> Settings:
        """Return the settings, read anew.

        Raises:
            ConfigError: there is no such file, or it has errors.
            UnsafeFileError, IoError: it cannot be read.
        """
        from batv.config import parse  # noqa: PLC0415 -- pydantic is not for commands without settings

        path = self.config_path
        try:
            # Named by the administrator, who may keep it behind a link: opened as any program opens its settings.
            with Path(path).open("rb") as file:
                octets = file.read(MAX_SETTINGS_OCTETS + 1)
        except FileNotFoundError as error:
            remedy = "make one with 'batv init --domain DOMAIN', or name another with --config FILE"
            raise ConfigError(f"there is no configuration file {path}", remedy) from error
        except PermissionError as error:
            raise UnsafeFileError(
                f"{path} may not be read", "run this as a user who may, or change its mode"
            ) from error
        except OSError as error:
            raise IoError(
                f"cannot read {path}: {(error.strerror or '').lower()}", "name another with --config FILE"
            ) from error
        if len(octets) > MAX_SETTINGS_OCTETS:
            raise ConfigError(
                f"{path} is longer than {MAX_SETTINGS_OCTETS} octets",
                "name the right file with --config FILE",
            )
        try:
            text = octets.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8 text (octet {error.start})", "write it as UTF-8") from error
        return parse(text, path, str(Path(path).absolute().parent))

    def store(self, settings: Settings) -> RingStore:
        """Return the store of the key rings. Errors as for `batv.store.rings.open_store`."""
        from batv.store.rings import open_store  # noqa: PLC0415 -- as above

        return open_store(settings.keys, os.environ)

    def rings(self, settings: Settings) -> KeyRings:
        """Return the rings of all domains of the settings. Errors as for `RingStore.find`."""
        store = self.store(settings)
        return store.read_all(settings.policy.own_rings(store.domains()))


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, short) for name, (_, short) in _COMMANDS.items()])


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 -- click's signature
    if wanted and not ctx.resilient_parsing:
        from importlib import metadata  # noqa: PLC0415 -- it costs as much as all else that is imported here

        click.echo(f"batv {metadata.version('batv')}")
        ctx.exit()


@click.group(cls=_LazyGroup, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    metavar="FILE",
    help="Configuration file; else the one that BATV_CONFIG names, else ./batv.toml, else /etc/batv/batv.toml.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
@click.pass_context
def batv(ctx: click.Context, config: str | None) -> None:
    """Sign the reverse paths of outbound mail, and tell genuine bounces from forged ones."""
    site = ctx.ensure_object(Site)
    if config is not None:
        site.config = config


def run(arguments: Sequence[str] | None = None, site: Site | None = None) -> int:
    """Run a command and return its exit status; what goes wrong is on standard error by then.

    Args:
        arguments: the words after `batv`; None: those of the process.
        site: what commands need from outside; None: the real thing.
    """
    try:
        status = batv.main(args=arguments, prog_name="batv", standalone_mode=False, obj=site or Site())
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001 -- the last resort: an error that we did not foresee gets its line too
        text, status = _outcome(error)
        with suppress(OSError):  # where standard error takes nothing, the status still says it
            for line in text.splitlines():
                click.echo(f"batv: {line}", err=True)
        return status
    return status if isinstance(status, int) else 0


def main() -> None:
    """Run the command that the process was called with, and exit."""
    sys.exit(run())


def _outcome(error: Exception) -> tuple[str, int]:
    """Return what is said about an error, and the exit status."""
    match error:
        case ConfigError():
            return str(error), error.exit_status  # one line for each error in the file
        case BatvError():
            return " ".join(str(error).splitlines()), error.exit_status
        case click.UsageError():
            path = error.ctx.command_path if error.ctx is not None else "batv"
            return f"{_clause(error.format_message())}: see '{path} --help'", _USAGE
        case click.ClickException():
            return _clause(error.format_message()), error.exit_code
        case OSError() if error.filename is None and error.errno in _NO_OUTPUT:
            # What is read and written by name has errors of ours: this is standard output or standard error.
            said = f"cannot write what there is to say: {(error.strerror or '').lower()}"
            return f"{said}: look what the command has done before you run it again", IoError.exit_status
        case _:
            # Its own text is not shown: it could quote a secret.
            return (
                f"internal fault: {type(error).__name__} {_origin(error)}: please report this line",
                _SOFTWARE,
            )


def _clause(text: str) -> str:
    joined = " ".join(text.split()).removesuffix(".")
    return joined[:1].lower() + joined[1:]


def _origin(error: BaseException) -> str:
    """Return where an error was raised, and where of ours that was called from."""
    places: list[tuple[str, int]] = []
    trace = error.__traceback__
    while trace is not None:
        places.append((str(trace.tb_frame.f_globals.get("__name__", "?")), trace.tb_lineno))
        trace = trace.tb_next
    if not places:
        return "somewhere"
    module, line = places[-1]
    ours = [place for place in places if place[0].partition(".")[0] == "batv"]
    called = f", called from {ours[-1][0]} line {ours[-1][1]}" if ours and ours[-1] != places[-1] else ""
    return f"in {module} line {line}{called}"
