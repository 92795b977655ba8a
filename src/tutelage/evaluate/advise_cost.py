"""What a run would take of the machine that it is planned on: memory by the planner, time by a few small steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tutelage.config.schema import Checkpointing, Config, Layout
from tutelage.errors import ConfigError
from tutelage.model.checkpointing import set_checkpointing
from tutelage.model.load import read_config
from tutelage.model.locate import locate_model
from tutelage.train.environment import choose_device
from tutelage.train.optim import build_optimiser
from tutelage.train.plan import plan_run
from tutelage.train.precision import choose_precision
from tutelage.train.prepare import Progress, prepare
from tutelage.train.preview import preview
from tutelage.train.step import StepSettings, train_step
from tutelage.train.trainee import Start, make_trainee

TIMED_STEPS, TIMED_TOKENS = 3, 2048
"""Steps that are timed after one that is not, and about how many tokens each has."""


@dataclass(frozen=True)
class Cost:
    """What a run of a configuration is planned to be: `plan` is what `tutelage train --dry-run` says, empty where `problem` says why not."""

    plan: dict[str, Any]
    problem: str = ""

    @property
    def peak_bytes(self) -> int | None:
        """Bytes at the peak of a step; None where nothing can tell."""
        found: int | None = self.plan.get("memory_predicted_bytes")
        return found

    @property
    def base_parameters(self) -> int:
        """Weights of the base, adapters aside."""
        frozen: int = self.plan["parameters"] - self.plan["trainable_parameters"]
        return frozen or int(self.plan["parameters"])


def plan_cost(config: Config) -> Cost:
    """Return the plan of `config` with its memory, without loading a weight."""
    try:
        return Cost(preview(config))
    except ConfigError as error:
        return Cost({}, error.problem)


def seconds_a_token(config: Config, cost: Cost, progress: Progress) -> tuple[float, float]:
    """Return the least and the most seconds per computed token of a few real steps of `config`, whose weights are then forgotten.

    The steps are small: a run with larger ones is at most a little faster by the token.
    """
    prepared = prepare(config)
    longest = max(prepared.longest_tokens, min(TIMED_TOKENS, cost.plan["pack_tokens"]))
    few = {
        "batch_tokens": max(TIMED_TOKENS, longest),
        "batch_sequences": None,
        "micro_tokens": longest,
        "max_steps": 1 + TIMED_STEPS,
    }
    small = config.model_copy(update={"train": config.train.model_copy(update=few)})
    plan = plan_run(prepared.documents, prepared.mixture, small)
    device = choose_device(config.train)
    source = locate_model(config.model.path, revision=config.model.revision)
    precision = choose_precision(config.train, device, read_config(source)).precision
    trainee = make_trainee(small, start=Start.WEIGHTS, device=device, precision=precision, new_ids=prepared.new_ids)
    set_checkpointing(trainee.model, Checkpointing(cost.plan["checkpointing"]["name"]))
    settings = StepSettings(
        layout=Layout.PACKED if config.train.packing is Layout.AUTO else config.train.packing,
        micro_tokens=plan.slot_tokens,
        seed=config.train.seed,
        precision=precision,
        device=device,
        largest_grad_norm=config.train.clip_grad_norm,
        neftune_alpha=config.train.neftune_alpha,
        sources=prepared.sources,
    )
    optimiser = build_optimiser(trainee.model, small.train)
    each = []
    for number, step in enumerate(plan.steps, start=1):
        done = train_step(trainee.model, optimiser, step, prepared.documents, settings, step=number)
        each.append(done.seconds / done.computed_tokens)
        progress("timing steps", number, plan.num_steps)
    timed = each[1:] or each  # the first one warms up
    return min(timed), max(timed)
