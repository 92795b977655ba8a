"""The training run, from a configuration to a tuned model, told from top to bottom in `train`.

prepare -> plan -> model -> layout probe -> evaluate and sample before -> steps -> the best or the last weights -> final/

Every rank runs the same story; the main one writes and speaks. A run that is stopped by a signal saves a checkpoint at the edge
of its step and goes on from there with `resume=True` as if it had not been.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tutelage.config.load import Resolved
from tutelage.config.schema import EarlyStopping
from tutelage.files.rundir import RunDir
from tutelage.model.adapters import is_adapted
from tutelage.model.export import save_model
from tutelage.parallel import agree
from tutelage.parallel.shard import in_step, is_in_parts, whole_weights
from tutelage.train.books import Books
from tutelage.train.checkpoint import RunState, best_folder, keep_newest, load_weights, save_best, save_checkpoint
from tutelage.train.environment import choose_device
from tutelage.train.evaluate import Evaluation, evaluate
from tutelage.train.guard import incident, require_few
from tutelage.train.journal import Journal, metrics_line
from tutelage.train.narrate import Narrator
from tutelage.train.optim import learning_rate, set_learning_rate
from tutelage.train.plan import evaluation_steps, sample_steps
from tutelage.train.receipt import Receipt
from tutelage.train.resume import config_fingerprint, resume_from
from tutelage.train.sample import Generate, Sample, write_samples
from tutelage.train.scene import Scene, set_scene
from tutelage.train.step import train_step
from tutelage.train.stop import Improvement, stop_on_signals
from tutelage.train.trainee import Start


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. `final` is None when a signal stopped it before its end."""

    status: str
    steps: int
    final: Path | None
    held_out_before: Evaluation | None
    held_out_after: Evaluation | None
    samples_before: tuple[Sample, ...]
    samples_after: tuple[Sample, ...]
    receipt: Receipt


def train(
    resolved: Resolved,
    run: RunDir,
    *,
    generate: Generate,
    narrator: Narrator | None = None,
    start: Start = Start.WEIGHTS,
    resume: bool = False,
) -> TrainResult:
    """Train as `resolved` says and leave everything in `run`.

    `generate` continues prompts, for the answers before, during and after. With `resume` the newest whole checkpoint of `run` is
    where training goes on; without one it begins anew.

    Raises:
        TutelageError: of the kind that fits; the run directory then says `failed` and why.
    """
    minutes = resolved.config.train.max_minutes
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    device = choose_device(resolved.config.train)
    with agree.process_group(device), Journal(run, resolved) as journal:
        try:
            heard = narrator if narrator is not None and agree.is_main() else Narrator()
            scene = set_scene(resolved, journal, heard, start=start, device=device)
            return _train(_Look(scene, journal, heard, generate), deadline, resume=resume)
        except BaseException as error:
            journal.mark("failed", {"error": f"{type(error).__name__}: {error}"})
            raise


def _train(look: _Look, deadline: float, *, resume: bool) -> TrainResult:
    scene, journal, prepared = look.scene, look.journal, look.scene.prepared

    # Where to begin: at nothing, or at the newest whole checkpoint.
    state = RunState(0, Improvement(), config_fingerprint(scene.config), scene.fingerprint)
    if resume:
        state = resume_from(journal.run, scene.model, scene.optimiser, state, look.narrator)
        journal.forget_after(state.step)

    # Before.
    before = look.evaluate(0) if prepared.held_out and state.step == 0 else None
    samples_before = look.sample(0) if state.step == 0 else ()

    # The steps.
    progress, books = _Progress(state, latest=before, best=before), Books(scene.documents)
    scene.meter.begin()
    stopped = _take_steps(look, progress, books, deadline)
    _compare_memory(look)
    state = progress.state
    journal.receipt.add(books.conservation())
    books.book(prepared.ledger)
    journal.write_ledger(prepared.ledger)
    if stopped:
        journal.mark("stopped", {"step": state.step})
        return TrainResult("stopped", state.step, None, before, progress.latest, samples_before, (), journal.receipt)

    # The result.
    after = _settle(look, progress)
    samples_after = look.sample(state.step)
    final = journal.run.final
    journal.mark("finished", {"folder": "final", "steps": state.step})
    return TrainResult("finished", state.step, final, before, after, samples_before, samples_after, journal.receipt)


@dataclass(frozen=True)
class _Look:
    """Looks at the model between steps, and leaves in the run what it saw."""

    scene: Scene
    journal: Journal
    narrator: Narrator
    generate: Generate

    def evaluate(self, step: int) -> Evaluation:
        """Evaluate on the held-out documents; every rank takes part."""
        evaluation = evaluate(self.scene.model, self.scene.prepared.held_out, self.scene.settings, step=step)
        self.journal.evaluation(evaluation)
        self.narrator.evaluation(evaluation)
        return evaluation

    def sample(self, step: int) -> tuple[Sample, ...]:
        """Answer the prompts of the samples: the main rank does, and with it all ranks that hold a part of the model."""
        scene = self.scene
        if not scene.prompts or not (self.journal.writes or is_in_parts(scene.model)):
            return ()
        limit, renderer = scene.config.sample.max_new_tokens, scene.prepared.renderer
        with scene.settings.autocast(), in_step(scene.model):
            samples = write_samples(
                scene.model, scene.prompts, self.generate, renderer, step=step, max_new_tokens=limit
            )
        self.journal.samples(samples)
        self.narrator.samples(samples)
        return tuple(samples)


@dataclass
class _Progress:
    """How far the steps have come, and the latest and the best evaluation on the way."""

    state: RunState
    latest: Evaluation | None
    best: Evaluation | None

    def evaluated(self, evaluation: Evaluation, rule: EarlyStopping | None) -> None:
        """Take in an evaluation of held-out documents."""
        improvement = self.state.improvement.after(evaluation.loss, evaluation.step, rule)
        self.state = replace(self.state, improvement=improvement)
        self.latest = evaluation
        if improvement.best_step == evaluation.step:
            self.best = evaluation


def _take_steps(look: _Look, progress: _Progress, books: Books, deadline: float) -> bool:
    """Take the steps that remain, keeping `progress` and `books`; return whether they were stopped before the end."""
    scene, narrator, plan = look.scene, look.narrator, look.scene.plan
    config = scene.config.train
    evaluate_at = evaluation_steps(plan.num_steps, config.evaluate_every_steps) if scene.prepared.held_out else ()
    sample_at = sample_steps(plan.num_steps)
    stopping = False
    narrator.begin(plan, progress.state.step)
    with stop_on_signals(deadline) as stop:
        for step in range(progress.state.step + 1, plan.num_steps + 1):
            if progress.state.improvement.exhausted(config.early_stopping):
                waited = progress.state.improvement.evaluations_since
                narrator.say(f"stopped early: the held-out loss has not fallen for {waited} evaluations")
                break
            is_last = step == plan.num_steps
            _take_step(look, progress, books, step)
            if step in evaluate_at:
                progress.evaluated(look.evaluate(step), config.early_stopping)
            if step in sample_at and not is_last:
                look.sample(step)

            # Everything of this step is on the disk before its checkpoint is: whoever resumes there repeats none of it.
            progress.state = replace(progress.state, step=step)
            stopping = agree.any_rank(bool(stop), scene.settings.device) and not is_last
            _save(look, progress.state, stopping=stopping)
            if stopping:
                narrator.say(f"stopped by {stop.reason or 'another rank'} after step {step}; go on with --resume")
                break
    narrator.end()
    return stopping


def _compare_memory(look: _Look) -> None:
    """Write down and say what the steps took of memory, beside what was predicted."""
    scene, measured = look.scene, look.scene.meter.peak_bytes()
    if measured is None:
        return
    look.journal.write(look.journal.run.environment, {**scene.environment, "memory_measured_bytes": measured})
    predicted = "not predicted" if scene.predicted_bytes is None else f"predicted {scene.predicted_bytes / 1e9:.2f} GB"
    look.narrator.say(f"memory {predicted}, measured {measured / 1e9:.2f} GB")


def _take_step(look: _Look, progress: _Progress, books: Books, step: int) -> None:
    """Take one step, or leave it out, and write down what it did.

    Raises:
        TrainingError: too many steps were left out.
    """
    scene, plan, rule, watched = look.scene, look.scene.plan, look.scene.config.train.guard, progress.state.watched
    planned, epoch = plan.steps[step - 1], plan.epochs[step - 1]
    rate = learning_rate(step, plan.num_steps, scene.config.train)
    set_learning_rate(scene.optimiser, rate)
    result = train_step(
        scene.model,
        scene.optimiser,
        planned,
        scene.documents,
        scene.settings,
        step=step,
        judge=lambda loss, grad_norm: watched.fault(loss, grad_norm, rule),
    )
    books.add(planned, result.by_source)
    line = metrics_line(result, step=step, epoch=epoch, learning_rate=rate, slot_tokens=plan.slot_tokens)
    look.journal.step(line)
    look.narrator.step(line)
    if result.left_out is not None:
        look.journal.incident(incident(result, planned, scene.documents, step=step, run=look.journal.run.path))
        look.narrator.say(f"step {step} was left out: {result.left_out}; see {look.journal.run.incidents.name}")
    progress.state = replace(progress.state, watched=watched.after(result))
    require_few(progress.state.watched, result, rule, step=step)


def _save(look: _Look, state: RunState, *, stopping: bool) -> None:
    """Save what the edge of a step asks for: the best weights so far, and a checkpoint to go on from."""
    scene, run, config = look.scene, look.journal.run, look.scene.config.train
    if state.improvement.best_step == state.step:
        save_best(run, scene.model, state)
    every = config.checkpoint_every_steps
    if stopping or (every and state.step % every == 0):
        save_checkpoint(run.checkpoint(state.step), scene.model, scene.optimiser, state)
        keep_newest(run, config.keep_checkpoints)


def _settle(look: _Look, progress: _Progress) -> Evaluation | None:
    """Write the result, the best weights under early stopping and the last ones otherwise; return its evaluation."""
    scene, prepared, run = look.scene, look.scene.prepared, look.journal.run
    state, evaluation = progress.state, progress.latest
    agree.barrier()  # the main rank may still be writing the best
    if scene.config.train.early_stopping is not None and state.improvement.best_step not in (0, state.step):
        load_weights(best_folder(run, state.improvement.best_step), scene.model)
        look.narrator.say(f"the result is the best checkpoint, of step {state.improvement.best_step}")
        evaluation = progress.best
    weights = whole_weights(scene.model, trainable_only=is_adapted(scene.model))
    if look.journal.writes:
        template = prepared.renderer.template if prepared.contract is not None else None
        stop_ids = prepared.renderer.stop_ids
        save_model(scene.model, prepared.tokenizer, template, run.final, stop_ids=stop_ids, weights=weights)
    return evaluation
