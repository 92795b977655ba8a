"""Tasks of lm-evaluation-harness: the figures are those of the very model, and both models are asked the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tiny import tiny_folder
from tutelage.config.load import load_config
from tutelage.config.schema import HarnessConfig
from tutelage.errors import ConfigError
from tutelage.evaluate.harness import HarnessScore, open_harness
from tutelage.evaluate.measures import of_harness
from tutelage.evaluate.observe import Answer, likelihoods
from tutelage.evaluate.subject import Subject, load_base
from tutelage.train.prepare import build_renderer

CHOICES = [" an animal", " a kind of tool", " red"]
THINGS = ("hen", "saw", "rose", "pike", "axe", "sky")
QUESTIONS = [(f"A {thing} is", CHOICES[n % 3 :] + CHOICES[: n % 3]) for n, thing in enumerate(THINGS)]
TASK = """\
task: things
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tiny_folder(tmp_path_factory.mktemp("models") / "llama", "llama")
    config = load_config(None, [f"model.path={folder}", "model.template=chatml"]).config
    return load_base(config, build_renderer(config), [], torch.device("cpu"))


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HarnessConfig:
    """A task of one's own on local files."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": question, "choices": choices, "answer": 1} for question, choices in QUESTIONS]
    (folder / "things.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "things.yaml").write_text(TASK.format(data=folder / "things.jsonl"))
    return HarnessConfig(tasks=["things"], folder=str(folder))


def scores(subject: Subject, asked: HarnessConfig) -> dict[str, HarnessScore]:
    harness = open_harness(asked)
    assert harness is not None
    return harness.scores(subject)


def nats(subject: Subject, question: str, choice: str) -> float:
    tokenizer = subject.renderer.tokenizer
    asked, whole = tokenizer.encode_text(question), tokenizer.encode_text(question + choice)
    (found,) = likelihoods(subject, [Answer(tuple(asked), tuple(whole[len(asked) :]), "", True)], lambda *_: None)
    return float(found.log_probability.sum())


@pytest.mark.filterwarnings("ignore")  # of packages that the harness brings
def test_a_choice_is_right_where_the_model_finds_it_likeliest(subject: Subject, tasks: HarnessConfig) -> None:
    found = scores(subject, tasks)["things.acc"]
    likeliest = [max(range(3), key=lambda n: nats(subject, question, choices[n])) for question, choices in QUESTIONS]
    assert found.tallies.sums.tolist() == [float(number == 1) for number in likeliest]
    assert 0 < found.tallies.sums.sum() < len(QUESTIONS)
    (measure,) = of_harness({"things.acc": found}, {"things.acc": found})
    assert (measure.key, measure.unit, measure.change.difference) == ("task.things.acc", "share", 0.0)
    few = scores(subject, tasks.model_copy(update={"limit": 2}))
    assert few["things.acc"].tallies.sums.tolist() == found.tallies.sums[:2].tolist()


@pytest.mark.filterwarnings("ignore")
def test_a_task_or_folder_that_there_is_not_is_refused(tasks: HarnessConfig) -> None:
    with pytest.raises(ConfigError, match="'thongs'"):
        open_harness(tasks.model_copy(update={"tasks": ["thongs"]}))
    with pytest.raises(ConfigError, match="no folder"):
        open_harness(tasks.model_copy(update={"folder": "/nowhere"}))


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError) as refused:
        open_harness(HarnessConfig(tasks=["things"]))
    assert open_harness(HarnessConfig()) is None
    assert "tutelage[harness]" in refused.value.mend
