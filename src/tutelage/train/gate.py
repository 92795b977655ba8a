"""The gate: what fine-tuning may cost, looked at with every evaluation.

Three budgets: the loss on held-out plain text against what it was before training; habits of answers against those of the held-out rows'
own and against what they were at their lowest; answers that are right against how many were at their most. The evaluation draws no
random number and changes nothing that training depends on, so that a run that stays within its budgets takes the same steps as one
without a gate.

With `train.gate.most_replay_weight` the gate is a controller as well: it sets what the tokens of replay weigh in the loss. Its decision
is a function of the last two evaluations alone, and stands in the checkpoint; which documents a step has
stays as planned. So a run that is cut goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tutelage.config.schema import Config, OnBreach
from tutelage.config.schema import Gate as Rule
from tutelage.errors import ConfigError
from tutelage.train.evaluate import Evaluation
from tutelage.train.objective import total
from tutelage.train.prepare import Prepared
from tutelage.train.probe import Probed


class Budget(StrEnum):
    """What there is a budget for, by its name in `train.gate`."""

    FORGETTING = "forgetting"
    STYLE = "style"
    INSTRUCTION = "instruction"


REMEDIES = {
    Budget.FORGETTING: "5 to 10 % of pre-training text among data.train, a lower train.learning_rate, fewer epochs, or train.method=lora",
    Budget.STYLE: "fewer epochs, a lower train.learning_rate, or answers among data.train that are worded in more ways: `tutelage eval` "
    "names the phrases that grew, and the rows they are from",
    Budget.INSTRUCTION: "fewer epochs, a lower train.learning_rate, or instructions of other kinds among data.train",
}
HABITS = {
    "repeats": "four words in a row that were said before in the answer",
    "begin_alike": "answers that begin alike",
    "end_alike": "answers that end alike",
}


@dataclass(frozen=True)
class Gate:
    """What the gate knows: the loss on text before training, in nats per token, how far it has risen, and when what was too far.

    `rise` is a part of the loss before; None before the first evaluation after training began. `replay_weight` is by how much the
    weights of replay tokens are multiplied from here on. `lowest` are the shares of habits at their lowest so far, `most_right` is the
    share of right answers at its highest. `breaches` says after which step each budget was first used up, by its name.
    """

    before: float | None = None
    rise: float | None = None
    replay_weight: float = 1.0
    lowest: Mapping[str, float] = field(default_factory=dict)
    most_right: float | None = None
    breaches: Mapping[str, int] = field(default_factory=dict)

    @property
    def breached_at(self) -> int | None:
        """The step after which a budget was used up first."""
        return min(self.breaches.values(), default=None)

    def begun(self, probed: Probed) -> Gate:
        """Return the gate that knows the model before training."""
        return replace(self, before=probed.text_loss)._with_best(probed)

    def after(self, step: int, probed: Probed, rule: Rule) -> Gate:
        """Return the gate after an evaluation; of each budget the first breach is the one that is remembered."""
        gate = self._with_best(probed)
        if rule.forgetting is not None and self.before is not None and probed.text_loss is not None:
            rise = probed.text_loss / self.before - 1
            expected = 2 * rise - (self.rise or 0.0)  # at the next evaluation, if it goes on as since the last one
            weight = _replay_weight(expected / rule.forgetting, rule.most_replay_weight)
            gate = replace(gate, rise=rise, replay_weight=weight)
        breaches = {budget.value: step for budget in gate.beyond(probed, rule)}
        return replace(gate, breaches=breaches | dict(gate.breaches))

    def _with_best(self, probed: Probed) -> Gate:
        lowest = {name: min(habit.share, self.lowest.get(name, math.inf)) for name, habit in probed.habits.items()}
        known = [share for share in (self.most_right, probed.right_share) if share is not None]
        return replace(self, lowest={**self.lowest, **lowest}, most_right=max(known, default=None))

    def beyond(self, probed: Probed, rule: Rule) -> dict[Budget, str]:
        """Return the budgets that are used up by what was seen just now, each with what went too far."""
        found = {}
        # A loss that is no number is no loss within the budget.
        if rule.forgetting is not None and self.rise is not None and not self.rise <= rule.forgetting:
            found[Budget.FORGETTING] = (
                f"the loss on held-out text is {self.rise:+.1%} above what it was before training"
            )
        grown = {name: self._growth(name, probed) for name in probed.habits}
        if rule.style is not None and grown and grown[worst := max(grown, key=lambda name: grown[name])] > rule.style:
            habit = probed.habits[worst]
            found[Budget.STYLE] = (
                f"{HABITS[worst]}: {habit.share:.0%}, where the held-out rows have {habit.data:.0%} and the model had "
                f"{self.lowest[worst]:.0%} at its lowest"
            )
        right, most = probed.right_share, self.most_right
        if rule.instruction is not None and right is not None and most is not None and most - right > rule.instruction:
            found[Budget.INSTRUCTION] = f"{right:.0%} of the answers are right, after {most:.0%} at their most"
        return found

    def _growth(self, name: str, probed: Probed) -> float:
        """Return how far a habit lies above the data's own and above its lowest: what a base model did already, it has not learned."""
        habit = probed.habits[name]
        return habit.share - max(habit.data, self.lowest[name])

    def news(self, step: int, probed: Probed, rule: Rule) -> list[str]:
        """Return in words what was used up first after `step`, each with what may be tried."""
        return [
            f"{said}, more than train.gate.{budget.value}={getattr(rule, budget.value):g} allows; try {REMEDIES[budget]}"
            for budget, said in self.beyond(probed, rule).items()
            if self.breaches[budget.value] == step
        ]

    def ends(self, rule: Rule) -> bool:
        """Whether the run is to end here."""
        return bool(self.breaches) and rule.on_breach is not OnBreach.WARN

    def takes_best(self, rule: Rule) -> bool:
        """Whether the result is to be the best weights within the budgets."""
        return bool(self.breaches) and rule.on_breach is OnBreach.BEST


def _replay_weight(used: float, most: float) -> float:
    """Return what replay weighs where `used` is the part of the budget that is about to be used up: 1 at nothing, `most` at all of it.

    Doublings go with the budget, as a loss answers to shares of the whole: from 1 to 2 is as much as from 8 to 16.
    """
    return most if math.isnan(used) else float(most ** min(1.0, max(0.0, used)))


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
