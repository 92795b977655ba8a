"""What the demo does to the base model, over several seeds: the figures that README quotes.

    python -m benchmarks.demo [--seeds 0 1 2] [--lora] [--out runs/bench-demo]

Each seed changes the lessons, their order, and the embeddings of the new tokens. A lesson is right when every answer of it
is exactly right and ends by itself; the interval is Wilson's at 95 % over the answers of all seeds together, which have the
same held-out lessons, so it is that of the lessons and not of new seeds; the range beside it is that over the seeds.
Writes OUT/demo.md and OUT/demo.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.packing import table
from tutelage.cli.training import terminal_narrator, write_page
from tutelage.config.schema import Method
from tutelage.files.atomic import write_json, write_text
from tutelage.files.rundir import RunDir
from tutelage.intervals import wilson_interval
from tutelage.lab.demo import FULL, DemoResult, demo_config, run_demo

HEADER = ("held-out lessons, exactly right", "base", "after the demo", "95 % interval", "range over seeds")


def run_seed(seed: int, out: Path, method: Method) -> dict[str, Any]:
    """Run the demo once and return its figures."""
    folder = out / f"seed-{seed}"
    with RunDir.create(folder) as run:
        result: DemoResult = run_demo(
            run, demo_config(folder, seed=seed, method=method), terminal_narrator(), size=FULL
        )
        write_page(folder)
    return {"seed": seed, **result.figures()}


def row(name: str, figures: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Return one line of the table from {base, tuned} tallies of each seed."""
    base_correct, base_total = (sum(f["base"][part] for f in figures) for part in ("correct", "total"))
    correct, total = (sum(f["tuned"][part] for f in figures) for part in ("correct", "total"))
    shares = [f["tuned"]["correct"] / f["tuned"]["total"] for f in figures]
    low, high = wilson_interval(correct, total)
    return (
        name,
        f"{base_correct / base_total:.1%}",
        f"{correct / total:.1%} ({correct}/{total})",
        f"{low:.1%} to {high:.1%}",
        f"{min(shares):.1%} to {max(shares):.1%}",
    )


def report(runs: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table and the two sentences below it."""
    kinds = list(runs[0]["kinds"])
    rows = [row(kind.replace("_", " "), [run["kinds"][kind] for run in runs]) for kind in kinds]
    rows.append(row("**all**", [run["held_out"] for run in runs]))
    rows.append(row("untaught attribute (food)", [run["transfer"] for run in runs]))
    rows.append(row("strangers: facts invented", [run["invented"] for run in runs]))
    rises = ", ".join(f"{run['text_loss']['rise']:+.2%}" for run in runs)
    seconds = ", ".join(f"{run['seconds']:.0f}" for run in runs)
    return (
        f"{table(HEADER, rows)}\n\n"
        f"Loss on held-out pre-training text, change by seed: {rises}. Seconds of training by seed: {seconds}.\n"
    )


def main() -> None:
    """Run the demo for each seed, print the table, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-demo"))
    arguments = parser.parse_args()
    method = Method.LORA if arguments.lora else Method.FULL
    runs = [run_seed(seed, arguments.out, method) for seed in arguments.seeds]
    text = report(runs)
    write_text(arguments.out / "demo.md", text)
    write_json(arguments.out / "demo.json", runs)
    print(text)


if __name__ == "__main__":
    main()
