"""Debian's Exim: an oracle that expands strings, on any day; and a client, which sends a message once and is gone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Checked", "Exim", "escaped"]

_FETCH: Final = Path(__file__).parents[2] / "scripts/mta/fetch-exim"
_PROMPT: Final = "> "
_SECONDS: Final = 120


def escaped(text: str) -> str:
    """Return an argument of an expansion item that stands for the text itself."""
    return "".join(f"\\{character}" if character in "\\${}" else character for character in text)


class Checked(NamedTuple):
    """What Exim's `prvscheck` finds.

    Attributes:
        good: whether the tag is good; False too where Exim sees no tag.
        key: the number of the key; empty where Exim sees no tag.
        address: the address without the tag; empty where Exim sees no tag.
    """

    good: bool
    key: str
    address: str


class Exim:
    """The unpacked program; it is fetched if it is not there.

    Attributes:
        program: the path of the command that runs it.
    """

    def __init__(self) -> None:
        fetched = subprocess.run([_FETCH], capture_output=True, text=True, check=False)
        if fetched.returncode != 0:
            raise AssertionError(fetched.stderr)
        self.program: Final = fetched.stdout.strip()

    def version(self) -> str:
        """Return the first line of what Exim says of itself."""
        return self._run(["-bV"], "").splitlines()[0]

    def expand(self, expressions: Iterable[str], day: str | None = None) -> list[str]:
        """Return what Exim makes of each expression, of which none may hold a newline.

        Args:
            expressions: strings to expand.
            day: the day that Exim takes for today, YYYY-MM-DD; None: today.
        """
        lines = list(expressions)
        printed = self._run(["-be"], "".join(f"{line}\n" for line in lines), day).split("\n")
        results = [line.removeprefix(_PROMPT) for line in printed[: len(lines)]]
        if len(results) != len(lines) or printed[len(lines) :] != [_PROMPT, ""]:
            raise AssertionError(f"{len(lines)} lines for Exim gave {printed}")
        return results

    def sign(self, addresses: Iterable[tuple[str, str, int]], day: str | None = None) -> list[str]:
        """Return the addresses, each given with secret and key number, as Exim signs them on that day."""
        return self.expand(
            (f"${{prvs{{{escaped(address)}}}{{{escaped(secret)}}}{{{key}}}}}" for address, secret, key in addresses),
            day,
        )

    def check(self, addresses: Iterable[tuple[str, str]], day: str | None = None) -> list[Checked]:
        """Return what Exim finds on that day in each of the addresses, which are given with a secret."""
        found = "{$prvscheck_result $prvscheck_keynum $prvscheck_address}"
        printed = self.expand(
            (f"${{prvscheck{{{escaped(address)}}}{{{escaped(secret)}}}{found}}}" for address, secret in addresses), day
        )
        return [_checked(line) for line in printed]

    def submit(self, config: Path, sender: str, recipients: Iterable[str], message: bytes) -> None:
        """Take a message as a program on this host gives it, and try to deliver it, once.

        Args:
            config: its configuration, with a spool of its own.
            sender: whom it is from.
            recipients: whom it is for.
            message: header and text, line ends LF.
        """
        command = [self.program, "-C", str(config), "-odf", "-oi", "-f", sender, *recipients]
        done = subprocess.run(command, input=message, capture_output=True, check=False, timeout=_SECONDS)
        if done.returncode != 0:
            raise AssertionError(f"Exim ended with {done.returncode}: {done.stderr!r}")

    def _run(self, arguments: list[str], stdin: str, day: str | None = None) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "FAKETIME"}
        if day is not None:
            environment["FAKETIME"] = f"{day} 12:00:00"
        done = subprocess.run(
            [self.program, "-C", "/dev/null", *arguments],
            input=stdin.encode(),
            capture_output=True,
            env=environment,
            check=False,
            timeout=_SECONDS,
        )
        if done.returncode != 0:
            raise AssertionError(f"Exim ended with {done.returncode}: {done.stderr!r}")
        return done.stdout.decode()


def _checked(line: str) -> Checked:
    result, key, address = (line or "  ").split(" ", 2)
    return Checked(result == "1", key, address)
