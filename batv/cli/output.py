"""What commands print: JSON for programs, tables for people, remarks on standard error."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["json_option", "print_fields", "print_json", "print_table", "remark", "text_of"]

Command = TypeVar("Command", bound="Callable[..., Any]")

# A pipe has no width: nothing is broken into lines there.
_WIDTH_WITHOUT_TERMINAL: Final = 1000


def json_option(command: Command) -> Command:
    """Give a command the option `--json`, which reaches it as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, names: bool = False) -> None:
    """Print a table with a line of headings; on a terminal that is too narrow a cell takes several lines.

    Args:
        head: the headings.
        rows: the cells of each row.
        names: whether the first column has names for a next command, which are never broken.
    """
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 -- only where a table is printed
    from rich.console import Console  # noqa: PLC0415 -- see above
    from rich.table import Column, Table  # noqa: PLC0415 -- see above
    from rich.text import Text  # noqa: PLC0415 -- see above

    columns = (Column(name, overflow="fold", no_wrap=names and not at) for at, name in enumerate(head))
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for row in rows:
        # As Text, not as markup: an address literal in brackets is no style.
        table.add_row(*(Text(cell) for cell in row))
    width = None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL
    Console(width=width, highlight=False, soft_wrap=not sys.stdout.isatty()).print(table)


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print one `name: value` a line, with the values below each other."""
    pairs = list(fields)
    width = max(len(name) for name, _ in pairs) + 1
    for name, value in pairs:
        click.echo(f"{name + ':':<{width}} {value}")


def remark(text: str) -> None:
    """Tell something that is no result: on standard error, as `batv: text`."""
    click.echo(f"batv: {text}", err=True)


def text_of(octets: bytes) -> str:
    """Return octets of an address as text; what is no UTF-8 is escaped."""
    return octets.decode("utf-8", "backslashreplace")
