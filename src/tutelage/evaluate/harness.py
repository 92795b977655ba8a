"""Tasks of lm-evaluation-harness, for those whose figures must be those that others publish: an extra, through its public interface.

Base and tuned model are asked as plain text, the same documents with the same examples before them, and compared document by document.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.config.schema import HarnessConfig
from tutelage.errors import ConfigError
from tutelage.evaluate.observe import ROWS_AT_ONCE
from tutelage.evaluate.stats import Tallies
from tutelage.evaluate.subject import Subject

SEED = 0
"""Of the examples before a question: both models see the same."""


@dataclass(frozen=True)
class HarnessScore:
    """One figure of a task, by document. `is_higher_better` as the task has it."""

    tallies: Tallies
    is_higher_better: bool


@dataclass(frozen=True)
class Harness:
    """Tasks that there are, for any model to do. Make one with `open_harness`."""

    asked: HarnessConfig
    manager: Any

    def scores(self, subject: Subject) -> dict[str, HarnessScore]:
        """Let a model do the tasks, with bars of the harness's own, and return their figures by `task.metric`.

        Those that are no mean over documents are left out.
        """
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        model: Any = subject.model
        found = simple_evaluate(
            HFLM(pretrained=model, tokenizer=subject.renderer.tokenizer.hf, batch_size=ROWS_AT_ONCE // 8),
            tasks=list(self.asked.tasks),
            limit=self.asked.limit,
            bootstrap_iters=0,
            task_manager=self.manager,
            random_seed=SEED,
            numpy_random_seed=SEED,
            torch_random_seed=SEED,
            fewshot_random_seed=SEED,
        )
        return {
            f"{task}.{name}": score
            for task, samples in found["samples"].items()
            for name, score in _by_document(samples, found["higher_is_better"].get(task, {}))
        }


def open_harness(asked: HarnessConfig) -> Harness | None:
    """Return the tasks that are asked for, before any model is loaded; None where there are none.

    Raises: ConfigError when the harness is not installed, or has no such task.
    """
    if not asked.tasks:
        return None
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"evaluate.harness needs lm-evaluation-harness ({error.name} is missing)",
            mend="pip install 'tutelage[harness]', or clear evaluate.harness.tasks",
        ) from error
    if asked.folder is not None and not Path(asked.folder).is_dir():
        raise ConfigError(
            f"{asked.folder} is no folder", mend="evaluate.harness.folder is where the YAML files of your tasks are"
        )
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every default that it takes
    manager = TaskManager(include_path=asked.folder)
    for task in asked.tasks:
        if not manager.match_tasks([task]):
            raise ConfigError(
                f"lm-evaluation-harness has no task {task!r}",
                mend="`lm_eval ls tasks` lists its own; those of a folder are named by `task:` in their YAML files",
            )
    return Harness(asked, manager)


def _by_document(
    samples: list[Mapping[str, Any]], is_higher_better: Mapping[str, bool]
) -> list[tuple[str, HarnessScore]]:
    """Return each metric that is one finite number for every document, in the order of the documents."""
    filters = dict.fromkeys(sample["filter"] for sample in samples)
    scores = []
    for chosen in filters:
        of_filter = sorted((one for one in samples if one["filter"] == chosen), key=lambda one: int(one["doc_id"]))
        for metric in of_filter[0]["metrics"]:
            values = [one[metric] for one in of_filter]
            if all(isinstance(value, bool | int | float) and math.isfinite(value) for value in values):
                name = metric if len(filters) == 1 else f"{metric}.{chosen}"
                tallies = Tallies.of([(float(value), 1.0) for value in values])
                scores.append((name, HarnessScore(tallies, bool(is_higher_better.get(metric, True)))))
    return scores
