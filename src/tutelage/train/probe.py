"""What the gate looks at with every evaluation: figures of the model as it is, of its losses and of its answers to fixed prompts.

Which prompts those are, and what their answers are worth, is decided by whoever calls `train`: this room asks, greedily, and keeps
what it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeAlias

from tutelage.config.schema import Config
from tutelage.errors import ConfigError
from tutelage.train.prepare import Prepared
from tutelage.train.sample import Prompt, Sample


@dataclass(frozen=True)
class Habit:
    """How much of the answers does something, from 0 to 1: of the model's, and of the held-out rows' own answers to the same prompts."""

    share: float
    data: float


@dataclass(frozen=True)
class Probed:
    """What was seen at one evaluation. What is not watched is None, or empty.

    Units: `text_loss` in nats per token of held-out plain text. `right` are the points of answers that code can score, of `points`.
    """

    text_loss: float | None = None
    habits: Mapping[str, Habit] = field(default_factory=dict)
    right: int | None = None
    points: int | None = None

    @property
    def right_share(self) -> float | None:
        """Points out of those that there are."""
        return self.right / self.points if self.right is not None and self.points else None

    def to_json(self) -> dict[str, Any]:
        """Return what stands of it in `evals.jsonl`."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Probed:
        """Return what `to_json` was made of."""
        habits = {name: Habit(**habit) for name, habit in content["habits"].items()}
        return cls(content["text_loss"], habits, content["right"], content["points"])

    def figures(self) -> dict[str, float]:
        """Return what is known, each by its name, for trackers."""
        known = {"text_loss": self.text_loss, "right_share": self.right_share}
        named = {name: figure for name, figure in known.items() if figure is not None}
        return named | {f"style/{name}": habit.share for name, habit in self.habits.items()}


class Probe(Protocol):
    """Fixed prompts, and what answers to them show."""

    @property
    def prompts(self) -> Sequence[Prompt]: ...
    @property
    def max_new_tokens(self) -> int: ...
    def judge(self, answers: Sequence[Sample]) -> Probed:
        """Return what the answers show, one for each prompt and in their order; the loss on text is not among it."""
        ...


MakeProbe: TypeAlias = Callable[[Config, Prepared, int], Probe | None]
"""Makes the probe that a configuration asks for; the number is of the longest sequence, prompt and answer together, that the model is to see."""


def no_probe(config: Config, prepared: Prepared, context_tokens: int) -> None:
    """Refuse to watch answers, for commands that nobody judges the answers of.

    Raises: ConfigError where the gate is to watch them.
    """
    for name, budget in (("style", config.train.gate.style), ("instruction", config.train.gate.instruction)):
        if budget is not None:
            raise ConfigError(f"train.gate.{name} is not watched here", mend="take it away, or use `tutelage train`")
