"""Fuzzes targets, several at once, and says what was found: one line a target.

Exit status: 0 if no check failed, 1 if one did, 2 for wrong arguments, 69 where there is no atheris.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from scripts.fuzzing.targets import NAMES

_HERE: Final = Path(__file__).resolve().parent
_ROOT: Final = _HERE.parents[1]

_LONGEST_OCTETS: Final = 6000
"""Longer than each limit on a line that is read here: 2048 octets of a reply, and of the header; 4096 of a command."""

_SLOWEST_SECONDS: Final = 60
"""Input that takes longer counts as a failure."""

_SHOWN_LINES: Final = 40
_PROGRESS: Final = ("#", "INFO:", "WARNING:", "stat::")
"""Lines of libFuzzer's that say nothing of a failure begin so."""


def main(arguments: list[str]) -> int:
    """Fuzz what the arguments name; return the exit status."""
    parser = argparse.ArgumentParser("scripts/fuzz", description="Feed the parsers with octets made to break them.")
    parser.add_argument("targets", metavar="TARGET", nargs="*", help=f"of {', '.join(NAMES)}; all of them unless named")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="a run does the same as the one before with this (0: by chance)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at once (%(default)s)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=_ROOT / ".cache" / "fuzz",
        help="where the corpus grows, and crashes are kept (.cache/fuzz)",
    )
    options = parser.parse_args(arguments)
    if wrong := sorted(set(options.targets) - set(NAMES)):
        parser.error(f"there is no target {' '.join(wrong)}")
    if options.seconds < 1 or options.jobs < 1 or options.seed < 0:
        parser.error("--seconds and --jobs take a number from 1 on, --seed from 0 on")
    if find_spec("atheris") is None:
        print("scripts/fuzz: there is no atheris: run scripts/venv --test, on Linux on x86-64", file=sys.stderr)
        return 69
    names = options.targets or NAMES
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [pool.submit(_fuzz, name, options.seconds, options.seed, options.folder.resolve()) for name in names]
        good = [run.result() for run in runs]
    return 0 if all(good) else 1


def _fuzz(name: str, seconds: int, seed: int, folder: Path) -> bool:
    """Fuzz one target, print what was found, and return whether nothing was."""
    corpus, crashes = folder / "corpus" / name, folder / "crashes" / name
    corpus.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(parents=True, exist_ok=True)
    command = [
        *(_fixed_addresses() if seed else ()),
        *(sys.executable, "-m", "scripts.fuzzing.one", name),
        f"-max_total_time={seconds}",
        "-reload=0",  # nobody else puts files into the corpus, and to look for them takes its time
        f"-seed={seed}",
        f"-max_len={_LONGEST_OCTETS}",
        f"-timeout={_SLOWEST_SECONDS}",
        f"-artifact_prefix={crashes}/",
        "-print_final_stats=1",
        *map(str, (corpus, _HERE / "seeds" / name)),
    ]
    # libFuzzer ends the process where it stands, with files of the proxies left behind.
    with tempfile.TemporaryDirectory() as scratch:
        order = str(seed) if seed else "random"
        environment = os.environ | {"TMPDIR": scratch, "PYTHONPATH": str(_ROOT), "PYTHONHASHSEED": order}
        run = subprocess.run(
            command, cwd=_ROOT, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
    executions = re.search(r"^stat::number_of_executed_units: *([0-9]+)$", run.stderr, re.MULTILINE)
    if run.returncode == 0 and executions is not None:
        print(f"{name}: {executions[1]} executions, nothing found", flush=True)
        return True
    kept = re.search(r"Test unit written to (.+)$", run.stderr, re.MULTILINE)
    shown = [line for line in (run.stderr + run.stdout).splitlines() if not line.startswith(_PROGRESS)]
    print(f"{name}: failed: {kept[1] if kept is not None else 'no input was kept'}", flush=True)
    print("\n".join(shown[-_SHOWN_LINES:]), file=sys.stderr, flush=True)
    return False


def _fixed_addresses() -> list[str]:
    """Return what goes before a command that is to do the same each time; what it does goes by addresses, too."""
    setarch = shutil.which("setarch")
    command = [setarch, "--addr-no-randomize"] if setarch is not None else []
    # Some containers do not allow it.
    allowed = bool(command) and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    return command if allowed else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
