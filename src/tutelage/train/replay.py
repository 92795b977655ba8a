"""A step that was left out, looked at again: the loss and gradient of each of its rows, alone."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.chat.rendered import Rendered
from tutelage.config.load import load_config
from tutelage.errors import RunDirError
from tutelage.files import jsonl
from tutelage.files.manifest import verify_manifest
from tutelage.files.rundir import RunDir
from tutelage.model.head import supervised_losses
from tutelage.pack.batch import pack_batch
from tutelage.train.checkpoint import load_weights
from tutelage.train.environment import choose_device
from tutelage.train.journal import Journal
from tutelage.train.narrate import Narrator
from tutelage.train.objective import step_loss
from tutelage.train.optim import clip_gradients
from tutelage.train.scene import Scene, set_scene
from tutelage.train.trainee import Start


@dataclass(frozen=True)
class RowAlone:
    """One row by itself: mean loss of its supervised tokens in nats, and the norm of that loss's gradient."""

    where: str
    tokens: int
    supervised_tokens: int
    loss: float
    grad_norm: float

    @property
    def is_sound(self) -> bool:
        """Whether both figures are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass(frozen=True)
class Replay:
    """The rows of a step that was left out, the worst first; `weights` says which ones read them."""

    step: int
    reason: str
    weights: str
    rows: tuple[RowAlone, ...]


def replay(run: RunDir, step: int, narrator: Narrator) -> Replay:
    """Give each row of a step that was left out, alone, to the weights of the newest checkpoint before it.

    Dropout and noise are left away: what remains wrong is of the row and the weights.

    Raises:
        RunDirError: that step was not left out, or its rows are no longer in the data.
    """
    incident = _incident(run, step)
    began = json.loads(run.plan.read_bytes())
    settled = [f"train.precision={began['precision']['name']}", "train.neftune_alpha=0", "run.trackers=[]"]
    resolved = load_config(run.config, settled)
    with tempfile.TemporaryDirectory() as folder, RunDir.create(Path(folder) / "replay") as scratch:
        with Journal(scratch, resolved) as journal:
            device = choose_device(resolved.config.train)
            scene = set_scene(resolved, journal, narrator, start=Start(began["start"]), device=device)
        documents = _documents_of(incident, scene)
        weights = _load_weights_before(run, step, scene)
        scene.model.eval()
        alone = [_alone(scene, document) for document in documents]
    alone.sort(key=lambda row: (row.is_sound, -row.grad_norm if row.is_sound else 0.0))
    return Replay(step, incident["reason"], weights, tuple(alone))


def _incident(run: RunDir, step: int) -> Mapping[str, Any]:
    lines = _left_out(jsonl.read(run.incidents)) if run.incidents.exists() else []
    found = [line for line in lines if line["step"] == step]
    if not found:
        steps = ", ".join(str(line["step"]) for line in lines)
        raise RunDirError(
            f"step {step} of {run.path} was not left out",
            mend=f"these were: {steps}" if steps else "no step of this run was",
        )
    return found[-1]


def _left_out(lines: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the lines of steps that were left out, those that a roll-back undid among them."""
    steps = [step for line in lines for step in line.get("left_out", [line])]
    return [step for step in steps if "rows" in step and "out_of_memory" not in step]


def _documents_of(incident: Mapping[str, Any], scene: Scene) -> list[Rendered]:
    known = {(document.record_id, document.stage): document for document in scene.documents}
    rows = [(row["id"], row["stage"]) for row in incident["rows"]]
    if missing := [row["where"] for row in incident["rows"] if (row["id"], row["stage"]) not in known]:
        raise RunDirError(
            f"{len(missing)} rows of this step are no longer in the data, {missing[0]} to begin with",
            mend="give the run the data files that it was trained on",
        )
    return [known[row] for row in rows]


def _load_weights_before(run: RunDir, step: int, scene: Scene) -> str:
    for number in reversed(run.checkpoint_steps()):
        if number < step and not verify_manifest(run.checkpoint(number)):
            load_weights(run.checkpoint(number), scene.model)
            return f"checkpoint of step {number}"
    return "the weights that the run began with"


def _alone(scene: Scene, document: Rendered) -> RowAlone:
    batch = pack_batch([document]).to(scene.settings.device)
    with scene.settings.autocast():
        losses = supervised_losses(scene.model, batch)
    mean = step_loss(losses, float(document.weights.sum()))
    mean.backward()  # type: ignore[no-untyped-call]
    norm = clip_gradients(scene.model.parameters(), 0.0).item()
    scene.model.zero_grad(set_to_none=True)
    return RowAlone(document.where, len(document), document.supervised_tokens, mean.item(), norm)
