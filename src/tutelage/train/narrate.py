"""What a run says while it goes on. The base class says nothing; the command line shows a progress bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.train.evaluate import Evaluation
from tutelage.train.plan import RunPlan
from tutelage.train.sample import Sample


class Narrator:
    """Receives the events of a run, on the main rank only. Override what is of interest."""

    def say(self, text: str) -> None:
        """Tell one line of news: a choice that was made, and why."""

    def preparing(self, what: str, done: int, count: int) -> None:
        """Tell how far the preparation of the documents is."""

    def plan(self, description: Mapping[str, Any]) -> None:
        """Tell what is about to be done: the content of `plan.json`."""

    def begin(self, plan: RunPlan, first_step: int) -> None:
        """Tell that the steps begin."""

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Tell what one step did: the line of `metrics.jsonl`."""

    def evaluation(self, evaluation: Evaluation) -> None:
        """Tell the held-out loss."""

    def samples(self, samples: Sequence[Sample]) -> None:
        """Tell the answers at this point of the run."""

    def end(self) -> None:
        """Tell that the steps are over."""
