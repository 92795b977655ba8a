"""The training run, from a configuration to a tuned model, told from top to bottom in `train`.

prepare -> plan -> model -> layout probe -> evaluate and sample before -> steps -> the best or the last weights -> final/

Every rank runs the same story; the main one writes and speaks. A run that is asked to stop, whatever it is at, leaves a checkpoint and
goes on from there with `resume=True` as if it had not been. A checkpoint is of the moment right after its step, before anything
looks at the model: whoever goes on from it repeats those looks.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tutelage.config.load import Resolved
from tutelage.data.retrieve import remember
from tutelage.files.atomic import remove_folder
from tutelage.files.rundir import RunDir
from tutelage.model.adapters import is_adapted
from tutelage.model.export import save_model
from tutelage.parallel import agree
from tutelage.parallel.shard import whole_weights
from tutelage.redact import redact
from tutelage.train.books import Books
from tutelage.train.checkpoint import RunState, load_weights
from tutelage.train.environment import choose_device
from tutelage.train.evaluate import Evaluation
from tutelage.train.guard import incident
from tutelage.train.journal import Journal, metrics_line
from tutelage.train.look import Look, Progress
from tutelage.train.narrate import Narrator
from tutelage.train.objective import Reweighing
from tutelage.train.optim import learning_rate, set_learning_rate
from tutelage.train.out_of_memory import noting_out_of_memory, refusing_what_does_not_fit
from tutelage.train.probe import MakeProbe, no_probe
from tutelage.train.receipt import Receipt
from tutelage.train.resume import Changed, agreed_best, config_fingerprint, resume_from, tokenizer_fingerprint
from tutelage.train.roll_back import is_passed_over, roll_back
from tutelage.train.sample import Generate, Sample
from tutelage.train.saver import Saver
from tutelage.train.scene import set_scene
from tutelage.train.step import train_step
from tutelage.train.stop import Improvement, StopFlag, StopNow, stop_on_signals
from tutelage.train.trainee import Start


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. `final` is None when it was stopped before its end."""

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
    make_probe: MakeProbe = no_probe,
    narrator: Narrator | None = None,
    start: Start = Start.WEIGHTS,
    resume: bool = False,
    accept_changed: Collection[Changed] = (),
    stop: StopFlag | None = None,
) -> TrainResult:
    """Train as `resolved` says and leave everything in `run`.

    `generate` continues prompts, for the answers before, during and after; `make_probe` makes what the gate asks of them. With `resume` the newest whole checkpoint of `run` is
    where training goes on; without one it begins anew. `accept_changed` names what a checkpoint may differ in from what
    the run is now. `stop` is the flag of a caller who listens to signals already.

    Raises:
        StopNow: a signal came before there was anything to save.
        TutelageError: of the kind that fits; the run directory then says `failed` and why.
    """
    device = choose_device(resolved.config.train)
    listening = stop_on_signals() if stop is None else nullcontext(stop)
    with listening as flag, agree.process_group(device), Journal(run, resolved) as journal:
        flag.limit(resolved.config.train.max_minutes)
        heard = narrator if narrator is not None and agree.is_main() else Narrator()
        try:
            with refusing_what_does_not_fit(resolved.config):
                scene = set_scene(resolved, journal, heard, start=start, device=device)
            probe = make_probe(scene.config, scene.prepared, scene.context_tokens)
            with Saver(journal, heard, flag, scene.config.train) as saver:
                look = Look(scene, journal, heard, generate, flag, saver, probe)
                return _train(look, resume=resume, accept_changed=accept_changed)
        except StopNow as asked:
            journal.mark("stopped", {"step": max(run.checkpoint_steps(), default=0)})
            heard.say(f"stopped by {asked.name} before the first step; the same command goes on")
            raise
        except BaseException as error:
            with suppress(OSError):  # on a full disk, say; what went wrong is told all the same
                journal.mark("failed", {"error": redact(f"{type(error).__name__}: {error}")})
            raise


def _train(look: Look, *, resume: bool, accept_changed: Collection[Changed]) -> TrainResult:
    scene, journal, saver = look.scene, look.journal, look.saver

    # Where to begin: at nothing, or at the newest whole checkpoint.
    progress = Progress(
        RunState(
            0,
            Improvement(),
            config_fingerprint(scene.config),
            scene.fingerprint,
            tokenizer_fingerprint(scene.prepared.tokenizer),
        )
    )
    if resume:
        found = resume_from(journal, look.narrator, scene.model, scene.optimiser, progress.state, accept=accept_changed)
        if found is not None:
            progress.state, saver.saved_step = found, found.step
        journal.forget_after(progress.state.step, rolled_back=len(progress.state.rolled_back))
    look.stop.is_worth_saving = True  # from here on a signal waits for the edge of a step
    saver.begin(scene.model, scene.optimiser, progress.state)
    with noting_out_of_memory(look, progress):
        return _learn(look, progress)


def _learn(look: Look, progress: Progress) -> TrainResult:
    scene, journal, prepared = look.scene, look.journal, look.scene.prepared

    # The looks that are due here, and the steps.
    books = Books(scene.documents)
    scene.meter.begin()
    to_the_end = look.around(progress) and _take_steps(look, progress, books)
    _compare_memory(look)
    journal.receipt.add(books.conservation())
    books.book(prepared.ledger)
    journal.write_ledger(prepared.ledger)
    if not to_the_end:
        return _stopped(look, progress)

    # The result.
    after = _choose_weights(look, progress)
    samples_after = look.sample(progress.state.step)
    if samples_after is None:
        return _stopped(look, progress)
    final = _write_result(look)
    gate = progress.state.gate
    ended = {
        "folder": "final",
        "steps": progress.state.step,
        "text_loss_rise": gate.rise,
        "breached_at": gate.breached_at,
        "breaches": dict(gate.breaches),
    }
    journal.mark("finished", ended)
    return TrainResult(
        "finished",
        progress.state.step,
        final,
        progress.before,
        after,
        progress.samples_before,
        samples_after,
        journal.receipt,
    )


def _take_steps(look: Look, progress: Progress, books: Books) -> bool:
    """Take the steps that remain, keeping `progress` and `books`; return whether they came to their end.

    Raises:
        TrainingError: too many steps were left out, and the run may not go back to before them.
    """
    scene, narrator, config = look.scene, look.narrator, look.scene.config.train
    every = config.checkpoint_every_steps
    narrator.begin(scene.plan, progress.state.step)
    while progress.state.step < scene.plan.num_steps:
        if progress.state.improvement.exhausted(config.early_stopping):
            waited = progress.state.improvement.evaluations_since
            narrator.say(f"stopped early: the held-out loss has not fallen for {waited} evaluations")
            break
        if progress.state.gate.ends(config.gate):
            narrator.say(
                f"ended by train.gate.on_breach={config.gate.on_breach.value} after step {progress.state.step}"
            )
            break
        step = progress.state.step + 1
        fault = None if is_passed_over(progress.state, step) else _take_step(look, progress, books, step)
        progress.state = replace(progress.state, step=step)
        if fault is not None and progress.state.watched.too_many(config.guard):
            roll_back(look, progress, step, fault)
        elif every and step % every == 0:
            look.saver.save(scene.model, scene.optimiser, progress.state)
        look.saver.look_back()
        if look.halted() or not look.around(progress):
            return False
    narrator.end()
    return True


def _stopped(look: Look, progress: Progress) -> TrainResult:
    """Leave a checkpoint of the last step, and say how to go on; before the first step there is nothing to keep."""
    step, journal = progress.state.step, look.journal
    if step:
        look.saver.save(look.scene.model, look.scene.optimiser, progress.state, must=True)
    journal.mark("stopped", {"step": step})
    look.narrator.end()
    look.narrator.say(f"stopped by {look.stop.reason or 'another rank'} after step {step}; the same command goes on")
    before, latest, samples = progress.before, progress.latest, progress.samples_before
    return TrainResult("stopped", step, None, before, latest, samples, (), journal.receipt)


def _compare_memory(look: Look) -> None:
    """Write down and say what the steps took of memory, beside what was predicted."""
    scene, measured = look.scene, look.scene.meter.peak_bytes()
    if measured is None:
        return
    look.journal.write(look.journal.run.environment, {**scene.environment, "memory_measured_bytes": measured})
    predicted = "not predicted" if scene.predicted_bytes is None else f"predicted {scene.predicted_bytes / 1e9:.2f} GB"
    look.narrator.say(f"memory {predicted}, measured {measured / 1e9:.2f} GB")


def _take_step(look: Look, progress: Progress, books: Books, step: int) -> str | None:
    """Take one step, or leave it out, write down what it did, and return why it was left out."""
    scene, plan, rule, watched = look.scene, look.scene.plan, look.scene.config.train.guard, progress.state.watched
    planned, epoch = plan.steps[step - 1], plan.epochs[step - 1]
    rate = learning_rate(step, plan.num_steps, scene.config.train)
    set_learning_rate(scene.optimiser, rate)
    progress.taking = step
    result = train_step(
        scene.model,
        scene.optimiser,
        planned,
        scene.documents,
        scene.settings,
        step=step,
        judge=lambda loss, grad_norm: watched.fault(loss, grad_norm, rule),
        reweighing=Reweighing(scene.replay, progress.state.gate.replay_weight),
    )
    books.add(planned, result.by_source)
    line = {
        **metrics_line(result, step=step, epoch=epoch, learning_rate=rate, slot_tokens=plan.slot_tokens),
        "replay_weight": progress.state.gate.replay_weight,
    }
    look.journal.step(line)
    look.narrator.step(line)
    if result.left_out is not None:
        look.journal.incident(incident(result, planned, scene.documents, step=step, run=look.journal.run.path))
        look.narrator.say(f"step {step} was left out: {result.left_out}; see {look.journal.run.incidents.name}")
    look.stop.took("step", result.seconds)
    progress.state = replace(progress.state, watched=watched.after(result, step))
    progress.taking = None
    return result.left_out


def _choose_weights(look: Look, progress: Progress) -> Evaluation | None:
    """Let the model have the weights of the result, and return their evaluation.

    They are the best under early stopping, and where the gate asks for them; the last otherwise.
    """
    scene, state = look.scene, progress.state
    look.saver.settle()
    agree.barrier()  # the main rank may still be writing the best
    best_step = state.improvement.best_step
    is_best = best_step == state.step and not state.rolled_back  # a roll-back may have undone the step of that number
    wants_best = scene.config.train.early_stopping is not None or state.gate.takes_best(scene.config.train.gate)
    if wants_best and not best_step:
        look.narrator.say("no evaluation was within the budget: the result is the last weights")
    if not wants_best or not best_step or is_best:
        return progress.latest
    look.saver.save(scene.model, scene.optimiser, state, must=True)  # the last weights are about to go
    folder = agreed_best(look.journal, look.narrator, best_step)
    if folder is None:
        return progress.latest
    load_weights(folder, scene.model)
    look.narrator.say(f"the result is the best checkpoint, of step {best_step}")
    return progress.best


def _write_result(look: Look) -> Path:
    """Write the model as it stands to the folder `final` and return it; every rank takes part."""
    scene, prepared, run = look.scene, look.scene.prepared, look.journal.run
    weights = whole_weights(scene.model, trainable_only=is_adapted(scene.model))
    if look.journal.writes:
        template = prepared.renderer.template if prepared.contract is not None else None
        stop_ids = prepared.renderer.stop_ids
        about = remember(scene.config.data.retrieve, prepared.corpus)
        if run.final.is_dir():  # the run was killed before it could say that it had ended; perhaps with other weights
            remove_folder(run.final)
        save_model(
            scene.model, prepared.tokenizer, template, run.final, stop_ids=stop_ids, about=about, weights=weights
        )
    return run.final
