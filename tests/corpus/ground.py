"""A site that can have every class of message: keys of all roles, a ring of a domain's own, hosted domains."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from batv.cli import Site, run
from batv.config import parse
from batv.corpus.classes import CLASSES
from batv.corpus.generate import generate
from batv.corpus.ground import Ground as CorpusGround
from batv.corpus.manifest import Corpus, CorpusWriter, read_corpus
from batv.corpus.replay import Speed
from batv.corpus.run import run_own
from batv.day import Day
from batv.keyring import Key, KeyRing, Secret
from batv.store.rings import RingStore, ring_octets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import pytest

    from batv.config import Settings
    from batv.corpus.score import Score
    from batv.observe.event import Direction
    from batv.stage import Stage

__all__ = ["TODAY", "Ground", "Said"]

TODAY: Final = Day.from_iso("2026-11-23")
"""The day that corpora of tests are made for, whatever day it is."""

_RING: Final = KeyRing(
    TODAY + -400,
    (
        Key(1, Secret(b"retiring secret of 32 octets...."), TODAY + -30, signs_from=TODAY + -20, retired=TODAY + -3),
        Key(2, Secret(b"signing secret of 32 octets....."), TODAY + -30, signs_from=TODAY + -3),
        Key(3, Secret(b"revoked secret of 32 octets....."), TODAY + -30, revoked=TODAY + -1),
        Key(5, Secret(b"pending secret of 32 octets....."), TODAY + -1),
    ),
)
_OWN_RING: Final = KeyRing(
    TODAY + -2,
    (Key(0, Secret(b"a secret of the domain's own...."), TODAY + -2, lifetime=10, signs_from=TODAY + -2),),
)


@dataclass(frozen=True, slots=True)
class Said:
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


class Ground:
    """A site in a folder.

    Args:
        folder: where its configuration and keys go.
        capture: catches what commands print.
    """

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str] | None = None) -> None:
        self.folder: Final = folder
        self._capture = capture
        keys = folder / "keys"
        keys.mkdir(mode=0o700)
        for name, ring in (("default.ring", _RING), ("example.net.ring", _OWN_RING)):
            path = keys / name
            path.write_bytes(ring_octets(ring))
            path.chmod(0o600)
        self.config: Final = self.configure("batv.toml")

    def configure(self, name: str, on_forged: str = "discard", more: str = "", options: str = "") -> Path:
        """Write a configuration and return its file."""
        path = self.folder / name
        path.write_text(
            f"""\
[inbound]
listen = ["127.0.0.1:10027"]
next_hop = "127.0.0.1:10028"
relay_domains = ["hosted.example"]

[domains."example.com"]
on_forged = "{on_forged}"
{options}

[domains."example.org"]
on_forged = "{on_forged}"
leave_forms = ["srs", "cisco"]
{options}

[domains."example.net"]
on_forged = "{on_forged}"
{options}

{more}
"""
        )
        return path

    def __call__(self, *arguments: str, config: Path | None = None, today: Day = TODAY) -> Said:
        """Run `batv corpus` in this process."""
        assert self._capture is not None
        self._capture.readouterr()
        status = run(["--config", str(config or self.config), "corpus", *arguments], Site(today=lambda: today))
        said = self._capture.readouterr()
        return Said(status, said.out, said.err)

    def settings(self, config: Path | None = None) -> Settings:
        """Return the settings of a configuration of this site."""
        path = config or self.config
        return parse(path.read_text(), str(path), str(self.folder))

    def generate(
        self, name: str, config: Path, *, count: int, seed: str, weights: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Make a corpus for a configuration of this site."""
        site = Site(str(config), lambda: TODAY)
        settings = site.settings()
        made_for = CorpusGround.of(settings, site.rings(settings), TODAY)
        with CorpusWriter(self.folder / name) as writer:
            generate(writer, made_for, count=count, seed=seed, weights=weights, progress=lambda _: None)

    def read(self, name: str) -> Corpus:
        """Return a corpus of this site."""
        return read_corpus(self.folder / name, CLASSES)

    def score(
        self, corpus: Corpus, config: Path | None = None, stages: Callable[[Settings, Direction], Stage] | None = None
    ) -> Score:
        """Replay a corpus and return its score."""
        return asyncio.run(
            run_own(
                corpus,
                self.settings(config),
                lambda settings: RingStore(settings.keys.directory),
                TODAY,
                speed=Speed(),
                progress=lambda _: None,
                stages=stages,
            )
        )
