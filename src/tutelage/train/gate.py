"""The gate: what fine-tuning may cost, looked at with every evaluation.

It watches the loss on held-out plain text against what it was before training. The evaluation draws no random number and changes
nothing that training depends on, so that a run that stays within its budget takes the same steps as one without a gate.

With `train.gate.most_replay_weight` the gate is a controller as well: it sets what the tokens of replay weigh in the loss. Its decision
is a function of the evaluation and of its own last decision alone, and stands in the checkpoint; which documents a step has
stays as planned. So a run that is cut goes on as if it had not been.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tutelage.config.schema import Config, OnBreach
from tutelage.config.schema import Gate as Rule
from tutelage.errors import ConfigError
from tutelage.train.evaluate import Evaluation
from tutelage.train.objective import total
from tutelage.train.prepare import Prepared

REMEDIES = (
    "5 to 10 % of pre-training text among data.train, a lower train.learning_rate, fewer epochs, or train.method=lora"
)


AIM = 0.8
"""Part of the budget that the controller lets be used up: the rest is for what it learns too late."""
GAIN = 2.5
"""Doublings of the weight for an error of one budget."""


@dataclass(frozen=True)
class Gate:
    """What the gate knows: the loss on text before training, in nats per token, how far it has risen, and when that was too far.

    `rise` is a part of the loss before; None before the first evaluation after training began. `replay_weight` is by how much the
    weights of replay tokens are multiplied from here on.
    """

    before: float | None = None
    rise: float | None = None
    breached_at: int | None = None
    replay_weight: float = 1.0

    def begun(self, evaluation: Evaluation, texts: frozenset[str]) -> Gate:
        """Return the gate that knows the loss before training."""
        return replace(self, before=text_loss(evaluation, texts))

    def after(self, evaluation: Evaluation, texts: frozenset[str], rule: Rule) -> Gate:
        """Return the gate after an evaluation; the first breach is the one that is remembered."""
        now = text_loss(evaluation, texts)
        if rule.forgetting is None or self.before is None or now is None:
            return self
        rise = now / self.before - 1
        # A loss that is no number is no loss within the budget.
        is_breach = not rise <= rule.forgetting
        breached_at = evaluation.step if is_breach and self.breached_at is None else self.breached_at
        return Gate(self.before, rise, breached_at, self._weighed(rise / rule.forgetting, rule.most_replay_weight))

    def _weighed(self, used: float, most: float) -> float:
        """Return the weight of replay where `used` is the part of the budget that is used up: at most doubled, at least halved."""
        doublings = GAIN * (used - AIM)
        if math.isnan(doublings):
            return most
        return min(most, max(1.0, self.replay_weight * 2 ** min(1.0, max(-1.0, doublings))))

    def ends(self, rule: Rule) -> bool:
        """Whether the run is to end here."""
        return self.breached_at is not None and rule.on_breach is not OnBreach.WARN

    def takes_best(self, rule: Rule) -> bool:
        """Whether the result is to be the best weights within the budget."""
        return self.breached_at is not None and rule.on_breach is OnBreach.BEST

    def told(self, rule: Rule) -> str:
        """Return the breach in words, with what may be tried."""
        assert self.rise is not None and rule.forgetting is not None
        return (
            f"the loss on held-out text is {self.rise:+.1%} above what it was before training, more than "
            f"train.gate.forgetting={rule.forgetting:g}; try {REMEDIES}"
        )


def text_loss(evaluation: Evaluation, texts: frozenset[str]) -> float | None:
    """Return the mean loss on the sources `texts` together, in nats per unit of weight; None where there is none."""
    sums = total({name: sums for name, sums in evaluation.by_source.items() if name in texts})
    return sums.loss_sum / sums.weight_sum if sums.weight_sum else None


def replay_sources(prepared: Prepared, config: Config) -> frozenset[str]:
    """Return the names of the sources of plain text that are trained on.

    Raises: ConfigError when the gate is to weigh them, and there is none.
    """
    trained = prepared.sources[: len(config.data.train)]
    found = frozenset(name for name in trained if prepared.ledger.sources[name].kind == "text")
    if config.train.gate.most_replay_weight > 1 and not found:
        raise ConfigError(
            "train.gate.most_replay_weight weighs plain text among data.train, and there is none",
            mend="name a file of texts in data.train, with kind: text and share: 0.05",
        )
    return found


def held_out_texts(prepared: Prepared, config: Config) -> frozenset[str]:
    """Return the names of the held-out sources of plain text.

    Raises: ConfigError when the gate is to watch them, and there is none.
    """
    held_out = {document.source for document in prepared.held_out}
    texts = frozenset(name for name, account in prepared.ledger.sources.items() if account.kind == "text") & held_out
    if config.train.gate.forgetting is not None and not texts:
        raise ConfigError(
            "train.gate.forgetting watches held-out plain text, and there is none",
            mend="name a file of texts in data.held_out, with kind: text",
        )
    return texts
