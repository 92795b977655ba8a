"""The training run, from a configuration to a tuned model, told from top to bottom in `train`.

prepare -> plan -> model -> layout probe -> evaluate and sample before -> steps -> the best or the last weights -> final/

Every rank runs the same story; the main one writes and speaks. A run that is stopped by a signal saves a checkpoint at the edge
of its step and goes on from there with `resume=True` as if it had not been.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tutelage.config.load import Resolved
from tutelage.files.rundir import RunDir
from tutelage.model.export import save_model
from tutelage.parallel import agree
from tutelage.train.books import Books
from tutelage.train.checkpoint import RunState, best_folder, keep_newest, load_weights, save_best, save_checkpoint
from tutelage.train.environment import choose_device
from tutelage.train.evaluate import Evaluation, evaluate
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
    device = choose_device(resolved.config.train)
    with agree.process_group(device), Journal(run, resolved) as journal:
        try:
            heard = narrator if narrator is not None and agree.is_main() else Narrator()
            scene = set_scene(resolved, journal, heard, start=start, device=device)
            return _train(scene, journal, heard, generate, resume=resume)
        except BaseException as error:
            journal.mark("failed", {"error": f"{type(error).__name__}: {error}"})
            raise


def _train(scene: Scene, journal: Journal, narrator: Narrator, generate: Generate, *, resume: bool) -> TrainResult:
    config, plan, prepared, run = scene.config.train, scene.plan, scene.prepared, journal.run
    model, optimiser, settings = scene.model, scene.optimiser, scene.settings

    def evaluate_now(step: int) -> Evaluation:
        evaluation = evaluate(model, prepared.held_out, settings, step=step)
        journal.evaluation(evaluation)
        narrator.evaluation(evaluation)
        return evaluation

    def sample_now(step: int) -> tuple[Sample, ...]:
        if not scene.prompts or not journal.writes:
            return ()
        limit = scene.config.sample.max_new_tokens
        with settings.autocast():
            samples = write_samples(model, scene.prompts, generate, prepared.renderer, step=step, max_new_tokens=limit)
        journal.samples(samples)
        narrator.samples(samples)
        return tuple(samples)

    # Where to begin: at nothing, or at the newest whole checkpoint.
    state = RunState(0, Improvement(), config_fingerprint(scene.config), scene.fingerprint)
    if resume:
        state = resume_from(run, model, optimiser, state, narrator)
        journal.forget_after(state.step)

    # Before.
    before = best = after = evaluate_now(0) if prepared.held_out and state.step == 0 else None
    samples_before = sample_now(0) if state.step == 0 else ()

    # The steps.
    evaluate_at = evaluation_steps(plan.num_steps, config.evaluate_every_steps) if prepared.held_out else frozenset()
    sample_at = sample_steps(plan.num_steps)
    books = Books(scene.documents)
    stopping = False
    narrator.begin(plan, state.step)
    with stop_on_signals() as stop:
        for number in range(state.step, plan.num_steps):
            if state.improvement.exhausted(config.early_stopping):
                waited = state.improvement.evaluations_since
                narrator.say(f"stopped early: the held-out loss has not fallen for {waited} evaluations")
                break
            step, planned = number + 1, plan.steps[number]
            is_last = step == plan.num_steps
            rate = learning_rate(step, plan.num_steps, config)
            set_learning_rate(optimiser, rate)
            result = train_step(model, optimiser, planned, scene.documents, settings, step=step)
            books.add(planned, result.by_source)
            line = metrics_line(
                result, step=step, epoch=plan.epochs[number], learning_rate=rate, slot_tokens=plan.slot_tokens
            )
            journal.step(line)
            narrator.step(line)

            improvement = state.improvement
            if step in evaluate_at:
                after = evaluate_now(step)
                improvement = improvement.after(after.loss, step, config.early_stopping)
                best = after if improvement.best_step == step else best
            if step in sample_at and not is_last:
                sample_now(step)

            # Everything of this step is on the disk before its checkpoint is: whoever resumes there repeats none of it.
            state = replace(state, step=step, improvement=improvement)
            stopping = agree.any_rank(bool(stop), settings.device) and not is_last
            if journal.writes and improvement.best_step == step:
                save_best(run, model, state)
            if journal.writes and (stopping or step % (config.checkpoint_every_steps or plan.num_steps + 1) == 0):
                save_checkpoint(run.checkpoint(step), model, optimiser, state)
                keep_newest(run, config.keep_checkpoints)
            if stopping:
                narrator.say(f"stopped by {stop.signal_name or 'another rank'} after step {step}; go on with --resume")
                break
    narrator.end()
    journal.receipt.add(books.conservation())
    books.book(prepared.ledger)
    journal.write_ledger(prepared.ledger)
    if stopping:
        journal.mark("stopped", {"step": state.step})
        return TrainResult("stopped", state.step, None, before, after, samples_before, (), journal.receipt)

    # The result: the best weights under early stopping, the last ones otherwise.
    agree.barrier()  # the main rank may still be writing the best
    if config.early_stopping is not None and state.improvement.best_step not in (0, state.step):
        load_weights(best_folder(run, state.improvement.best_step), model)
        narrator.say(f"the result is the best checkpoint, of step {state.improvement.best_step}")
        after = best
    if journal.writes:
        template = prepared.renderer.template if prepared.contract is not None else None
        save_model(model, prepared.tokenizer, template, run.final, stop_ids=prepared.renderer.stop_ids)
    samples_after = sample_now(state.step)
    journal.mark("finished", {"folder": "final", "steps": state.step})
    return TrainResult("finished", state.step, run.final, before, after, samples_before, samples_after, journal.receipt)
