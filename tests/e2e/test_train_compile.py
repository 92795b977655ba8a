"""Whole runs with compiled layers: the figures of a plain run up to rounding, and bits that survive being stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tiny import tiny_folder
from tiny_runs import Stopper, go, outcome, write_texts
from tutelage.errors import ConfigError, RunDirError
from tutelage.model import compile as compile_module
from tutelage.model.attention import register_attention

STEPS = "train.max_steps=4"
COMPILED = "train.compile=true"

pytestmark = pytest.mark.filterwarnings("default:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def graphs_without_machine_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compile_module, "HOW", {"dynamic": True, "backend": "aot_eager"})
    yield
    torch._dynamo.reset()
    register_attention()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compile")
    tiny_folder(folder / "model", "llama")
    write_texts(folder)
    return folder


def test_a_compiled_run_learns_the_same_and_goes_on_to_the_bit_after_a_stop(place: Path) -> None:
    go(place, "plain", STEPS)
    go(place, "compiled", STEPS, COMPILED)
    plain, compiled = outcome(place / "plain")[1], outcome(place / "compiled")[1]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    plan = json.loads((place / "compiled/plan.json").read_bytes())
    assert plan["compile"]["name"] == "on"

    assert go(place, "cut", STEPS, COMPILED, narrator=Stopper(2)) == "stopped"
    with pytest.raises(RunDirError):  # plain layers would round otherwise
        go(place, "cut", STEPS, resume=True)
    assert go(place, "cut", STEPS, COMPILED, resume=True) == "finished"
    assert outcome(place / "cut") == outcome(place / "compiled")


def test_what_compiled_layers_cannot_do_is_refused_by_name(place: Path) -> None:
    with pytest.raises(ConfigError, match="gradient_checkpointing=selective"):
        go(place, "selective", STEPS, COMPILED, "train.gradient_checkpointing=selective")
