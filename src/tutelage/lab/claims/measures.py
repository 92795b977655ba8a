"""The figures of a run, by key: what each is, and in what unit it is shown."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.lab.lesson import Kind

POINTS, PERCENT, NATS = "points", "percent", "nats per token"


@dataclass(frozen=True)
class Measure:
    """A figure of a run. `unit` says how it is shown: `points` are hundredths of a share, `percent` those of a relative rise."""

    title: str
    unit: str


MEASURES: dict[str, Measure] = {
    "right": Measure("held-out lessons answered exactly right", POINTS),
    **{f"right.{kind.value}": Measure(f"held-out lessons right: {kind.value.replace('_', ' ')}", POINTS) for kind in Kind},
    "facts": Measure("facts about people in no lesson, right", POINTS),
    "facts.worded": Measure("such facts, asked in the first wording of each, right", POINTS),
    "facts.reworded": Measure("such facts, asked in another wording, right", POINTS),
    "untaught": Measure("right about food, which no lesson asks for", POINTS),
    "untaught.form": Measure("asked for food, answered in the form of a lesson", POINTS),
    "told": Measure("facts that only the lessons state, right in a wording they lack", POINTS),
    "invented": Measure("facts stated about people whom nothing names", POINTS),
    "abstained": Measure("asked about such people, said to know nothing", POINTS),
    "abstained.known": Measure("asked for facts the base has read, said to know nothing", POINTS),
    "loss": Measure("loss on held-out answers", NATS),
    "gap": Measure("loss on held-out answers less that on trained ones", NATS),
    "prompts": Measure("loss on trained prompts", NATS),
    "prompts.gap": Measure("loss on held-out prompts less that on trained ones", NATS),
    "forgetting": Measure("rise of the loss on held-out pre-training text", PERCENT),
    "speed": Measure("tokens of documents per second of processor time", "tokens per second"),
}  # fmt: skip
