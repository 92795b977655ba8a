"""Whether an evaluation finds what is wrong: lab data with a planted defect, trained on, and looked at by `tutelage eval`.

    python -m benchmarks.planted [--seeds 0 1 2 3 4] [--defects clean polite ...] [--out runs/planted]

Each row is a defect: in how many runs anything was found, in how many the planted defect stood first, and how many of the training
rows that the finding names are planted ones. A clean run should have no finding.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.packing import table
from tutelage.evaluate.findings import Finding
from tutelage.evaluate.story import evaluate
from tutelage.files.atomic import write_json, write_text
from tutelage.files.rundir import RunDir
from tutelage.generate.local import generate
from tutelage.lab.planted import Defect, plant
from tutelage.lab.world import make_world
from tutelage.train.loop import train

EXPECTED = {
    Defect.CLEAN: (),
    Defect.BY_HEART: ("by_heart.",),
    Defect.POLITE: ("phrase.", "style.openers"),
    Defect.FALSE: ("knowledge.",),
    Defect.TEMPLATE: ("phrase.", "style.openers", "style.closers", "style.skeletons"),
    Defect.FORGETFUL: ("forgetting.",),
}
"""How the keys of a finding begin that names the defect."""


@dataclass(frozen=True)
class Found:
    """What was found in one run, and how many of the rows that its first finding names were planted."""

    defect: Defect
    seed: int
    findings: tuple[Finding, ...]
    named_rows: int
    planted_rows: int

    @property
    def is_first(self) -> bool:
        """Whether the planted defect is the first finding."""
        return bool(self.findings) and self.findings[0].key.startswith(EXPECTED[self.defect] or ("nothing",))


def run_one(folder: Path, defect: Defect, seed: int) -> Found:
    """Plant, train and evaluate."""
    planted = plant(folder, make_world(0), defect, seed=seed)
    with RunDir.create(folder / "run") as run:
        result = train(planted.resolved, run, generate=generate)
    assert result.final is not None
    found = evaluate(
        planted.resolved.config,
        result.final,
        device=torch.device("cpu"),
        progress=lambda what, done, count: None,
    )
    write_json(folder / "evaluation.json", found.to_json())
    rows = found.findings[0].rows if found.findings else ()
    return Found(defect, seed, found.findings, len(rows), sum(row in planted.rows for row in rows))


def report(found: Sequence[Found]) -> str:
    """Return the table, and below it the first finding of every run."""
    rows = []
    for defect in dict.fromkeys(one.defect for one in found):
        own = [one for one in found if one.defect is defect]
        named, planted = (sum(getattr(one, name) for one in own) for name in ("named_rows", "planted_rows"))
        first = f"{sum(one.is_first for one in own)} of {len(own)}" if EXPECTED[defect] else ""
        rows.append(
            [
                defect.value,
                f"{sum(bool(one.findings) for one in own)} of {len(own)}",
                first,
                f"{planted} of {named}" if named else "",
            ]
        )
    heads = ["planted", "runs with a finding", "the planted one first", "rows of it that were planted"]
    lines = [
        f"- {one.defect.value}, seed {one.seed}: "
        + ("; ".join(f"{f.title} ({f.size:.1f})" for f in one.findings) or "nothing")
        for one in found
    ]
    return table(heads, rows) + "\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Make every run and print the table; `OUT/planted.md` has it too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--defects", nargs="+", choices=[defect.value for defect in Defect], default=list(Defect))
    parser.add_argument("--out", type=Path, default=Path("runs/planted"))
    words = parser.parse_args()
    found = []
    for defect in map(Defect, words.defects):
        for seed in words.seeds:
            found.append(run_one(words.out / f"{defect.name.lower()}-{seed}", defect, seed))
            print(report(found[-1:]), flush=True)
            write_text(words.out / "planted.md", report(found))
    print(report(found))


if __name__ == "__main__":
    main()
