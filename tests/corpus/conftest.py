"""The site of the tests of corpora."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.corpus.ground import Ground

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def ground(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ground:
    """Return a site that can have every class of message."""
    return Ground(tmp_path, capsys)
