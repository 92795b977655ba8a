"""One run of a claim, in this process: the preparation, the plan and the steps are those of `tutelage train`, without its files.

What a claim needs and the product must not have is done here, to documents that were prepared as they should be: loss on tokens that are
not the assistant's, and packs whose documents run into one another.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tutelage.chat.rendered import Part, Rendered
from tutelage.config.load import load_config
from tutelage.config.schema import Config, Layout, Method, Precision
from tutelage.files import jsonl
from tutelage.files.atomic import write_text
from tutelage.files.encode import encode_json
from tutelage.lab import pretraining, text
from tutelage.lab.claims.material import training_lessons
from tutelage.lab.claims.settings import Arrangement, LossOn, Settings
from tutelage.lab.lesson import Side
from tutelage.lab.lessons import lessons
from tutelage.lab.world import World
from tutelage.pack.plan import Step
from tutelage.train.evaluate import evaluate
from tutelage.train.optim import build_optimiser, learning_rate, set_learning_rate
from tutelage.train.plan import RunPlan, plan_run
from tutelage.train.prepare import Prepared, prepare
from tutelage.train.step import StepSettings, train_step
from tutelage.train.trainee import Start, make_trainee

LESSONS, REPLAY, WATCHED, TEXT = "lessons", "replay", "held-out lessons", "held-out text"
STEP_TOKENS = 512
"""Small, so that a run of ten seconds has ninety steps."""
WATCHES = 10
"""Evaluations of a run that takes the weights of its lowest held-out loss."""
_WITHOUT_ROLES = """\
{%- for message in messages -%}
{{- message.content -}}{{- '\\n' if message.role != 'assistant' else '<|endoftext|>\\n' -}}
{%- endfor -%}"""
"""Plain concatenation: a line for each message, and the end of a text after each answer, for how else should a model learn to stop."""


@dataclass(frozen=True)
class Learned:
    """A model after its run, with what was prepared for it.

    Units: `step_seconds` are seconds of processor time of all steps; `read_tokens` those of the documents, repetitions counted.
    """

    model: torch.nn.Module
    prepared: Prepared
    steps: StepSettings
    text_loss_before: float
    num_steps: int
    step_seconds: float
    read_tokens: int


def learn(world: World, settings: Settings) -> Learned:
    """Write the data of a run, prepare them, and train the base that ships on them; one thread, 32 bits."""
    with tempfile.TemporaryDirectory() as folder, _one_thread():
        write_data(Path(folder), world, settings)
        config = load_config(None, overrides(Path(folder), settings)).config
        return _learn(config, prepare(config), settings)


def losses(learned: Learned, documents: Sequence[Rendered]) -> float | None:
    """Return the loss on these documents in nats per token that carries loss; None where there is none."""
    documents = [document for document in documents if document.supervised_tokens]
    if not documents:
        return None
    return evaluate(learned.model, documents, learned.steps, step=0).loss  # type: ignore[union-attr]  # nothing halts it


def on_prompts(document: Rendered) -> Rendered:
    """Return the document with its loss on what users say, which training leaves alone."""
    of_user = np.array([number >= 0 and document.roles[number] == "user" for number in document.message])
    weights = (of_user & (document.part == Part.CONTENT)).astype(np.float32)
    return replace(document, weights=weights)


def write_data(folder: Path, world: World, settings: Settings) -> None:
    """Write what a run trains on and is watched on into `folder`."""
    jsonl.write(folder / "lessons.jsonl", (lesson.row() for lesson in training_lessons(world, settings)))
    if settings.replay_share:
        replay = text.documents(world, settings.seed * settings.lessons, settings.lessons)
        jsonl.write(folder / "replay.jsonl", pretraining.text_rows(replay))
    watched = lessons(world, Side.HELD_OUT, settings.asked, seed=settings.seed)
    jsonl.write(folder / "watched.jsonl", (lesson.row() for lesson in watched))
    start = pretraining.HELD_OUT_START + settings.seed * settings.texts
    jsonl.write(folder / "text.jsonl", pretraining.text_rows(text.documents(world, start, settings.texts)))
    if not settings.role_tokens:
        write_text(folder / "lines.jinja", _WITHOUT_ROLES)


def overrides(folder: Path, settings: Settings) -> list[str]:
    """Return the configuration of a run on the data in `folder`, as words of a command line."""
    sources: list[dict[str, Any]] = [{"path": str(folder / "lessons.jsonl"), "name": LESSONS}]
    if settings.replay_share:
        path = str(folder / "replay.jsonl")
        sources.append({"path": path, "name": REPLAY, "kind": "text", "share": settings.replay_share})
    held_out = [
        {"path": str(folder / "watched.jsonl"), "name": WATCHED},
        {"path": str(folder / "text.jsonl"), "name": TEXT, "kind": "text"},
    ]
    choices: dict[str, Any] = {
        "model.path": "lab",
        "model.template": "chatml" if settings.role_tokens else str(folder / "lines.jinja"),
        "model.dropout": settings.dropout or None,
        "data.train": sources,
        "data.held_out": held_out,
        "data.max_tokens": STEP_TOKENS,
        "data.cache": "off",
        "data.workers": 0,
        "train.method": settings.method.value,
        "train.epochs": max(settings.passes, 1) / settings.lessons,
        "train.learning_rate": settings.learning_rate,
        "train.warmup_fraction": 0.05,
        "train.final_fraction": 0.05,
        "train.batch_tokens": STEP_TOKENS,
        "train.micro_tokens": STEP_TOKENS,
        "train.packing": Layout.PADDED.value if settings.arrangement is Arrangement.PADDED else Layout.PACKED.value,
        "train.precision": Precision.FP32.value,
        "train.neftune_alpha": settings.neftune_alpha,
        "train.seed": settings.seed,
    }
    if settings.method is Method.LORA:
        choices |= {"train.lora.rank": 8, "train.lora.alpha": 16}
    return [f"{key}={encode_json(value)}" for key, value in choices.items()]


def _learn(config: Config, prepared: Prepared, settings: Settings) -> Learned:
    device = torch.device("cpu")
    documents = weighed(prepared.documents, settings.loss_on)
    plan = plan_run(documents, prepared.mixture, config)
    trainee = make_trainee(
        config, start=Start.WEIGHTS, device=device, precision=Precision.FP32, new_ids=prepared.new_ids
    )
    steps = StepSettings(
        layout=config.train.packing,
        micro_tokens=plan.slot_tokens,
        seed=config.train.seed,
        precision=Precision.FP32,
        device=device,
        largest_grad_norm=config.train.clip_grad_norm,
        neftune_alpha=config.train.neftune_alpha,
        sources=prepared.sources,
    )
    started = Learned(trainee.model, prepared, steps, 0.0, plan.num_steps if settings.passes else 0, 0.0, 0)
    before = losses(started, of_source(prepared.held_out, TEXT))
    assert before is not None
    seconds = _take_steps(started, config, plan, documents, settings) if settings.passes else 0.0
    return replace(started, text_loss_before=before, step_seconds=seconds, read_tokens=plan.num_tokens)


def _take_steps(
    started: Learned, config: Config, plan: RunPlan, documents: Sequence[Rendered], settings: Settings
) -> float:
    """Take every step, and return their processor time in seconds; the model is left with the weights that are asked for."""
    model, watched = started.model, of_source(started.prepared.held_out, WATCHED)
    optimiser = build_optimiser(model, config.train)
    every = max(1, plan.num_steps // WATCHES)
    lowest, best, seconds = float("inf"), None, 0.0
    for number, planned in enumerate(plan.steps, start=1):
        set_learning_rate(optimiser, learning_rate(number, plan.num_steps, config.train))
        began = time.process_time()
        taken, members = arranged(planned, documents, settings.arrangement)
        train_step(model, optimiser, taken, members, started.steps, step=number)
        seconds += time.process_time() - began
        if settings.takes_best and (number % every == 0 or number == plan.num_steps):
            loss = losses(started, watched)
            if loss is not None and loss < lowest:
                lowest, best = loss, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if best is not None:
        model.load_state_dict(best)
    return seconds


def weighed(documents: Sequence[Rendered], loss_on: LossOn) -> Sequence[Rendered]:
    """Return the documents as they are, or with every token weighing as much as the next, whoever says it."""
    if loss_on is LossOn.ANSWERS:
        return documents
    return [replace(document, weights=np.ones_like(document.weights)) for document in documents]


def arranged(planned: Step, documents: Sequence[Rendered], arrangement: Arrangement) -> tuple[Step, Sequence[Rendered]]:
    """Return a step with the documents that it numbers: as planned or, where packs shall leak, with each pack run together."""
    if arrangement is not Arrangement.LEAKY:
        return planned, documents
    joined = [_run_together([documents[index] for index in pack]) for pack in planned.packs]
    return replace(planned, packs=tuple((number,) for number in range(len(joined))), shared=()), joined


def _run_together(documents: Sequence[Rendered]) -> Rendered:
    """Return the documents of a pack as one: positions go on from one to the next, and each sees those before it."""
    messages: list[npt.NDArray[np.int32]] = []
    roles: list[str] = []
    for document in documents:
        messages.append(np.where(document.message < 0, document.message, document.message + len(roles)))
        roles += document.roles
    return replace(
        documents[0],
        ids=np.concatenate([document.ids for document in documents]),
        weights=np.concatenate([document.weights for document in documents]),
        part=np.concatenate([document.part for document in documents]),
        message=np.concatenate(messages),
        roles=tuple(roles),
    )


def of_source(documents: Sequence[Rendered], name: str) -> list[Rendered]:
    """Return the documents of one source."""
    return [document for document in documents if document.source == name]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute with one thread: the bits of a sum depend on their number, and each process has a core of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
