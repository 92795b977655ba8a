"""The plan of a whole run: every optimiser step of every epoch, before the first one is taken."""

# N documents

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tutelage.chat.documents import digests_of, lengths_of, loss_weights_of
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Config, TrainConfig
from tutelage.data.mixture import Mixture
from tutelage.errors import ConfigError, DataError
from tutelage.pack.plan import PlanOptions, Step, plan_epoch
from tutelage.train.sharing import Sharing, find_sharing, judge_sharing, require_enough

SHOWN_ROWS = 10


@dataclass(frozen=True)
class RunPlan:
    """All steps in order; `epochs[i]` is the epoch of `steps[i]`.

    Units: `slot_tokens` is how many tokens one pack could hold, so that fill is computed tokens / (packs * slot_tokens).
    `sharing` is what was decided about prefixes that documents share.
    """

    steps: tuple[Step, ...]
    epochs: tuple[int, ...]
    slot_tokens: int
    sharing: Sharing

    @property
    def num_steps(self) -> int:
        """Optimiser steps."""
        return len(self.steps)

    @property
    def num_tokens(self) -> int:
        """Tokens over all steps, repeated documents counted each time."""
        return sum(step.num_tokens for step in self.steps)

    @property
    def computed_tokens(self) -> int:
        """Tokens that the model computes over all steps: shared prefixes once."""
        return sum(step.computed_tokens for step in self.steps)

    @property
    def num_packs(self) -> int:
        """Packs over all steps."""
        return sum(len(step.packs) for step in self.steps)

    @property
    def fill(self) -> float:
        """Part of the packs' slots that holds a token."""
        return self.computed_tokens / max(1, self.num_packs * self.slot_tokens)

    @property
    def num_epochs(self) -> int:
        """Epochs begun."""
        return self.epochs[-1] + 1 if self.epochs else 0

    def fingerprint(self, documents: Sequence[Rendered]) -> str:
        """Return 32 hex digits of what is trained on, token for token, step by step; how a step is cut into passes is not in it."""
        digest = hashlib.sha256()
        digest.update(digests_of(documents))
        for step in self.steps:
            members = sorted(step.documents)
            digest.update(np.asarray((len(members), *members), dtype=np.int64).tobytes())
        return digest.hexdigest()[:32]


def plan_run(
    documents: Sequence[Rendered], mixture: Mixture, config: Config, *, sharing: Sharing | None = None
) -> RunPlan:
    """Plan `train.epochs` passes over the mixture, or exactly `train.max_steps` steps where that is set.

    Documents that share a prefix are brought together as `sharing` says; by default, where that is asked for and worth it.

    Raises:
        ConfigError: there is nothing to train on.
        DataError: a step has no token that carries loss.
    """
    if sharing is not None:
        return _plan_run(documents, mixture, config, sharing)
    found = require_enough(find_sharing(documents, config), mixture.epoch(0), lengths_of(documents))
    plan = _plan_run(documents, mixture, config, found)
    if found.prefixes is None:
        return plan
    judged = judge_sharing(found, plan.num_tokens, plan.computed_tokens)
    return replace(plan, sharing=judged) if judged.prefixes else _plan_run(documents, mixture, config, judged)


def _plan_run(documents: Sequence[Rendered], mixture: Mixture, config: Config, sharing: Sharing) -> RunPlan:
    lengths, weights = lengths_of(documents), loss_weights_of(documents)
    options = PlanOptions.from_config(config)
    limit = config.train.max_steps
    steps: list[Step] = []
    epochs: list[int] = []
    for epoch, order in _orders(mixture, config.train.epochs if limit is None else math.inf):
        of_epoch = plan_epoch(order, lengths, weights, options, epoch=epoch, prefixes=sharing.prefixes)
        steps += of_epoch
        epochs += [epoch] * len(of_epoch)
        if limit is not None and len(steps) >= limit:
            break
    if not steps:
        raise ConfigError(
            "no document is left to train on", mend="look at the ledger: `tutelage check` shows every drop"
        )
    _require_weight(steps[:limit], documents)
    return RunPlan(tuple(steps[:limit]), tuple(epochs[:limit]), _slot_tokens(options), sharing)


def _require_weight(steps: Sequence[Step], documents: Sequence[Rendered]) -> None:
    """Refuse a step whose loss would be a sum of nothing, divided by nothing."""
    for number, step in enumerate(steps, start=1):
        if not step.weight_sum > 0:
            rows = [documents[index].where for index in step.documents]
            more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
            raise DataError(
                f"step {number} has no token that carries loss: its rows are {', '.join(rows[:SHOWN_ROWS])}{more}",
                mend="give these rows a weight above 0, or take them out",
            )


def _orders(mixture: Mixture, epochs: float) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yield (epoch, documents in order); the last epoch is cut when `epochs` has a fraction."""
    for epoch in itertools.count():
        part = min(1.0, epochs - epoch)
        order = mixture.epoch(epoch)
        if part <= 0 or len(order) == 0:
            return
        yield epoch, order[: math.ceil(part * len(order))]


def _slot_tokens(options: PlanOptions) -> int:
    if options.micro_tokens is not None:
        return options.micro_tokens
    return min(options.pack_tokens, options.batch_tokens) if options.batch_sequences is None else options.pack_tokens


def evaluation_steps(step_tokens: Sequence[int], config: TrainConfig) -> frozenset[int]:
    """Return the 1-based steps after which to evaluate: every so many steps or tokens, or ten times spread evenly; always at the end.

    `step_tokens` are the tokens of each step. A step with which several multiples of `evaluate_every_tokens` are passed is one evaluation.
    """
    num_steps = len(step_tokens)
    if config.evaluate_every_tokens is not None:
        passed = [tokens // config.evaluate_every_tokens for tokens in itertools.accumulate(step_tokens, initial=0)]
        return frozenset({*(step for step in range(1, num_steps + 1) if passed[step] > passed[step - 1]), num_steps})
    if config.evaluate_every_steps is not None:
        return frozenset({*range(config.evaluate_every_steps, num_steps + 1, config.evaluate_every_steps), num_steps})
    return frozenset(math.ceil(number * num_steps / 11) for number in range(1, 12))


def sample_steps(num_steps: int) -> frozenset[int]:
    """Return the 1-based steps after which to write sample answers: at one and two thirds, and at the end."""
    return frozenset(math.ceil(number * num_steps / 3) for number in range(1, 4))
