"""Whether the gate fires where a run forgets, takes on a habit or loses what it could, is silent elsewhere, and what its controller holds.

    python -m benchmarks.gate [--seeds 0 1 2 3 4] [--cases clean held ...] [--out runs/gate]

Small runs of the lab (see `tutelage.lab.planted`), watched with budgets of 8 % for the loss of held-out pre-training text (a model of three
million weights forgets faster than a large one), 0.2 for habits of 32 answers and 0.15 for the share of right answers to 32 tasks:

clean      lessons of all kinds with 40 % of all trained tokens replay: whatever fires is a false alarm
forgetful  from the base, one kind of lesson without replay, eight times the learning rate; the gate ends the run
template   every answer between the same two sentences; the gate ends the run
narrow     the same as forgetful, from the result of `clean`, which can do what is asked; the gate ends the run
scarce     lessons of all kinds with a tenth of replay; what it forgets is only watched
held       the same with `train.gate.most_replay_weight=32`

Each seed has its own lessons and order. Shares have Wilson's interval at 95 %; `held` and `scarce` are shown side by side, seed by seed.
Runs that OUT/gate.json has already are not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from benchmarks.packing import table
from tutelage.config.schema import Config, Gate, Layout, OnBreach
from tutelage.evaluate.probes import make_probe
from tutelage.files import jsonl
from tutelage.files.atomic import remove_folder, write_json, write_text
from tutelage.files.rundir import RunDir
from tutelage.generate.local import generate
from tutelage.intervals import wilson_interval
from tutelage.lab.planted import Defect, Size, plant
from tutelage.lab.task_files import task_files
from tutelage.lab.world import World, make_world
from tutelage.train.loop import train

SIZE = Size(lessons=1200, replay=1200, held_out=100, texts=40)
RATE = 2.5e-4
EVERY, EVERY_HELD = 10, 5
"""Steps between evaluations, and where the controller is at work and what it is held against."""
SCARCE_SHARE = 0.1
WATCHED = Gate(forgetting=0.08, style=0.2, instruction=0.15, prompts=32, max_new_tokens=32)
ONLY_TEXT = Gate(forgetting=WATCHED.forgetting)
MOST_WEIGHT = 32.0
TASKS = ("words.jsonl", "private.jsonl")
LESSONS = "held-out lessons"


class Case(StrEnum):
    """What is trained, and how it is watched."""

    CLEAN = "clean"
    FORGETFUL = "forgetful"
    TEMPLATE = "template"
    NARROW = "narrow"
    SCARCE = "scarce"
    HELD = "held"


DEFECTS = {Case.FORGETFUL: Defect.FORGETFUL, Case.NARROW: Defect.FORGETFUL, Case.TEMPLATE: Defect.TEMPLATE}
GATES = {
    Case.CLEAN: WATCHED,
    Case.SCARCE: ONLY_TEXT,
    Case.HELD: ONLY_TEXT.model_copy(update={"most_replay_weight": MOST_WEIGHT}),
}
ENDED_BY = WATCHED.model_copy(update={"on_breach": OnBreach.STOP})


@dataclass(frozen=True)
class Watched:
    """How one run ended. `breaches` are the steps after which budgets were used up.

    `rise` is of the loss on text at the end, `highest_rise` at its highest; `lessons` the loss on held-out lessons (nats per token) at the end.
    """

    case: Case
    seed: int
    breaches: dict[str, int]
    steps: int
    rise: float
    highest_rise: float
    lessons: float


def run_one(out: Path, case: Case, seed: int) -> Watched:
    """Make the data, train, and read what the gate saw; `narrow` goes on from `clean` of the same seed."""
    folder, world = _folder(out, case, seed), make_world(0)
    if folder.exists():
        remove_folder(folder)
    planted = plant(folder, world, DEFECTS.get(case, Defect.CLEAN), seed=seed, size=SIZE)
    tasks = write_tasks(folder, world)
    config = settings(planted.resolved.config, case, tasks, start=_folder(out, Case.CLEAN, seed) / "run" / "final")
    with RunDir.create(folder / "run") as run:
        train(replace(planted.resolved, config=config), run, generate=generate, make_probe=make_probe)
    result: dict[str, Any] = run.status["result"]
    before, *after = jsonl.read(run.evals)
    losses = [line["probed"]["text_loss"] / before["probed"]["text_loss"] - 1 for line in after]
    lessons = after[-1]["per_source"][LESSONS]
    return Watched(
        case,
        seed,
        result["breaches"],
        result["steps"],
        losses[-1],
        max(losses),
        lessons["loss_sum"] / lessons["weight_sum"],
    )


def _folder(out: Path, case: Case, seed: int) -> Path:
    return out / f"{case.value}-{seed}"


def write_tasks(folder: Path, world: World) -> list[str]:
    """Write the files of tasks that are asked and return their paths."""
    made = task_files(world, WATCHED.prompts)
    for name in TASKS:
        jsonl.write(folder / name, made[name])
    return [str(folder / name) for name in TASKS]


def settings(config: Config, case: Case, tasks: Sequence[str], *, start: Path) -> Config:
    """Return the run with its gate; `start` is the model that `narrow` begins with."""
    gate = GATES.get(case, ENDED_BY)
    changes: dict[str, object] = {
        "gate": gate,
        "evaluate_every_steps": EVERY,
        "learning_rate": RATE,
        "packing": Layout.AUTO,  # in bf16 the check of the layout is at its tolerance
    }
    data, model = config.data, config.model
    if case in (Case.SCARCE, Case.HELD):
        changes["evaluate_every_steps"] = EVERY_HELD
        lessons, replay = data.train
        data = data.model_copy(update={"train": [lessons, replay.model_copy(update={"share": SCARCE_SHARE})]})
    if case in (Case.FORGETFUL, Case.NARROW):
        changes["learning_rate"] = 8 * RATE
    if case is Case.NARROW:
        model = model.model_copy(update={"path": str(start), "template": None})
        changes["gate"] = gate.model_copy(update={"forgetting": None})
    asked = config.evaluate.model_copy(update={"tasks": list(tasks)})
    learned = config.train.model_copy(update=changes)
    return config.model_copy(update={"data": data, "model": model, "train": learned, "evaluate": asked})


def report(found: Sequence[Watched]) -> str:
    """Return the table of all cases, and below it what holding did."""
    rows = []
    for case in Case:
        own = [one for one in found if one.case is case]
        if not own:
            continue
        fired = [one for one in own if one.breaches]
        low, high = wilson_interval(len(fired), len(own))
        at = [f"{name} {step}" for one in fired for name, step in one.breaches.items()]
        rows.append(
            [
                case.value,
                f"{len(fired)} of {len(own)} ({low:.0%} to {high:.0%})",
                ", ".join(at) or "-",
                f"{statistics.mean(one.steps for one in own):.0f}",
                _mean_and_range([one.highest_rise for one in own]),
                _mean_and_range([one.rise for one in own]),
                f"{statistics.mean(one.lessons for one in own):.3f}",
            ]
        )
    heads = [
        "run",
        "fired",
        "budget, after step",
        "steps",
        "text loss at its highest",
        "at the end",
        "held-out lessons",
    ]
    return table(heads, rows) + held_against_scarce(found)


def _mean_and_range(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):+.1%} ({min(values):+.1%} to {max(values):+.1%})"


def held_against_scarce(found: Sequence[Watched]) -> str:
    """Return a line for each pair of runs that differ in the controller alone."""
    by = {(one.case, one.seed): one for one in found}
    pairs = [
        (by[Case.SCARCE, seed], one)
        for (case, seed), one in by.items()
        if case is Case.HELD and (Case.SCARCE, seed) in by
    ]
    lines = [
        f"- seed {held.seed}, scarce -> held: text loss at its highest {scarce.highest_rise:+.1%} -> {held.highest_rise:+.1%}, at the end "
        f"{scarce.rise:+.1%} -> {held.rise:+.1%}, held-out lessons {scarce.lessons:.3f} -> {held.lessons:.3f}"
        for scarce, held in pairs
    ]
    return "\n\n" + "\n".join(lines) + "\n" if lines else "\n"


def main() -> None:
    """Make every run and print the table; OUT/gate.md and OUT/gate.json have it too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument(
        "--cases", nargs="+", choices=[case.value for case in Case], default=list(Case), help="narrow needs clean"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gate"))
    words = parser.parse_args()
    kept = words.out / "gate.json"
    found = (
        [Watched(**one | {"case": Case(one["case"])}) for one in json.loads(kept.read_bytes())] if kept.exists() else []
    )
    for seed in words.seeds:
        for case in map(Case, words.cases):
            if any((one.case, one.seed) == (case, seed) for one in found):
                continue
            found.append(run_one(words.out, case, seed))
            write_json(kept, [asdict(one) for one in found])
            write_text(words.out / "gate.md", report(found))
    print(report(found))


if __name__ == "__main__":
    main()
