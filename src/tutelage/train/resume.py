"""Going on with a run that was stopped: from its newest whole checkpoint, and only with the run that it was."""

from __future__ import annotations

from pathlib import Path

import torch

from tutelage.config.schema import Config
from tutelage.data.conversation import content_hash
from tutelage.errors import RunDirError
from tutelage.files.rundir import RunDir
from tutelage.parallel import agree
from tutelage.train import checkpoint
from tutelage.train.checkpoint import RunState
from tutelage.train.narrate import Narrator


def config_fingerprint(config: Config) -> str:
    """Hash what the weights depend on: not where things are kept, how often it is saved, or what it runs on."""
    train = config.train.model_dump(
        mode="json",
        exclude={"checkpoint_every_steps", "keep_checkpoints", "max_minutes", "parallel", "device", "threads"},
    )
    data = config.data.model_dump(mode="json", exclude={"cache"})
    return content_hash([config.model.model_dump(mode="json"), data, train])


def resume_from(
    run: RunDir,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    fresh: RunState,
    narrator: Narrator,
) -> RunState:
    """Load the newest whole checkpoint, if there is one, and return the state to go on from.

    Raises:
        RunDirError: the checkpoint is of another configuration or other data.
    """
    folder, passed_over = _agreed_checkpoint(run)
    for line in passed_over:
        narrator.say(line)
    if folder is None:
        narrator.say("there is no checkpoint to resume from: the run begins anew")
        return fresh
    state = checkpoint.read_state(folder)
    for what in ("config_fingerprint", "data_fingerprint"):
        if getattr(state, what) != getattr(fresh, what):
            changed = "the configuration" if what.startswith("config") else "the documents or their order"
            raise RunDirError(
                f"{folder} belongs to another run: {changed} changed since it was written",
                mend="resume with the configuration and data of the run, or start a new run.dir",
            )
    checkpoint.load_checkpoint(folder, model, optimiser)
    narrator.say(f"resumed after step {state.step}")
    return state


def _agreed_checkpoint(run: RunDir) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint that the main rank found, on every rank; only the main one reads them all."""
    folder, passed_over = checkpoint.newest_whole_checkpoint(run) if agree.is_main() else (None, [])
    name = agree.text_of_main(folder.name if folder is not None else "")
    return (run.checkpoints / name if name else None), passed_over
