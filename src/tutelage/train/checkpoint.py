"""Checkpoints: trainable weights, optimiser moments and the step number, as safetensors and JSON, whole or not at all.

The main rank writes them; those of a sharded model every rank writes, each what it holds, and any number of ranks reads them.
Nothing else is needed to go on exactly: the order of documents, dropout and noise are pure functions of (seed, step, document), so
the step number stands for all of them. Frozen weights are those of the base model and are not written again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import RunDirError
from tutelage.files.atomic import new_folder, remove_folder, write_json
from tutelage.files.manifest import verify_manifest, write_manifest
from tutelage.files.rundir import RunDir
from tutelage.parallel import agree
from tutelage.parallel.folder import folder_of_all_ranks
from tutelage.parallel.shard import is_in_parts, own_part, part_like, release
from tutelage.train.guard import Watched
from tutelage.train.optim import state_8bit
from tutelage.train.pieces import Pieces, open_pieces, write_pieces
from tutelage.train.stop import Improvement

FORMAT_VERSION = 1
WEIGHTS, OPTIMISER, STATE = "weights", "optimiser", "state.json"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
MOMENTS_8BIT = ("state1", "state2", "absmax1", "absmax2")  # of `adamw_8bit`


@dataclass(frozen=True)
class RunState:
    """Everything beside tensors that the next step depends on; the fingerprints say what the run was a run of."""

    step: int
    improvement: Improvement
    config_fingerprint: str
    data_fingerprint: str
    watched: Watched = field(default_factory=Watched)


def save_checkpoint(
    folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer | None, state: RunState
) -> None:
    """Write a checkpoint folder; without an optimiser it holds weights alone, as the best one does. Every rank calls it.

    Raises:
        RunDirError: the ranks of a sharded model do not see the same folder.
    """
    together = is_in_parts(model)
    if not (together or agree.is_main()):
        return
    release(model)
    with folder_of_all_ranks(folder) if together else new_folder(folder) as staging:
        write_pieces(staging, WEIGHTS, _trainable(model), together=together)
        if optimiser is not None:
            write_pieces(staging, OPTIMISER, _moments(model, optimiser), together=together)
        if together:
            agree.barrier()  # the manifest is of what all have written
        if agree.is_main():
            write_json(staging / STATE, {"format": FORMAT_VERSION, **asdict(state)})
            write_manifest(staging)


def load_weights(folder: Path, model: torch.nn.Module) -> None:
    """Put the weights of a checkpoint into `model`.

    Raises:
        RunDirError: the checkpoint is damaged, or is of other parameters than the model's trainable ones.
    """
    release(model)
    parameters = _trainable(model)
    with open_pieces(folder, WEIGHTS) as pieces, torch.no_grad():
        if pieces.found.keys() != parameters.keys():
            different = sorted(pieces.found.keys() ^ parameters.keys())
            raise RunDirError(
                f"{folder} holds other parameters than the model: {', '.join(different[:3])}",
                mend="resume with the same model.path and train.method as before",
            )
        for name, parameter in parameters.items():
            own_part(parameter).copy_(pieces.part_of(name, parameter))


def load_checkpoint(folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> RunState:
    """Put weights and moments of a checkpoint into `model` and `optimiser`, and return the state to go on from."""
    load_weights(folder, model)
    with open_pieces(folder, OPTIMISER) as pieces:
        for name, parameter in _in_optimiser_order(model, optimiser):
            names = {moment: f"{name}/{moment}" for moment in (*MOMENTS, *MOMENTS_8BIT)}
            found = {moment: n for moment, n in names.items() if n in pieces.found}
            if "state1" in found:
                tensors = {moment: pieces.scalar(n).to(parameter.device) for moment, n in found.items()}
                optimiser.state[parameter] = state_8bit(optimiser, tensors)
            else:
                optimiser.state[parameter] = {moment: _read_moment(pieces, n, parameter) for moment, n in found.items()}
    return read_state(folder)


def read_state(folder: Path) -> RunState:
    """Return the state in a checkpoint folder, without its tensors."""
    content: dict[str, Any] = json.loads((folder / STATE).read_bytes())
    if content.pop("format", None) != FORMAT_VERSION:
        raise RunDirError(f"{folder} was written by another version of tutelage", mend="start the run anew")
    improvement = content.pop("improvement")
    if improvement["best_loss"] is None:  # JSON has no infinity: no evaluation yet
        improvement["best_loss"] = float("inf")
    watched = content.pop("watched")
    for name in ("losses", "norms"):
        watched[name] = tuple(watched[name])
    return RunState(improvement=Improvement(**improvement), watched=Watched(**watched), **content)


def newest_whole_checkpoint(run: RunDir) -> tuple[Path | None, list[str]]:
    """Return the newest undamaged checkpoint, or None, and a line for each damaged one that was passed over."""
    passed_over: list[str] = []
    for step in reversed(run.checkpoint_steps()):
        folder = run.checkpoint(step)
        problems = verify_manifest(folder)
        if not problems:
            return folder, passed_over
        passed_over.append(f"{folder.name} is damaged and was passed over: {problems[0]}")
    return None, passed_over


def keep_newest(run: RunDir, count: int) -> None:
    """Remove all but the newest `count` checkpoints; the main rank does."""
    if not agree.is_main():
        return
    for step in run.checkpoint_steps()[:-count]:
        remove_folder(run.checkpoint(step))


def best_folder(run: RunDir, step: int) -> Path:
    """Return the folder of the best weights, those of `step`."""
    return run.checkpoints / f"best-step-{step:06d}"


def save_best(run: RunDir, model: torch.nn.Module, state: RunState) -> Path:
    """Write the weights as the best so far; the former best goes only when this one is on the disk. Every rank calls it."""
    former = list(run.checkpoints.glob("best-step-*")) if agree.is_main() and run.checkpoints.is_dir() else []
    folder = best_folder(run, state.step)
    if folder in former:  # resumed from an older checkpoint, and here again
        former.remove(folder)
        remove_folder(folder)
    save_checkpoint(folder, model, None, state)
    for old in former:
        remove_folder(old)
    return folder


def _trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    # named_parameters yields tied weights once; safetensors refuses shared memory.
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _moments(model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{moment}": torch.as_tensor(value)
        for name, parameter in _in_optimiser_order(model, optimiser)
        for moment, value in optimiser.state.get(parameter, {}).items()
        if moment in (*MOMENTS, *MOMENTS_8BIT)
    }


def _read_moment(pieces: Pieces, name: str, parameter: torch.Tensor) -> torch.Tensor:
    # AdamW keeps its own step count on the CPU unless it is fused, where it sits beside the weights.
    if name.endswith("/step"):
        return pieces.scalar(name).to(parameter.device)
    return part_like(parameter, pieces.part_of(name, parameter).to(parameter.device))


def _in_optimiser_order(
    model: torch.nn.Module, optimiser: torch.optim.Optimizer
) -> list[tuple[str, torch.nn.Parameter]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [(names[p], p) for group in optimiser.param_groups for p in group["params"]]
