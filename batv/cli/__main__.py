"""`python -m batv.cli`: the command, for callers that know the interpreter but not where `batv` was installed."""

from __future__ import annotations

from batv.cli import main

if __name__ == "__main__":
    main()
