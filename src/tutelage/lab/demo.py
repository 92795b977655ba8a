"""The demo: the base model that ships becomes an assistant, and is asked the same questions before and after.

The training itself is the ordinary one (`train.loop.train`) with `presets/demo.yaml`; the demo writes the data, asks the
questions, and leaves `scores.json` in the run directory for the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.config.load import Resolved, load_config
from tutelage.config.schema import Config, Method, ModelConfig
from tutelage.files import jsonl
from tutelage.files.atomic import write_json
from tutelage.files.encode import encode_json
from tutelage.files.manifest import sha256_file
from tutelage.files.rundir import RunDir
from tutelage.lab import pretraining, text
from tutelage.lab.lesson import Kind, Lesson, Side
from tutelage.lab.lessons import lessons, stranger_questions, transfer_questions, write_lessons
from tutelage.lab.scoring import Answered, Tally, answer_lessons, asker, tally, total
from tutelage.lab.task_files import TASK_FILES, task_files
from tutelage.lab.world import World, make_world

PRESET = "demo"
WORLD_SEED = 0
"""The world of the base model that ships."""
ASKED_SEED = 1
"""Seed of the held-out lessons that are asked. Those of seed 0 are watched while training, and the settings were chosen on them."""
TEXT = "held-out text"
"""Name of the source that shows how much of the pre-training text the model still knows."""


@dataclass(frozen=True)
class Size:
    """How much is written, trained on and asked."""

    lessons: int = 12_000
    replay: int = 8000
    held_out: int = 480
    strangers: int = 40
    steps: int | None = None


FULL = Size()
QUICK = Size(lessons=48, replay=24, held_out=12, strangers=4, steps=3)


@dataclass(frozen=True)
class Answers:
    """What one model answered: to held-out lessons, about food (taught by no lesson), and about strangers."""

    held_out: list[Answered]
    transfer: list[Answered]
    strangers: list[Answered]

    @property
    def by_kind(self) -> dict[str, Tally]:
        """Right answers to held-out lessons by kind of lesson."""
        return tally(self.held_out, lambda lesson: lesson.kind.value)


@dataclass(frozen=True)
class DemoResult:
    """What the demo found. Losses are nats per token of held-out pre-training text; `seconds` is the time of the steps."""

    run: Path
    base: Answers
    tuned: Answers
    text_loss_before: float
    text_loss_after: float
    seconds: float
    fingerprint: str

    @property
    def text_loss_rise(self) -> float:
        """Rise of the loss as a part of what it was."""
        return self.text_loss_after / self.text_loss_before - 1

    def shown(self) -> list[tuple[Answered, Answered]]:
        """Return the first held-out lesson of each kind, answered before and after."""
        pairs: dict[Kind, tuple[Answered, Answered]] = {}
        for before, after in zip(self.base.held_out, self.tuned.held_out, strict=True):
            pairs.setdefault(before.lesson.kind, (before, after))
        return list(pairs.values())

    def figures(self) -> dict[str, Any]:
        """Return every figure as JSON."""
        return {
            "held_out": {"base": vars(total(self.base.held_out)), "tuned": vars(total(self.tuned.held_out))},
            "kinds": {
                kind: {"base": vars(before), "tuned": vars(self.tuned.by_kind[kind])}
                for kind, before in self.base.by_kind.items()
            },
            "transfer": {"base": vars(total(self.base.transfer)), "tuned": vars(total(self.tuned.transfer))},
            "invented": {"base": vars(total(self.base.strangers)), "tuned": vars(total(self.tuned.strangers))},
            "text_loss": {"base": self.text_loss_before, "tuned": self.text_loss_after, "rise": self.text_loss_rise},
            "seconds": self.seconds,
            "fingerprint": self.fingerprint,
        }


def demo_config(run_dir: Path, *, seed: int = 0, method: Method = Method.FULL, size: Size = FULL) -> Resolved:
    """Return the demo's configuration; its data lie in `run_dir/data`."""
    data = run_dir / "data"
    overrides = [
        f"data.train.0.path={encode_json(data / 'lessons.jsonl')}",
        f"data.train.1.path={encode_json(data / 'replay.jsonl')}",
        f"data.held_out.0.path={encode_json(data / 'held-out-lessons.jsonl')}",
        f"data.held_out.1.path={encode_json(data / 'held-out-text.jsonl')}",
        f"evaluate.tasks={encode_json([str(data / name) for name in TASK_FILES])}",
        f"run.dir={encode_json(run_dir)}",
        f"train.seed={seed}",
        f"train.method={method.value}",
    ]
    if method is Method.LORA:
        overrides += ["train.learning_rate=5e-3", "train.lora.rank=16"]
    if size.steps is not None:
        overrides.append(f"train.max_steps={size.steps}")
    return load_config(None, overrides, preset=PRESET)


def write_data(folder: Path, world: World, *, seed: int, size: Size) -> None:
    """Write lessons and replay text for training, the held-out sides of both, and the tasks of `tutelage eval`."""
    write_lessons(folder / "lessons.jsonl", world, Side.TRAIN, size.lessons, seed=seed)
    write_lessons(folder / "held-out-lessons.jsonl", world, Side.HELD_OUT, size.held_out)
    jsonl.write(folder / "replay.jsonl", pretraining.text_rows(text.documents(world, seed * size.replay, size.replay)))
    held_out_text = pretraining.held_out_text(world, min(pretraining.HELD_OUT_DOCUMENTS, 10 * size.held_out))
    jsonl.write(folder / "held-out-text.jsonl", pretraining.text_rows(held_out_text))
    for name, rows in task_files(world, size.held_out // len(Kind)).items():
        jsonl.write(folder / name, rows)


def run_demo(run: RunDir, resolved: Resolved, narrator: Any, *, size: Size = FULL) -> DemoResult:
    """Write the data, train, ask both models, and write `scores.json`."""
    from tutelage.generate.local import generate
    from tutelage.train.loop import train
    from tutelage.train.stop import StopNow

    world = make_world(WORLD_SEED)
    config = resolved.config
    write_data(run.path / "data", world, seed=config.train.seed, size=size)
    result = train(resolved, run, generate=generate, narrator=narrator)
    if result.status == "stopped":
        raise StopNow("the demo")
    assert result.final is not None and result.held_out_before is not None and result.held_out_after is not None
    before, after = result.held_out_before.by_source[TEXT].sums, result.held_out_after.by_source[TEXT].sums
    held_out = lessons(world, Side.HELD_OUT, size.held_out, seed=ASKED_SEED)
    transfer, strangers = transfer_questions(world, size.strangers), stranger_questions(world, size.strangers)

    def answers(model: Any, renderer: Any) -> Answers:
        ask = asker(model, renderer, max_new_tokens=config.sample.max_new_tokens)
        return Answers(*(answer_lessons(asked, ask) for asked in (held_out, transfer, strangers)))

    demo = DemoResult(
        run=run.path,
        base=answers(*_base(config)),
        tuned=answers(*_tuned(result.final, config)),
        text_loss_before=before.loss_sum / before.weight_sum,
        text_loss_after=after.loss_sum / after.weight_sum,
        seconds=sum(line["seconds"] for line in jsonl.read(run.metrics)),
        fingerprint=_fingerprint(result.final),
    )
    losses = [{"name": "held-out pre-training text", "base": vars(before), "tuned": vars(after)}]
    write_json(run.path / "scores.json", scores_json(demo, losses, seed=config.train.seed))
    return demo


def scores_json(demo: DemoResult, losses: Sequence[Any], *, seed: int) -> dict[str, Any]:
    """Return the content of `scores.json`, from which the report shows kinds, losses and answers."""
    answers = [
        {
            "question": _dialogue(before.lesson, before.answers),
            "base": before.answers[-1],
            "tuned": after.answers[-1],
            "expected": before.lesson.turns[-1].answer,
            "kind": before.lesson.kind.value,
            "base_correct": before.correct,
            "tuned_correct": after.correct,
        }
        for before, after in zip(demo.base.held_out, demo.tuned.held_out, strict=True)
    ]
    kinds = [
        {"name": kind, "base": vars(before), "tuned": vars(demo.tuned.by_kind[kind])}
        for kind, before in demo.base.by_kind.items()
    ]
    return {
        "title": "Held-out lessons, answered exactly right",
        "command": f"tutelage demo --seed {seed}",
        "kinds": kinds,
        "losses": list(losses),
        "answers": answers,
        "figures": demo.figures(),
    }


def _dialogue(lesson: Lesson, answers: Sequence[str]) -> str:
    """Return the questions of a lesson; the earlier answers are the base's own business and left out."""
    system = [f"[{lesson.system}]"] if lesson.system else []
    return "\n".join([*system, *(turn.question for turn in lesson.turns)])


def _base(config: Config) -> tuple[Any, Any]:
    """Return the base as training finds it: with embeddings for the template's new tokens, not trained yet."""
    from tutelage.model.load import grow_embeddings, load_model
    from tutelage.train.prepare import build_renderer

    renderer = build_renderer(config)
    model = load_model(config.model).model
    grow_embeddings(model, renderer.tokenizer.new_ids, seed=config.train.seed)
    return model, renderer


def _tuned(final: Path, config: Config) -> tuple[Any, Any]:
    from tutelage.chat.render import Renderer, RenderOptions
    from tutelage.chat.tokenizer import load_tokenizer
    from tutelage.model.load import load_model

    renderer = Renderer(load_tokenizer(final), None, RenderOptions.from_config(config.data))
    return load_model(ModelConfig(path=str(final))).model, renderer


def _fingerprint(final: Path) -> str:
    """Return the SHA-256 of the weights."""
    name = "model.safetensors" if (final / "model.safetensors").is_file() else "adapter_model.safetensors"
    return sha256_file(final / name)
