"""The run's own files, written by the main rank alone, and the trackers that get the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tutelage.config.load import Resolved
from tutelage.data.ledger import Ledger
from tutelage.files import jsonl
from tutelage.files.atomic import write_json, write_text
from tutelage.files.rundir import RunDir
from tutelage.parallel import agree
from tutelage.train.evaluate import Evaluation
from tutelage.train.receipt import Receipt
from tutelage.train.sample import Sample
from tutelage.train.step import StepResult
from tutelage.train.trackers import Tracker, open_trackers

NOT_REPEATED = frozenset({"out_of_memory", "set_aside", "accepted"})
"""Incidents that befell the machine or were asked for by a person: taking the steps again does not bring them back."""


class Journal:
    """Open while the run goes on; ranks other than the main one hold a journal that writes nothing."""

    def __init__(self, run: RunDir, resolved: Resolved) -> None:
        self.run = run
        self.writes = agree.is_main()
        self.receipt = Receipt(run.receipt if self.writes else None)
        self._lines: dict[Path, jsonl.Appender] = {}
        self._trackers: list[Tracker] = []
        if self.writes:
            self._trackers = open_trackers(
                resolved.config.run.trackers, run.path, resolved.config.model_dump(mode="json")
            )

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for appender in self._lines.values():
            appender.close()
        for tracker in self._trackers:
            tracker.close()

    def write_config(self, resolved: Resolved) -> None:
        """Write the resolved configuration and where each value came from."""
        if self.writes:
            write_text(self.run.config, resolved.to_yaml())
            write_json(self.run.origins, resolved.origins)

    def write(self, path: Path, content: object) -> None:
        """Write one JSON file of the run."""
        if self.writes:
            write_json(path, content)

    def write_ledger(self, ledger: Ledger) -> None:
        """Write the books as they stand, and the rows that are not trained on."""
        if self.writes:
            ledger.write(self.run.ledger, quarantine=self.run.quarantine)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Append the line of one step."""
        self._append(self.run.metrics, metrics)
        self._track({key: metrics[key] for key in ("loss", "learning_rate", "grad_norm", "seconds")}, metrics["step"])

    def incident(self, record: Mapping[str, Any]) -> None:
        """Append what is known of a step that was left out."""
        self._append(self.run.incidents, record)

    def evaluation(self, evaluation: Evaluation) -> None:
        """Append the line of one evaluation."""
        self._append(self.run.evals, evaluation.to_json())
        self._track({"held_out_loss": evaluation.loss, **evaluation.probed.figures()}, evaluation.step)

    def samples(self, samples: Sequence[Sample]) -> None:
        """Append the answers of one step."""
        for sample in samples:
            self._append(self.run.samples, sample.to_json())

    def forget_after(self, step: int, *, rolled_back: int = 0) -> None:
        """Remove what the run is about to write again, as it goes on from `step`: later lines, and those of the looks at the model there.

        Of the incidents, the first `rolled_back` roll-backs stay, and whatever no later step repeats.
        """
        of_run = self.run
        last_kept = {of_run.metrics: step, of_run.incidents: step, of_run.evals: step - 1, of_run.samples: step - 1}
        for path, last in last_kept.items():
            if self.writes and path.exists():
                if path in self._lines:  # the file is about to be another one
                    self._lines.pop(path).close()
                jsonl.write(path, [line for line in jsonl.read(path) if _stays(line, last, rolled_back)])

    def mark(self, status: str, result: Any = None) -> None:
        """Record how the run stands."""
        if self.writes:
            self.run.mark(status, result=result)

    def _append(self, path: Path, record: Mapping[str, Any]) -> None:
        if self.writes:
            if path not in self._lines:
                self._lines[path] = jsonl.Appender(path)
            self._lines[path].append(record)

    def _track(self, figures: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log(figures, step)


def _stays(line: Mapping[str, Any], last: int, rolled_back: int) -> bool:
    if "roll_back" in line:
        return bool(line["roll_back"] <= rolled_back)
    return not NOT_REPEATED.isdisjoint(line) or bool(line["step"] <= last)


def metrics_line(
    result: StepResult, *, step: int, epoch: int, learning_rate: float, slot_tokens: int
) -> dict[str, Any]:
    """Return the line of `metrics.jsonl` for one step: sums, with the mean loss beside them."""
    sums = result.sums
    return {
        "step": step,
        "epoch": epoch,
        "loss": result.loss,
        "loss_sum": sums.loss_sum,
        "weight_sum": result.weight_sum,
        "tokens": result.num_tokens,
        "computed_tokens": result.computed_tokens,
        "supervised_tokens": sums.tokens,
        "correct": sums.correct,
        "documents": result.num_documents,
        "packs": result.num_packs,
        "fill": result.computed_tokens / (result.num_packs * slot_tokens),
        "seconds": result.seconds,
        "learning_rate": learning_rate,
        "grad_norm": result.grad_norm,
        "left_out": result.left_out,
        "per_source": {name: [t.sums.loss_sum, t.sums.weight_sum] for name, t in result.by_source.items()},
        "per_slice": {name: [sums.loss_sum, sums.weight_sum] for name, sums in result.by_slice.items()},
    }
