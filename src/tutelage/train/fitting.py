"""Fitting a run into the memory that there is: what its steps will need, and what to give up where that is too much."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from tutelage.chat.documents import lengths_of
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Checkpointing, Config, Layout, Method, TrainConfig
from tutelage.errors import ConfigError
from tutelage.files.rundir import RunDir
from tutelage.model.checkpointing import set_checkpointing
from tutelage.pack.batch import Batch, make_batches, pack_batch
from tutelage.parallel import agree
from tutelage.train.memory import Part, Peak, UnpredictableError, predict_peak, standing_bytes
from tutelage.train.plan import RunPlan, plan_run
from tutelage.train.prepare import Prepared
from tutelage.train.step import StepSettings

# Of what is free; the rest is for what kernels take for themselves, and on a CPU for the gaps that freed blocks leave.
FILLED = {"cuda": 0.9, "cpu": 0.7}
GB = 1e9
KINDS = (Checkpointing.NONE, Checkpointing.SELECTIVE, Checkpointing.LAYERS)


@dataclass(frozen=True)
class Began:
    """What a run that goes on chose when it began, as its `plan.json` says, and at which size of a pass memory ran out, if it did."""

    checkpointing: Checkpointing
    micro_tokens: int
    ran_out_tokens: int | None = None

    @classmethod
    def of_run(cls, run: RunDir) -> Began | None:
        """Read what the run directory says; None where there is no plan yet."""
        if not run.plan.is_file():
            return None
        plan = json.loads(run.plan.read_bytes())
        ran_out = json.loads(run.out_of_memory.read_bytes())["micro_tokens"] if run.out_of_memory.is_file() else None
        return cls(Checkpointing(plan["checkpointing"]["name"]), plan["pack_tokens"], ran_out)

    @property
    def is_too_large(self) -> bool:
        """Whether passes of that size ran out of memory."""
        return self.ran_out_tokens is not None and self.micro_tokens >= self.ran_out_tokens


@dataclass(frozen=True)
class Fit:
    """How a run fits into memory: its plan, what its layers keep, why, and the predicted bytes by part.

    Without a prediction `bytes_by_part` holds what is known of any model, and `predicted_bytes` is None. `news` is for people.
    """

    plan: RunPlan
    checkpointing: Checkpointing
    reason: str
    bytes_by_part: Mapping[Part, int]
    predicted_bytes: int | None
    news: str | None = None

    @property
    def named_bytes(self) -> dict[str, int]:
        """Bytes by the name of each part that there is."""
        return {part.value: size for part, size in self.bytes_by_part.items() if size}


def fit_memory(
    config: Config,
    plan: RunPlan,
    prepared: Prepared,
    model: nn.Module,
    settings: StepSettings,
    free: float,
    *,
    began: Began | None = None,
) -> Fit:
    """Choose checkpointing, and the tokens of a pass where nobody set them, so that the largest step fits; all ranks agree.

    `free` are the bytes that the run may take on this rank's device beside the weights that are there already.
    Nothing is given up while the step fits without: first activations that are cheap to compute again, then all inside a layer,
    then the size of a pass, down to the longest document. A run that goes on keeps what it began with, `began`, except that passes
    that ran out of memory are halved. The model is left with the checkpointing that was chosen.

    Raises:
        ConfigError: not even the smallest step fits, or memory ran out in passes that cannot be smaller.
    """
    if began is not None and began.is_too_large:
        return _with_smaller_passes(config, plan, prepared, model, settings, free, began)
    tried: list[tuple[int, Fit]] = []
    for kind, candidate in _candidates(config, plan, prepared, began):
        set_checkpointing(model, kind)
        try:
            peak = predict_step(model, candidate, prepared.documents, settings, config.train)
        except UnpredictableError as error:
            known = standing_bytes(model)
            return Fit(candidate, kind, f"the peak of a step cannot be told beforehand: {error}", known, None)
        needed = peak.total if _is_unloaded(model) else peak.beyond_weights
        reason = _reason(peak, free, gave_up=bool(tried), began=began is not None)
        fit = Fit(candidate, kind, reason, peak.bytes_by_part, peak.total)
        if began is not None or not agree.any_rank(
            needed > FILLED.get(settings.device.type, 0.7) * free, settings.device
        ):
            return fit
        tried.append((needed, fit))
    least, smallest = min(tried, key=lambda pair: pair[0])
    if agree.any_rank(least > free, settings.device):
        raise ConfigError(
            f"no step of this run fits into memory: it needs {least / GB:.2f} GB, and {free / GB:.2f} GB is free",
            mend=ways_to_need_less(config),
        )
    set_checkpointing(model, smallest.checkpointing)
    return smallest


def _with_smaller_passes(
    config: Config,
    plan: RunPlan,
    prepared: Prepared,
    model: nn.Module,
    settings: StepSettings,
    free: float,
    began: Began,
) -> Fit:
    """Fit the run with passes of half as many tokens as those that ran out of memory, but not fewer than the longest document has."""
    ran_out = began.ran_out_tokens or 0
    tokens = max(ran_out // 2, _longest(plan, prepared))
    if tokens >= ran_out or settings.layout is Layout.SINGLE:
        alone = "one document a pass" if settings.layout is Layout.SINGLE else f"passes of {ran_out} tokens"
        raise ConfigError(
            f"memory ran out in {alone}, and the longest document has {_longest(plan, prepared)}: no pass can be smaller",
            mend=f"start anew, in another run.dir, with {ways_to_need_less(config)}",
        )
    fit = fit_memory(config, plan, prepared, model, settings, free, began=Began(began.checkpointing, tokens))
    news = f"memory ran out in passes of {ran_out} tokens: from here on they have {tokens}, with the same documents in each step"
    return replace(fit, news=news)


def predict_step(
    model: nn.Module, plan: RunPlan, documents: Sequence[Rendered], settings: StepSettings, config: TrainConfig
) -> Peak:
    """Return the peak of the plan's largest pass.

    Raises:
        UnpredictableError: see `predict_peak`.
    """
    batch, accumulates = largest_batch(plan, documents, replace(settings, micro_tokens=plan.slot_tokens))
    return predict_peak(model, batch, settings, config, accumulates=accumulates)


def largest_batch(plan: RunPlan, documents: Sequence[Rendered], settings: StepSettings) -> tuple[Batch, bool]:
    """Return the batch with the most tokens of all steps, and whether a rank has several in a step."""
    lengths = lengths_of(documents)
    if settings.layout is Layout.PACKED:
        most = max(len(step.packs) for step in plan.steps)
        passes = ((pack, step.shared_in(n)) for step in plan.steps for n, pack in enumerate(step.packs))
        pack, shared = max(passes, key=lambda one: int(lengths[list(one[0])].sum()) - sum(one[1]))
        return pack_batch([documents[index] for index in pack], shared), most > agree.world_size()
    # Rows are as wide as the longest of them: the step with the longest document has the most padding to hold.
    step = max(plan.steps, key=lambda step: (int(lengths[list(step.documents)].max()), step.num_tokens))
    batches = make_batches([documents[index] for index in step.documents], settings.layout, settings.micro_tokens)
    return max(batches, key=lambda batch: batch.input_ids.numel()), len(batches) > agree.world_size()


def _candidates(
    config: Config, plan: RunPlan, prepared: Prepared, began: Began | None
) -> Iterator[tuple[Checkpointing, RunPlan]]:
    """Yield what may be given up, the dearest last. The documents of each step are the same in all plans."""

    def with_passes_of(tokens: int) -> RunPlan:
        smaller = config.train.model_copy(update={"micro_tokens": tokens})
        smaller_config = config.model_copy(update={"train": smaller})
        return plan_run(prepared.documents, prepared.mixture, smaller_config, sharing=plan.sharing)

    asked = config.train.gradient_checkpointing
    if began is not None:
        kind = began.checkpointing if asked is Checkpointing.AUTO else asked
        yield kind, plan if began.micro_tokens == plan.slot_tokens else with_passes_of(began.micro_tokens)
        return
    # The fused layers of LoRA repeat their products all the same, so that `selective` takes the time of `layers`.
    # Compiled layers hide their products from it.
    is_selective = config.train.method is Method.FULL and not config.train.compile
    worthwhile = KINDS if is_selective else (Checkpointing.NONE, Checkpointing.LAYERS)
    kinds = worthwhile if asked is Checkpointing.AUTO else (asked,)
    yield from ((kind, plan) for kind in kinds)
    if config.train.micro_tokens is not None:
        return
    longest = _longest(plan, prepared)
    tokens = plan.slot_tokens
    while tokens > longest:
        tokens = max(tokens // 2, longest)
        yield kinds[-1], with_passes_of(tokens)


def _longest(plan: RunPlan, prepared: Prepared) -> int:
    """Return the tokens of the longest document of all steps."""
    return max(len(prepared.documents[index]) for step in plan.steps for index in step.documents)


def _is_unloaded(model: nn.Module) -> bool:
    """Whether the weights will still have to come, as those of a preview."""
    return any(parameter.is_meta for parameter in model.parameters())


def _reason(peak: Peak, free: float, *, gave_up: bool, began: bool) -> str:
    if began:
        return "as the run began"
    needs = f"a step needs {peak.total / GB:.2f} GB"
    return (
        f"{needs}: with less given up it would not fit into {free / GB:.2f} GB" if gave_up else f"{needs}, which fits"
    )


def ways_to_need_less(config: Config) -> str:
    """Name what would need less, of what the configuration does not do yet."""
    ways = []
    if config.train.gradient_checkpointing in (Checkpointing.NONE, Checkpointing.SELECTIVE):
        ways.append("train.gradient_checkpointing=auto")
    if config.train.micro_tokens is not None:
        ways.append("no train.micro_tokens")
    if config.train.method is Method.FULL:
        ways.append("train.method=lora")
    return ", or ".join([*ways, "a smaller data.max_tokens", "a device with more memory"])
