"""Small training runs for tests: made, stopped, gone on with, and compared bit for bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tutelage.config.load import Resolved, load_config
from tutelage.files import jsonl
from tutelage.files.rundir import RunDir
from tutelage.generate.local import generate
from tutelage.train.loop import train
from tutelage.train.narrate import Narrator
from tutelage.train.trainee import Start


class Teller(Narrator):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Stopper(Narrator):
    """Sends this process a SIGTERM when a step is done, as a scheduler would."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, metrics: Mapping[str, Any]) -> None:
        if metrics["step"] == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def write_texts(place: Path) -> None:
    """Write `text.jsonl`: sixty short texts."""
    texts = [f"The baker number {i} sells {i % 7} loaves and {i % 5} cakes. " * (1 + i % 3) for i in range(60)]
    (place / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def configuration(place: Path, *changes: str) -> Resolved:
    """Return a run on `place/model` and `place/text.jsonl`, with `changes`."""
    return load_config(
        None,
        [
            f"model.path={place / 'model'}",
            f"data.train.0.path={place / 'text.jsonl'}",
            "data.held_out_fraction=0.1",
            "data.max_tokens=128",
            *([] if any("batch_sequences" in change for change in changes) else ["train.batch_tokens=512"]),
            "train.learning_rate=1e-3",
            "train.evaluate_every_steps=2",
            "train.early_stopping.patience=50",
            "sample.count=1",
            "sample.max_new_tokens=4",
            *changes,
        ],
    )


def go(
    place: Path, name: str, *changes: str, narrator: Narrator | None = None, resume: bool = False, **more: Any
) -> str:
    """Train in `place/name` and return how it ended; `more` is told to `train`."""
    folder = place / name
    with RunDir.open(folder, lock=True) if resume else RunDir.create(folder) as run:
        resolved = configuration(place, *changes)
        told = {"narrator": narrator, "resume": resume, **more}
        return train(resolved, run, generate=generate, start=Start.WEIGHTS, **told).status


def outcome(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Return the bytes of the final weights, and what was measured on the way, without the clock."""
    (file,) = (folder / "final").glob("*model.safetensors")
    weights = {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}
    lines = [line for name in ("metrics", "evals", "samples") for line in jsonl.read(folder / f"{name}.jsonl")]
    return weights, [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
