"""Everything that stands when the first step is taken: documents, plan, model, layout, and what was found out about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch

from tutelage.chat.rendered import Rendered
from tutelage.config.load import Resolved
from tutelage.config.schema import Checkpointing, Config, Parallel, Precision, Quantisation, TrainConfig
from tutelage.config.unread import require_all_read
from tutelage.errors import ConfigError, TrainingError
from tutelage.files.rundir import RunDir
from tutelage.model.compile import compile_layers
from tutelage.model.load import read_config
from tutelage.model.locate import locate_model
from tutelage.parallel import agree
from tutelage.parallel.shard import release
from tutelage.train.books import data_checks
from tutelage.train.cache import cache_folder
from tutelage.train.describe import describe_plan, picture_masks
from tutelage.train.environment import describe_environment, keep_freed_memory
from tutelage.train.fitting import Began, fit_memory
from tutelage.train.gate import held_out_texts, replay_sources
from tutelage.train.journal import Journal
from tutelage.train.layout import choose_layout
from tutelage.train.narrate import Narrator
from tutelage.train.optim import build_optimiser
from tutelage.train.plan import RunPlan, evaluation_steps, plan_run
from tutelage.train.precision import PrecisionChoice, choose_precision
from tutelage.train.prepare import Prepared, prepare
from tutelage.train.sample import Prompt, choose_prompts
from tutelage.train.sharing import ask_model
from tutelage.train.step import StepSettings
from tutelage.train.trainee import Start, Trainee, context_tokens, make_trainee, require_room
from tutelage.train.usage import PeakMeter, free_bytes


@dataclass(frozen=True)
class Scene:
    """What the steps need. `fingerprint` is of the documents and their order; `prompts` are those of the samples.

    `texts` are the held-out sources of plain text, `replay` those that are trained on. `environment` is the content of `environment.json`; `meter` measures the memory that was predicted.
    `evaluated_after` are the steps after which the held-out documents are looked at, 0 for before training;
    `context_tokens` is the longest sequence, prompt and answer together, that the model is to see.
    """

    config: Config
    prepared: Prepared
    plan: RunPlan
    fingerprint: str
    trainee: Trainee
    settings: StepSettings
    optimiser: torch.optim.Optimizer
    prompts: tuple[Prompt, ...]
    environment: dict[str, object]
    meter: PeakMeter
    predicted_bytes: int | None
    texts: frozenset[str]
    replay: frozenset[str]
    evaluated_after: frozenset[int]
    context_tokens: int

    @property
    def model(self) -> torch.nn.Module:
        """The model, in training mode."""
        return self.trainee.model

    @property
    def documents(self) -> Sequence[Rendered]:
        """The documents that the steps of the plan number."""
        return self.prepared.documents


def set_scene(resolved: Resolved, journal: Journal, narrator: Narrator, *, start: Start, device: torch.device) -> Scene:
    """Prepare the documents, plan the run, make the model, and let it choose its layout; write down what was found.

    Raises:
        TutelageError: whatever stands in the way of the first step.
    """
    config, run = resolved.config, journal.run
    require_all_read(config, resolved.origins)
    _set_up_machine(config.train, device)
    journal.write_config(resolved)
    environment = describe_environment(device)
    journal.write(run.environment, environment)

    is_kept = cache_folder(config.data.cache) is not None
    with agree.one_of_machine_first() if is_kept else nullcontext():
        prepared = prepare(config, progress=narrator.preparing)
    for line in prepared.news:
        narrator.say(line)
    journal.write_ledger(prepared.ledger)
    texts, replay = held_out_texts(prepared, config), replay_sources(prepared, config)
    plan = plan_run(prepared.documents, prepared.mixture, config)
    fingerprint = plan.fingerprint(prepared.documents)
    _require_agreement(fingerprint, device)

    meter = PeakMeter(device)
    arithmetic = _arithmetic(config, run, start, device)
    trainee = make_trainee(config, start=start, device=device, precision=arithmetic.precision, new_ids=prepared.new_ids)
    require_room(trainee.model, prepared.longest_tokens)
    settings = _settings(config, plan, prepared, arithmetic, device)
    layout = choose_layout(
        settings.layout,
        trainee.model,
        plan.steps,
        prepared.documents,
        micro_tokens=settings.micro_tokens,
        device=device,
        autocast=settings.autocast(),
    )
    for check in layout.checks:
        journal.receipt.add(check)
    settings = replace(settings, layout=layout.layout)

    sharing_plan = _settle_sharing(plan, config, prepared, trainee, settings, journal)
    fit = fit_memory(
        config, sharing_plan, prepared, trainee.model, settings, free_bytes(device), began=Began.of_run(run)
    )
    if fit.plan is not plan:
        plan, settings = fit.plan, replace(settings, micro_tokens=fit.plan.slot_tokens)
        fingerprint = plan.fingerprint(prepared.documents)
        _require_agreement(fingerprint, device)
    if fit.news is not None:
        narrator.say(fit.news)
    for check in data_checks(prepared, plan, fingerprint):
        journal.receipt.add(check)

    choices = {
        "layout": {"name": layout.layout.value, "reason": layout.reason},
        "precision": {"name": arithmetic.precision.value, "reason": arithmetic.reason},
        "attention": {"name": trainee.attention.name, "reason": trainee.attention.reason},
        "checkpointing": {"name": fit.checkpointing.value, "reason": fit.reason},
        "parallel": {"name": trainee.spread.name.value, "reason": trainee.spread.reason},
        "compile": _settle_compiling(config, trainee, fit.checkpointing, device),
    }
    for what, choice in choices.items():
        narrator.say(f"{what} {choice['name']}: {choice['reason']}")
    narrator.say(f"shared prefixes: {plan.sharing.reason}")
    description = {
        "start": start.value,
        **describe_plan(prepared, plan, config),
        **choices,
        "memory_bytes": fit.named_bytes,
        "memory_predicted_bytes": fit.predicted_bytes,
        "parameters": trainee.num_parameters,
        "trainable_parameters": trainee.num_trainable,
    }
    journal.write(run.plan, description)
    journal.write(run.masks, picture_masks(prepared))
    narrator.plan(description)
    longest = min(config.data.max_tokens, context_tokens(trainee.model) or config.data.max_tokens)
    prompts = choose_prompts(
        config.sample,
        prepared.held_out_records or prepared.records,
        prepared.renderer,
        context_tokens=longest,
        retrieve=config.data.retrieve,
    )
    release(trainee.model)  # the probes may have left weights gathered, which are not those that learn
    optimiser = build_optimiser(trainee.model, config.train)
    return Scene(
        config=config,
        prepared=prepared,
        plan=plan,
        fingerprint=fingerprint,
        trainee=trainee,
        settings=settings,
        optimiser=optimiser,
        prompts=tuple(prompts),
        environment=environment,
        meter=meter,
        predicted_bytes=fit.predicted_bytes,
        texts=texts,
        replay=replay,
        evaluated_after=_evaluated_after(plan, prepared, config),
        context_tokens=longest,
    )


def _evaluated_after(plan: RunPlan, prepared: Prepared, config: Config) -> frozenset[int]:
    if not prepared.held_out:
        return frozenset()
    return evaluation_steps([step.num_tokens for step in plan.steps], config.train) | {0}


def _settings(
    config: Config, plan: RunPlan, prepared: Prepared, arithmetic: PrecisionChoice, device: torch.device
) -> StepSettings:
    return StepSettings(
        layout=config.train.packing,
        micro_tokens=plan.slot_tokens,
        seed=config.train.seed,
        precision=arithmetic.precision,
        device=device,
        largest_grad_norm=config.train.clip_grad_norm,
        neftune_alpha=config.train.neftune_alpha,
        sources=prepared.sources,
    )


def _settle_sharing(
    plan: RunPlan, config: Config, prepared: Prepared, trainee: Trainee, settings: StepSettings, journal: Journal
) -> RunPlan:
    """Return the plan, made anew without shared prefixes where the model cannot be trained on them."""
    if plan.sharing.prefixes is None:
        return plan
    sharing, check = ask_model(
        plan.sharing,
        trainee.model,
        plan.steps,
        prepared.documents,
        layout=settings.layout,
        autocast=settings.autocast(),
    )
    if check is not None:
        journal.receipt.add(check)
    return plan if sharing.prefixes else plan_run(prepared.documents, prepared.mixture, config, sharing=sharing)


def _settle_compiling(
    config: Config, trainee: Trainee, checkpointing: Checkpointing, device: torch.device
) -> dict[str, str]:
    """Let the layers be compiled where that is asked for, and return what was done and why.

    Raises:
        ConfigError: they cannot be, or not together with something else that is asked for.
    """
    if not config.train.compile:
        return {
            "name": "off",
            "reason": "train.compile=true takes time to begin with, which short runs do not win back",
        }
    obstacles = {
        f"train.parallel={trainee.spread.name.value}": trainee.spread.name is not Parallel.REPLICATE,
        f"model.quantisation={config.model.quantisation.value}": config.model.quantisation is not Quantisation.NONE,
        f"train.gradient_checkpointing={checkpointing.value}": checkpointing is Checkpointing.SELECTIVE,
    }
    if found := [name for name, is_there in obstacles.items() if is_there]:
        raise ConfigError(f"train.compile does not go together with {found[0]}", mend="train.compile=false")
    compile_layers(trainee.model, device)
    return {"name": "on", "reason": "asked for by train.compile; the first step waits for it"}


def _arithmetic(config: Config, run: RunDir, start: Start, device: torch.device) -> PrecisionChoice:
    """Return the arithmetic of the run; one that goes on keeps what it began with, whatever this machine is faster at."""
    if config.train.precision is Precision.AUTO and run.plan.is_file():
        began = Precision(json.loads(run.plan.read_bytes())["precision"]["name"])
        return PrecisionChoice(began, "as the run began")
    source = locate_model(config.model.path, revision=config.model.revision, weights=start is Start.WEIGHTS)
    return choose_precision(config.train, device, read_config(source))


def _set_up_machine(config: TrainConfig, device: torch.device) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.cuda.set_device(device)


def _require_agreement(fingerprint: str, device: torch.device) -> None:
    if not agree.all_agree(int(fingerprint[:15], 16), device if device.type == "cuda" else None):
        raise TrainingError(
            "the ranks do not see the same documents in the same order",
            mend="give every machine the same files, configuration and version of tutelage",
        )
