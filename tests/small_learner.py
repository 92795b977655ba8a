"""A run at its smallest: a tiny model and its optimiser that learn, are hashed and are saved, in milliseconds."""

from __future__ import annotations

import hashlib

import torch

from tiny import tiny_model
from tutelage.config.schema import TrainConfig
from tutelage.files.manifest import Verifier
from tutelage.files.rundir import RunDir
from tutelage.train.checkpoint import RunState, keep_newest, save_checkpoint
from tutelage.train.optim import build_optimiser
from tutelage.train.stop import Improvement

KEEP = 2
Learner = tuple[torch.nn.Module, torch.optim.Optimizer]


def learner() -> Learner:
    model = tiny_model("llama_tied")
    return model, build_optimiser(model, TrainConfig(learning_rate=0.01))


def take_step(trained: Learner, step: int) -> None:
    """Take a step that depends on all before it; the gradient is drawn, as how it is made does not matter here."""
    model, optimiser = trained
    draw = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw)
    optimiser.step()


def digest(trained: Learner) -> str:
    """Hash weights and moments."""
    model, optimiser = trained
    state = [moment for p in model.parameters() for _, moment in sorted(optimiser.state.get(p, {}).items())]
    content = b"".join(tensor.detach().numpy().tobytes() for tensor in [*model.parameters(), *state])
    return hashlib.sha256(content).hexdigest()


def straight(num_steps: int) -> list[str]:
    """Return the hash after every step of a run that nothing befalls, from 0 on."""
    trained = learner()
    found = [digest(trained)]
    for step in range(1, num_steps + 1):
        take_step(trained, step)
        found.append(digest(trained))
    return found


def save(run: RunDir, trained: Learner, step: int) -> None:
    save_checkpoint(run.checkpoint(step), *trained, RunState(step, Improvement(), "", "", ""))
    keep_newest(run, KEEP, Verifier())
