"""Whether the gate fires where fine-tuning forgets, is silent where it does not, and what its controller holds.

    python -m benchmarks.gate [--seeds 0 1 2 3 4] [--out runs/gate]

Small runs of the lab (see `tutelage.lab.planted`), watched with a budget of 3 % on the loss of held-out pre-training text:

clean      lessons of all kinds with half of all trained tokens replay: whatever fires is a false alarm
forgetful  one kind of lesson, no replay, eight times the learning rate; the gate ends the run
scarce     lessons of all kinds with a tenth of replay, the budget only watched
held       the same with `train.gate.most_replay_weight=16`

Each seed has its own lessons and order. Shares have Wilson's interval at 95 %; differences of `held` and `scarce` are paired by seed.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from benchmarks.packing import table
from tutelage.config.load import Resolved
from tutelage.config.schema import Gate, OnBreach
from tutelage.files import jsonl
from tutelage.files.atomic import write_json, write_text
from tutelage.files.rundir import RunDir
from tutelage.generate.local import generate
from tutelage.intervals import wilson_interval
from tutelage.lab.planted import Defect, Size, plant
from tutelage.lab.world import make_world
from tutelage.train.loop import train

BUDGET = 0.03
SIZE = Size(lessons=1500, replay=1500, held_out=60, texts=80)
RATE = 2.5e-4
EVERY = 10
"""Steps between evaluations."""
SCARCE_SHARE = 0.1
MOST_WEIGHT = 16.0
LESSONS = "held-out lessons"


class Case(StrEnum):
    """What is trained, and how it is watched."""

    CLEAN = "clean"
    FORGETFUL = "forgetful"
    SCARCE = "scarce"
    HELD = "held"


@dataclass(frozen=True)
class Watched:
    """How one run ended. `rise` is of the loss on text, `lessons` the loss on held-out lessons (nats per token) at the last evaluation."""

    case: Case
    seed: int
    breached_at: int | None
    steps: int
    rise: float
    lessons: float
    replay_weight: float


def run_one(folder: Path, case: Case, seed: int) -> Watched:
    """Make the data, train, and read what the gate saw."""
    defect = Defect.FORGETFUL if case is Case.FORGETFUL else Defect.CLEAN
    planted = plant(folder, make_world(0), defect, seed=seed, size=SIZE)
    with RunDir.create(folder / "run") as run:
        train(settings(planted.resolved, case), run, generate=generate)
    result = run.status["result"]
    *_, last = jsonl.read(run.evals)
    lessons = last["per_source"][LESSONS]
    *_, step = jsonl.read(run.metrics)
    return Watched(
        case,
        seed,
        result["breached_at"],
        result["steps"],
        result["text_loss_rise"],
        lessons["loss_sum"] / lessons["weight_sum"],
        step["replay_weight"],
    )


def settings(resolved: Resolved, case: Case) -> Resolved:
    """Return the run with its gate."""
    config = resolved.config
    ends = OnBreach.STOP if case is Case.FORGETFUL else OnBreach.WARN
    gate = Gate(forgetting=BUDGET, on_breach=ends, most_replay_weight=MOST_WEIGHT if case is Case.HELD else 1.0)
    changes: dict[str, object] = {"gate": gate, "evaluate_every_steps": EVERY, "learning_rate": RATE}
    data = config.data
    if case in (Case.SCARCE, Case.HELD):
        lessons, replay = data.train
        data = data.model_copy(update={"train": [lessons, replay.model_copy(update={"share": SCARCE_SHARE})]})
    if case is Case.FORGETFUL:
        changes["learning_rate"] = 8 * RATE
    told = config.model_copy(update={"data": data, "train": config.train.model_copy(update=changes)})
    return replace(resolved, config=told)


def report(found: Sequence[Watched]) -> str:
    """Return the table of all cases, and below it what holding did."""
    rows = []
    for case in dict.fromkeys(one.case for one in found):
        own = [one for one in found if one.case is case]
        fired = [one for one in own if one.breached_at is not None]
        low, high = wilson_interval(len(fired), len(own))
        at = [f"{one.breached_at}/{one.steps}" for one in fired]
        rows.append(
            [
                case.value,
                f"{len(fired)} of {len(own)} ({low:.0%} to {high:.0%})",
                ", ".join(at),
                f"{statistics.mean(one.rise for one in own):+.1%} ({min(one.rise for one in own):+.1%} to {max(one.rise for one in own):+.1%})",
                f"{statistics.mean(one.lessons for one in own):.3f}",
            ]
        )
    heads = ["run", "fired", "at step of", "rise of the text loss at the end", "loss on held-out lessons"]
    return table(heads, rows) + held_against_scarce(found)


def held_against_scarce(found: Sequence[Watched]) -> str:
    """Return a line for each pair of runs that differ in the controller alone."""
    by = {(one.case, one.seed): one for one in found}
    lines = [
        f"- seed {seed}: rise {by[Case.SCARCE, seed].rise:+.1%} -> {one.rise:+.1%}, lessons {by[Case.SCARCE, seed].lessons:.3f} -> "
        f"{one.lessons:.3f}, replay weighs {one.replay_weight:.1f} at the end"
        for (case, seed), one in by.items()
        if case is Case.HELD and (Case.SCARCE, seed) in by
    ]
    return "\n\n" + "\n".join(lines) + "\n" if lines else "\n"


def main() -> None:
    """Make every run and print the table; OUT/gate.md and OUT/gate.json have it too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--cases", nargs="+", choices=[case.value for case in Case], default=list(Case))
    parser.add_argument("--out", type=Path, default=Path("runs/gate"))
    words = parser.parse_args()
    found = []
    for seed in words.seeds:
        for case in map(Case, words.cases):
            found.append(run_one(words.out / f"{case.value}-{seed}", case, seed))
            print(found[-1], flush=True)
            write_json(words.out / "gate.json", [vars(one) for one in found])
            write_text(words.out / "gate.md", report(found))
    print(report(found))


if __name__ == "__main__":
    main()
