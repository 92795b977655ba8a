"""Run the benchmarks and write their tables, with machine, versions and commands, into benchmarks/RESULTS.md.

    python -m benchmarks.run                       all that measure time and memory
    python -m benchmarks.run demo packing          some, or those that the first command leaves out: `compile`, and what is taught and
                                                   found, which takes minutes for each seed

Each benchmark is a module of this folder that prints Markdown. It runs in a process of its own, so that none warms the
caches of another; one that fails leaves no table, says so in its place, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from tutelage.files.atomic import write_text

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
PACKAGES = ("tutelage", "torch", "transformers", "peft", "tokenizers", "numpy")
BY_NAME_ONLY = ("advice", "compile", "demo", "gate", "planted", "retrieval")


@dataclass(frozen=True)
class Outcome:
    """What one benchmark printed, and how it ended."""

    name: str
    exit_code: int
    seconds: float
    output: str

    @property
    def command(self) -> str:
        """The command that makes this table."""
        return f"python -m benchmarks.{self.name}"


def benchmark_names() -> list[str]:
    """Return the modules of this folder that measure something."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("__init__", "run"))


def run_benchmark(name: str) -> Outcome:
    """Run one benchmark in a process of its own; its progress goes to standard error as it comes."""
    started = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}"], stdout=subprocess.PIPE, text=True, check=False, cwd=HERE.parent
    )
    return Outcome(name, ended.returncode, time.perf_counter() - started, ended.stdout)


def machine() -> list[tuple[str, str]]:
    """Return what the figures depend on: machine, load, versions."""
    load = os.getloadavg()[0]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return [
        ("date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        ("processor", f"{_processor()}, {os.cpu_count()} cores"),
        ("accelerator", _accelerator()),
        ("load at the start", f"{load:.2f}"),
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("versions", versions),
    ]


def results_page(facts: Sequence[tuple[str, str]], outcomes: Sequence[Outcome]) -> str:
    """Return RESULTS.md: the machine, then each benchmark with its command and what it printed."""
    lines = ["# Results", "", "Written by `python -m benchmarks.run`.", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts]
    for outcome in outcomes:
        body = outcome.output.strip() if outcome.exit_code == 0 else f"Failed with exit code {outcome.exit_code}."
        lines += ["", f"## {outcome.name}", "", f"`{outcome.command}`, {outcome.seconds:.0f} s", "", body]
    return "\n".join(lines) + "\n"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def main() -> int:
    """Run what the command line names, and return the exit code."""
    known = benchmark_names()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"one of {', '.join(known)}; without any, all but {', '.join(BY_NAME_ONLY)}",
    )
    names = parser.parse_args().names or [name for name in known if name not in BY_NAME_ONLY]
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(known)}")
    facts = machine()
    outcomes = []
    for name in names:
        print(f"benchmarks.{name} ...", file=sys.stderr, flush=True)
        outcomes.append(run_benchmark(name))
        print(outcomes[-1].output, flush=True)
        write_text(RESULTS, results_page(facts, outcomes))
    return 1 if any(outcome.exit_code for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
