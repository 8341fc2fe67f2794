"""What is counted is told as people write it."""

from __future__ import annotations

import pytest

from batv.wording import counted


@pytest.mark.parametrize(("number", "said"), [(0, "0 recipients"), (1, "1 recipient"), (2, "2 recipients")])
def test_one_is_told_in_the_singular(number: int, said: str) -> None:
    """Sloppy words make an administrator doubt the number too."""
    assert counted(number, "recipient") == said
