"""Runs `batv` on a site of its own, with the day in the test's hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from batv.cli import Site, run
from batv.day import Day
from batv.store.rings import RingStore

if TYPE_CHECKING:
    import pytest

    from batv.keyring import KeyRing

TODAY: Final = Day.from_iso("2026-11-23")
CHECKOUT: Final = Path(__file__).parents[2]

SETTINGS: Final = """\
[outbound]
listen = ["127.0.0.1:10025"]
next_hop = "127.0.0.1:10026"

[inbound]
listen = ["127.0.0.1:10027"]
next_hop = "127.0.0.1:10028"
relay_domains = ["hosted.example"]

[domains."example.com"]

[domains."lists.example"]
on_forged = "reject"
leave_forms = ["srs"]
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command said.

    Attributes:
        status: exit status.
        out: standard output.
        err: standard error.
    """

    status: int
    out: str
    err: str

    @property
    def fields(self) -> Any:  # noqa: ANN401 -- JSON
        """The standard output, read as JSON."""
        return json.loads(self.out)


@dataclass
class Command:
    """`batv` on a site.

    Attributes:
        folder: the site's folder.
        capture: catches what is printed.
        today: the day that commands see.
    """

    folder: Path
    capture: pytest.CaptureFixture[str]
    today: Day = field(default=TODAY)

    def __post_init__(self) -> None:
        """Write the settings."""
        self.config.write_text(SETTINGS)

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.folder / "batv.toml"

    @property
    def keys(self) -> Path:
        """The folder of the rings."""
        return self.folder / "keys"

    def __call__(self, *arguments: str) -> Answer:
        """Run a command in this process."""
        self.capture.readouterr()
        status = run(["--config", str(self.config), *arguments], Site(today=lambda: self.today))
        said = self.capture.readouterr()
        return Answer(status, said.out, said.err)

    def ring(self, domain: bytes | None = None) -> KeyRing:
        """Return a ring as it is on disk."""
        return RingStore(self.keys).read(domain)


def child_environment() -> dict[str, str]:
    """Return the environment in which a child process finds this checkout, and no configuration of ours."""
    found = {name: value for name, value in os.environ.items() if name != "BATV_CONFIG"}
    return found | {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), *filter(None, [found.get("PYTHONPATH")])])}


def process(*arguments: str, folder: Path, environment: dict[str, str] | None = None) -> Answer:
    """Run a command in a process of its own, for what only a process has: descriptors, environment, folder."""
    done = subprocess.run(
        [sys.executable, "-c", "from batv.cli import main; main()", *arguments],
        cwd=folder,
        env=child_environment() | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return Answer(done.returncode, done.stdout, done.stderr)
