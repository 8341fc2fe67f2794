"""Fuzzes one target in this process until a check fails or the time is up. `python -m scripts.fuzzing` calls it.

Arguments: the target, and what libFuzzer takes. The references are instrumented like the product: they read octet by
octet, so that each step of a grammar is a branch, where the product has one pattern.
"""

from __future__ import annotations

import importlib
import sys

import atheris

_INSTRUMENTED = ["batv", "scripts.fuzzing", "tests.support.reference"]


def main() -> None:
    """Fuzz; libFuzzer ends the process."""
    name, *flags = sys.argv[1:]
    with atheris.instrument_imports(include=_INSTRUMENTED):
        target = importlib.import_module(f"scripts.fuzzing.targets.{name}")
    with target.checking() as check:
        atheris.Setup([sys.argv[0], *flags], check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
