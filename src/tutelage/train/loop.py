"""The training run, from a configuration to a tuned model, told from top to bottom in `train`.

prepare -> plan -> model -> layout probe -> evaluate and sample before -> steps -> the best or the last weights -> final/

Every rank runs the same story; the main one writes and speaks. A run that is stopped by a signal saves a checkpoint at the edge
of its step and goes on from there with `resume=True` as if it had not been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tutelage.chat.rendered import Rendered
from tutelage.config.load import Resolved
from tutelage.config.schema import Config
from tutelage.data.conversation import content_hash
from tutelage.data.ledger import Ledger
from tutelage.errors import RunDirError, TrainingError
from tutelage.files.rundir import RunDir
from tutelage.model.export import save_model
from tutelage.pack.plan import Step
from tutelage.parallel import agree
from tutelage.train import checkpoint
from tutelage.train.checkpoint import RunState
from tutelage.train.describe import describe_plan, estimate_memory, picture_masks
from tutelage.train.environment import (
    choose_device,
    choose_precision,
    describe_environment,
    keep_freed_memory,
)
from tutelage.train.evaluate import Evaluation, evaluate
from tutelage.train.journal import Journal, metrics_line
from tutelage.train.layout import choose_layout
from tutelage.train.narrate import Narrator
from tutelage.train.objective import SourceTotals
from tutelage.train.optim import build_optimiser, learning_rate, set_learning_rate
from tutelage.train.plan import RunPlan, evaluation_steps, plan_run, sample_steps
from tutelage.train.prepare import Prepared, prepare
from tutelage.train.receipt import Check, Receipt
from tutelage.train.sample import Generate, Sample, choose_prompts, write_samples
from tutelage.train.step import StepSettings, train_step
from tutelage.train.stop import Improvement, stop_on_signals
from tutelage.train.trainee import Start, Trainee, make_trainee


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
    config = resolved.config
    device = choose_device(config.train)
    with agree.process_group(device), Journal(run, resolved) as journal:
        try:
            heard = narrator if narrator is not None and agree.is_main() else Narrator()
            return _train(resolved, journal, generate, heard, start, device, resume)
        except BaseException as error:
            journal.mark("failed", {"error": f"{type(error).__name__}: {error}"})
            raise


def _train(
    resolved: Resolved,
    journal: Journal,
    generate: Generate,
    narrator: Narrator,
    start: Start,
    device: torch.device,
    resume: bool,
) -> TrainResult:
    config, run = resolved.config, journal.run
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = True  # the "fp32" of every GPU trainer; weights and sums stay fp32
    precision = choose_precision(config.train, device)
    journal.write_config(resolved)
    journal.write(run.environment, describe_environment(device))

    # The documents, and the order in which they are learned.
    prepared = prepare(config, progress=narrator.preparing)
    if journal.writes:
        prepared.ledger.write(run.ledger, quarantine=run.quarantine)
    plan = plan_run(prepared.documents, prepared.mixture, config)
    fingerprint = plan.fingerprint(prepared.documents)
    _require_agreement(fingerprint, device)
    for check in _data_checks(prepared, plan, fingerprint):
        journal.receipt.add(check)

    # The model, and the layout that it can be trained in.
    trainee = make_trainee(config, start=start, device=device, precision=precision, new_ids=prepared.new_ids)
    model = trainee.model
    trainee.require_room(max(map(len, (*prepared.documents, *prepared.held_out))))
    settings = StepSettings(
        layout=config.train.packing,
        micro_tokens=plan.slot_tokens,
        seed=config.train.seed,
        precision=precision,
        device=device,
        largest_grad_norm=config.train.clip_grad_norm,
        neftune_alpha=config.train.neftune_alpha,
        sources=prepared.sources,
    )
    settings, layout_reason = _settle_layout(settings, trainee, plan, prepared, journal.receipt)
    narrator.say(f"layout {settings.layout.value}: {layout_reason}")
    narrator.say(f"attention {trainee.attention.name}: {trainee.attention.reason}")
    optimiser = build_optimiser(model, config.train)
    memory = estimate_memory(model, precision, plan.slot_tokens, checkpointing=config.train.gradient_checkpointing)
    description = {
        **describe_plan(prepared, plan, config),
        "layout": {"name": settings.layout.value, "reason": layout_reason},
        "attention": {"name": trainee.attention.name, "reason": trainee.attention.reason},
        "precision": precision.value,
        "memory_bytes": memory,
        "parameters": trainee.num_parameters,
        "trainable_parameters": trainee.num_trainable,
    }
    journal.write(run.plan, description)
    narrator.plan(description)
    journal.write(run.masks, picture_masks(prepared))

    # Where to begin: at nothing, or at the newest whole checkpoint.
    state = RunState(0, Improvement(), _config_fingerprint(config), fingerprint)
    if resume:
        state = _resume(run, model, optimiser, state, narrator)
        journal.forget_after(state.step)

    def evaluate_now(step: int) -> Evaluation:
        evaluation = evaluate(model, prepared.held_out, settings, step=step)
        journal.evaluation(evaluation)
        narrator.evaluation(evaluation)
        return evaluation

    prompts = choose_prompts(
        config.sample,
        prepared.held_out_records or prepared.records,
        prepared.renderer,
        context_tokens=min(config.data.max_tokens, trainee.context_tokens or config.data.max_tokens),
    )

    def sample_now(step: int) -> tuple[Sample, ...]:
        if not prompts or not journal.writes:
            return ()
        samples = write_samples(
            model, prompts, generate, prepared.renderer, step=step, max_new_tokens=config.sample.max_new_tokens
        )
        journal.samples(samples)
        narrator.samples(samples)
        return tuple(samples)

    # Before.
    has_held_out = bool(prepared.held_out)
    before = evaluate_now(0) if has_held_out and state.step == 0 else None
    samples_before = sample_now(0) if state.step == 0 else ()
    after = best = before

    # The steps.
    evaluate_at = evaluation_steps(plan.num_steps, config.train.evaluate_every_steps) if has_held_out else frozenset()
    sample_at = sample_steps(plan.num_steps)
    every = config.train.checkpoint_every_steps
    books = _Books(prepared.documents)
    status = "finished"
    narrator.begin(plan, state.step)
    with stop_on_signals() as stop:
        for number in range(state.step, plan.num_steps):
            step, planned = number + 1, plan.steps[number]
            rate = learning_rate(step, plan.num_steps, config.train)
            set_learning_rate(optimiser, rate)
            result = train_step(model, optimiser, planned, prepared.documents, settings, step=step)
            books.add(planned, result.by_source)
            line = metrics_line(
                result, step=step, epoch=plan.epochs[number], learning_rate=rate, slot_tokens=plan.slot_tokens
            )
            journal.step(line)
            narrator.step(line)

            improvement = state.improvement
            if step in evaluate_at:
                after = evaluate_now(step)
                rule = config.train.early_stopping
                improvement = improvement.after(after.loss, step, rule.min_improvement if rule else 0.0)
                best = after if improvement.best_step == step else best
            if step in sample_at and step < plan.num_steps:
                sample_now(step)
            # Everything of this step is written before its checkpoint: whoever resumes from there repeats none of it.
            state = RunState(step, improvement, state.config_fingerprint, fingerprint)
            if improvement.best_step == step and journal.writes:
                checkpoint.save_best(run, model, state)
            stopping = agree.any_rank(bool(stop), device)
            if (every and step % every == 0) or (stopping and step < plan.num_steps):
                if journal.writes:
                    checkpoint.save_checkpoint(run.checkpoint(step), model, optimiser, state)
                    checkpoint.keep_newest(run, config.train.keep_checkpoints)
                agree.barrier()
            if stopping and step < plan.num_steps:
                status = "stopped"
                narrator.say(f"stopped by {stop.signal_name or 'another rank'} after step {step}; go on with --resume")
                break
            if improvement.exhausted(config.train.early_stopping):
                narrator.say(
                    f"stopped early: the held-out loss has not fallen for {improvement.evaluations_since} evaluations"
                )
                break
    narrator.end()
    journal.receipt.add(books.conservation())
    if journal.writes:
        books.book(prepared.ledger)
        prepared.ledger.write(run.ledger, quarantine=run.quarantine)
    if status == "stopped":
        journal.mark("stopped", {"step": state.step})
        return TrainResult(status, state.step, None, before, after, samples_before, (), journal.receipt)

    # The result: the best weights under early stopping, the last ones otherwise.
    if config.train.early_stopping is not None and state.improvement.best_step not in (0, state.step):
        checkpoint.load_weights(checkpoint.best_folder(run, state.improvement.best_step), model)
        narrator.say(f"the result is the best checkpoint, of step {state.improvement.best_step}")
        after = best
    if journal.writes:
        save_model(
            model,
            prepared.tokenizer,
            prepared.renderer.template if prepared.contract is not None else None,
            run.final,
            stop_ids=prepared.renderer.stop_ids,
        )
    samples_after = sample_now(state.step)
    journal.mark("finished", {"folder": "final", "steps": state.step})
    agree.barrier()
    return TrainResult(status, state.step, run.final, before, after, samples_before, samples_after, journal.receipt)


class _Books:
    """Counts planned and trained tokens of each source, for the conservation check."""

    def __init__(self, documents: Sequence[Rendered]) -> None:
        self._documents = documents
        self._planned: dict[str, list[int]] = {}
        self._trained: dict[str, list[int]] = {}

    def add(self, planned: Step, by_source: Mapping[str, SourceTotals]) -> None:
        """Count one step: what the plan says of it, and what the loss saw."""
        for index in planned.documents:
            document = self._documents[index]
            _count(self._planned, document.source, 1, len(document), document.supervised_tokens)
        for name, totals in by_source.items():
            _count(self._trained, name, totals.read_documents, totals.read_tokens, totals.sums.tokens)

    def book(self, ledger: Ledger) -> None:
        """Enter both sides into the ledger."""
        for stage, counts in (("planned", self._planned), ("loss", self._trained)):
            for name, (documents, tokens, supervised) in counts.items():
                ledger.book_tokens(name, stage, tokens, supervised, documents=documents)

    def conservation(self) -> Check:
        """Return whether each source's tokens in the loss are those of its documents in the plan."""
        sides = {"planned": self._planned, "loss": self._trained}
        units = ("documents", "tokens", "supervised_tokens")
        return Check(
            "conservation",
            "tokens from plan to loss",
            self._planned == self._trained,
            "documents, tokens and supervised tokens of each source in the steps, and those that the loss saw",
            {
                f"{side}_{unit}": sum(counts[i] for counts in by_source.values())
                for side, by_source in sides.items()
                for i, unit in enumerate(units)
            },
        )


def _count(counts: dict[str, list[int]], name: str, *amounts: int) -> None:
    entry = counts.setdefault(name, [0] * len(amounts))
    for i, amount in enumerate(amounts):
        entry[i] += amount


def _settle_layout(
    settings: StepSettings, trainee: Trainee, plan: RunPlan, prepared: Prepared, receipt: Receipt
) -> tuple[StepSettings, str]:
    """Return the settings with the layout that the model can be trained in, and why it is that one."""
    choice = choose_layout(
        settings.layout,
        trainee.model,
        plan.steps,
        prepared.documents,
        device=settings.device,
        autocast=settings.autocast(),
    )
    for check in choice.checks:
        receipt.add(check)
    return replace(settings, layout=choice.layout), choice.reason


def _data_checks(prepared: Prepared, plan: RunPlan, fingerprint: str) -> list[Check]:
    """Return the checks that need no model: render contract, ledger, and the plan against the documents."""
    ledger = prepared.ledger.totals
    checks = []
    if prepared.contract is not None:
        contract = prepared.contract
        failed = [check for check in contract.checks if not check.passed]
        detail = "; ".join(f"{check.name}: {check.detail}" for check in failed) or "every check of the contract holds"
        checks.append(Check("mask", "render contract", not failed, detail, {"checks": len(contract.checks)}))
    checks.append(
        Check(
            "conservation",
            "rows",
            ledger.rows == ledger.kept + sum(ledger.dropped.values()),
            "every row that was read is kept, or dropped for a named reason",
            {"rows": ledger.rows, "kept": ledger.kept, "dropped": sum(ledger.dropped.values())},
        )
    )
    checks.append(
        Check(
            "replay",
            "order",
            True,
            "fingerprint of documents, weights and order; the same on every rank, and compared on resume",
            {"fingerprint": fingerprint, "steps": plan.num_steps},
        )
    )
    return checks


def _require_agreement(fingerprint: str, device: torch.device) -> None:
    if not agree.all_agree(int(fingerprint[:15], 16), device if device.type == "cuda" else None):
        raise TrainingError(
            "the ranks do not see the same documents in the same order",
            mend="give every machine the same files, configuration and version of tutelage",
        )


def _config_fingerprint(config: Config) -> str:
    """Hash what the weights depend on: not where the run is kept, how often it is saved, or what it runs on."""
    train = config.train.model_dump(
        mode="json", exclude={"checkpoint_every_steps", "keep_checkpoints", "device", "threads"}
    )
    return content_hash([config.model.model_dump(mode="json"), config.data.model_dump(mode="json"), train])


def _resume(
    run: RunDir,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    fresh: RunState,
    narrator: Narrator,
) -> RunState:
    """Load the newest whole checkpoint, if there is one, and return the state to go on from.

    Raises:
        RunDirError: the checkpoint is of another configuration or other data.
    """
    folder, passed_over = checkpoint.newest_whole_checkpoint(run)
    for line in passed_over:
        narrator.say(line)
    if folder is None:
        narrator.say("there is no checkpoint to resume from: the run begins anew")
        return fresh
    state = checkpoint.read_state(folder)
    for what in ("config_fingerprint", "data_fingerprint"):
        if getattr(state, what) != getattr(fresh, what):
            changed = "the configuration" if what.startswith("config") else "the documents or their order"
            raise RunDirError(
                f"{folder} belongs to another run: {changed} changed since it was written",
                mend="resume with the configuration and data of the run, or start a new run.dir",
            )
    checkpoint.load_checkpoint(folder, model, optimiser)
    narrator.say(f"resumed after step {state.step}")
    return state
