"""Checkpoints: trainable weights, optimiser moments and the step number, as safetensors and JSON, whole or not at all.

The main rank writes them; those of a sharded model every rank writes, each what it holds, and any number of ranks reads them.
Nothing else is needed to go on exactly: the order of documents, dropout and noise are pure functions of (seed, step, document), so
the step number stands for all of them. Frozen weights are those of the base model and are not written again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import RunDirError
from tutelage.files.atomic import new_folder, remove_folder, set_aside, write_json
from tutelage.files.manifest import Verifier, verify_manifest, write_manifest
from tutelage.files.room import require_room
from tutelage.files.rundir import RunDir
from tutelage.parallel import agree
from tutelage.parallel.folder import folder_of_all_ranks, together_or_not_at_all
from tutelage.parallel.shard import is_in_parts, own_part, part_like, release
from tutelage.train.gate import Gate
from tutelage.train.guard import RollBack, Watched
from tutelage.train.optim import state_8bit
from tutelage.train.pieces import Held, Pieces, hold, open_pieces, write_pieces
from tutelage.train.stop import Improvement

FORMAT_VERSION = 2
WEIGHTS, OPTIMISER, STATE = "weights", "optimiser", "state.json"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
WITH_MOMENTS = 3  # size of a checkpoint over that of its weights: AdamW keeps two moments of the weights' type
MOMENTS_8BIT = ("state1", "state2", "absmax1", "absmax2")  # of `adamw_8bit`


@dataclass(frozen=True)
class RunState:
    """Everything beside tensors that the next step depends on; the fingerprints say what the run was a run of."""

    step: int
    improvement: Improvement
    config_fingerprint: str
    data_fingerprint: str
    tokenizer_fingerprint: str
    watched: Watched = field(default_factory=Watched)
    rolled_back: tuple[RollBack, ...] = ()
    gate: Gate = field(default_factory=Gate)


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint is made of; `moments` is None for weights alone, `together` says that every rank writes its part."""

    weights: Held
    moments: Held | None
    state: RunState
    together: bool

    @property
    def num_bytes(self) -> int:
        """Room that the tensors of all ranks ask for. There are no moments before the first step: room for them is asked for all the same."""
        if self.moments is None:
            return self.weights.num_bytes
        if self.state.step == 0:
            return WITH_MOMENTS * self.weights.num_bytes
        return self.weights.num_bytes + self.moments.num_bytes


def snapshot(
    model: torch.nn.Module, optimiser: torch.optim.Optimizer | None, state: RunState, *, copied: bool = False
) -> Snapshot | None:
    """Return what a checkpoint of this moment is made of; None on a rank that has nothing to write.

    With `copied` its tensors are copies on the host, and stay as they are while training goes on.
    """
    together = is_in_parts(model)
    if not (together or agree.is_main()):
        return None
    release(model)
    moments = hold(_moments(model, optimiser), copied=copied) if optimiser is not None else None
    return Snapshot(hold(_trainable(model), copied=copied), moments, state, together)


def write_snapshot(folder: Path, taken: Snapshot) -> None:
    """Write a checkpoint folder, whole or not at all. Every rank that has a part calls it; one that cannot write ends it for all.

    Raises:
        OSError: the disk is full, or the place cannot be written.
        RunDirError: the ranks of a sharded model do not see the same folder, or another one could not write.
    """
    with folder_of_all_ranks(folder) if taken.together else new_folder(folder) as staging:
        with together_or_not_at_all(folder) if taken.together else nullcontext():
            if agree.is_main():
                require_room(staging, taken.num_bytes)
            written = write_pieces(staging, WEIGHTS, taken.weights, together=taken.together)
            if taken.moments is not None:
                written |= write_pieces(staging, OPTIMISER, taken.moments, together=taken.together)
        if agree.is_main():  # the manifest is of what all have written
            write_json(staging / STATE, {"format": FORMAT_VERSION, **asdict(taken.state)})
            write_manifest(staging, written=written)


def save_checkpoint(
    folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer | None, state: RunState
) -> None:
    """Write a checkpoint folder; without an optimiser it holds weights alone, as the best one does. Every rank calls it.

    Raises: what `write_snapshot` does.
    """
    taken = snapshot(model, optimiser, state)
    if taken is not None:
        write_snapshot(folder, taken)


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
            if not found:  # of step 0: the optimiser makes them when it begins
                optimiser.state.pop(parameter, None)
            elif "state1" in found:
                tensors = {moment: pieces.scalar(n).to(parameter.device) for moment, n in found.items()}
                optimiser.state[parameter] = state_8bit(optimiser, parameter, tensors)
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
    for name in ("losses", "norms", "left_out"):
        watched[name] = tuple(watched[name])
    return RunState(
        improvement=Improvement(**improvement),
        watched=Watched(**watched),
        gate=Gate(**content.pop("gate")),
        rolled_back=tuple(RollBack(**past) for past in content.pop("rolled_back")),
        **content,
    )


@dataclass(frozen=True)
class Damaged:
    """A checkpoint that was not as it had been written, and the name under which it was set aside."""

    step: int
    problem: str
    place: str

    def __str__(self) -> str:
        return f"the checkpoint of step {self.step} is damaged and was set aside as {self.place}: {self.problem}"


def newest_whole_checkpoint(run: RunDir, *, before: float = math.inf) -> tuple[Path | None, list[Damaged]]:
    """Return the newest undamaged checkpoint of a step below `before`, or None; damaged ones on the way are set aside by name."""
    damaged: list[Damaged] = []
    for step in reversed([step for step in run.checkpoint_steps() if step < before]):
        folder = run.checkpoint(step)
        problems = verify_manifest(folder)
        if not problems:
            return folder, damaged
        damaged.append(Damaged(step, problems[0], set_aside(folder).name))
    return None, damaged


def whole_best(run: RunDir, step: int) -> tuple[Path | None, Damaged | None]:
    """Return the folder of the best weights, those of `step`; where it is damaged, it is set aside."""
    folder = best_folder(run, step)
    problems = verify_manifest(folder)
    if not problems:
        return folder, None
    return None, Damaged(step, problems[0], set_aside(folder).name if folder.is_dir() else "nothing")


def keep_newest(run: RunDir, count: int, verifier: Verifier) -> None:
    """Remove the checkpoints older than the newest `count` whole ones, and best weights that no checkpoint left goes on with.

    A damaged one counts for nothing: it stays among the newest until it is found at a resumption, and goes with the older ones.
    """
    whole: list[int] = []
    for step in reversed(run.checkpoint_steps()):
        if len(whole) == count:
            remove_folder(run.checkpoint(step))
        elif verifier.is_whole(run.checkpoint(step)):
            whole.append(step)
    _forget_bests(run, _named_best(run, whole, verifier))


def best_folder(run: RunDir, step: int) -> Path:
    """Return the folder of the best weights, those of `step`."""
    return run.checkpoints / f"best-step-{step:06d}"


def save_best(run: RunDir, model: torch.nn.Module, state: RunState, verifier: Verifier) -> None:
    """Write the weights as the best so far. Every rank calls it.

    Former ones go only when this one is on the disk, and stay where a run that goes on from a checkpoint still needs them: one that takes
    other steps than before, on another machine say, may never come to better ones.
    """
    folder = best_folder(run, state.step)
    if agree.is_main() and folder.is_dir():  # resumed from an older checkpoint, and here again
        remove_folder(folder)
    save_checkpoint(folder, model, None, state)
    if agree.is_main():
        _forget_bests(run, {*_named_best(run, run.checkpoint_steps(), verifier), state.step})


def _named_best(run: RunDir, steps: Sequence[int], verifier: Verifier) -> set[int]:
    whole = [folder for folder in map(run.checkpoint, steps) if verifier.is_whole(folder)]
    return {read_state(folder).improvement.best_step for folder in whole}


def _forget_bests(run: RunDir, needed: set[int]) -> None:
    names = {best_folder(run, step).name for step in needed}
    for folder in run.checkpoints.glob("best-step-*"):
        if folder.name not in names:
            remove_folder(folder)


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
