"""Going on with a run that was stopped: from its newest whole checkpoint, and only with the run that it was."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path

import torch

from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.config.schema import Config
from tutelage.data.conversation import content_hash
from tutelage.errors import RunDirError
from tutelage.parallel import agree
from tutelage.train import checkpoint
from tutelage.train.checkpoint import RunState
from tutelage.train.journal import Journal
from tutelage.train.narrate import Narrator

OF_SAVING = ("checkpoint_every_steps", "keep_checkpoints", "save_in_background")


def config_fingerprint(config: Config) -> str:
    """Hash what the weights depend on: not where things are kept, how often it is saved, or what it runs on."""
    train = config.train.model_dump(
        mode="json",
        exclude={*OF_SAVING, "max_minutes", "parallel", "device", "threads"},
    )
    data = config.data.model_dump(mode="json", exclude={"cache", "cache_gigabytes", "workers"})
    asked = config.evaluate.tasks if config.train.gate.instruction is not None else []
    return content_hash([config.model.model_dump(mode="json"), data, train, list(asked)])


def tokenizer_fingerprint(tokenizer: ChatTokenizer) -> str:
    """Hash what makes tokens of text: vocabulary, merges, normalisation, special tokens, the tokenizer's own template."""
    return content_hash(asdict(tokenizer.facts))


class Changed(StrEnum):
    """What a checkpoint may be gone on with although it is another one by now, if that is asked for by name."""

    CONFIG = "config"
    DATA = "data"
    TOKENIZER = "tokenizer"


WHAT_CHANGED = {
    Changed.CONFIG: "the configuration",
    Changed.DATA: "the documents or their order",
    Changed.TOKENIZER: "the tokenizer",
}


def resume_from(
    journal: Journal,
    narrator: Narrator,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    fresh: RunState,
    *,
    accept: Collection[Changed] = (),
) -> RunState | None:
    """Load the newest whole checkpoint and return the state to go on from; None where there is no checkpoint.

    What has changed since it was written has to be in `accept`: the run then goes on from the same step of what it is now.

    Raises:
        RunDirError: the checkpoint is of another configuration, other data or another tokenizer.
    """
    folder = agreed_checkpoint(journal, narrator)
    if folder is None:
        narrator.say("there is no checkpoint to resume from: the run begins anew")
        return None
    state = checkpoint.read_state(folder)
    changed = [
        what for what in Changed if getattr(state, f"{what}_fingerprint") != getattr(fresh, f"{what}_fingerprint")
    ]
    if not set(changed) <= set(accept):
        words = " ".join(f"--accept-changed {what}" for what in changed)
        raise RunDirError(
            f"{folder} belongs to another run: {_listed(changed)} changed since it was written",
            mend=f"resume with what the run began with, or start a new run.dir; or go on with what it is now: --resume {words}",
        )
    state = checkpoint.load_checkpoint(folder, model, optimiser)
    narrator.say(f"resumed after step {state.step}")
    return _taken_over(state, fresh, changed, journal, narrator) if changed else state


def agreed_checkpoint(journal: Journal, narrator: Narrator, *, before: float = math.inf) -> Path | None:
    """Return the newest whole checkpoint of a step below `before`, on every rank; the main one reads them, and sets damaged ones aside."""
    folder: Path | None = None
    if agree.is_main():
        folder, damaged = checkpoint.newest_whole_checkpoint(journal.run, before=before)
        for found in damaged:
            narrator.say(str(found))
            journal.incident({"step": found.step, "reason": str(found), "set_aside": found.place})
    name = agree.text_of_main(folder.name if folder is not None else "")
    return journal.run.checkpoints / name if name else None


def agreed_best(journal: Journal, narrator: Narrator, step: int) -> Path | None:
    """Return the folder of the best weights, those of `step`, on every rank; None where they are damaged, and the last are the result."""
    folder: Path | None = None
    if agree.is_main():
        folder, damaged = checkpoint.whole_best(journal.run, step)
        if damaged is not None:
            said = f"{damaged}. These were the best weights: the result is the last ones instead"
            narrator.say(said)
            journal.incident({"step": step, "reason": said, "set_aside": damaged.place})
    name = agree.text_of_main(folder.name if folder is not None else "")
    return journal.run.checkpoints / name if name else None


def _taken_over(
    state: RunState, fresh: RunState, changed: Sequence[Changed], journal: Journal, narrator: Narrator
) -> RunState:
    """Return the state as one of the run that is now; losses on other documents are not compared with those before."""
    said = f"{_listed(changed)} changed before step {state.step + 1}, and the run goes on as asked (--accept-changed)"
    narrator.say(said)
    journal.incident({"step": state.step, "reason": said, "accepted": list(changed)})
    return replace(
        state,
        improvement=state.improvement if changed == [Changed.CONFIG] else fresh.improvement,
        gate=state.gate if changed == [Changed.CONFIG] else fresh.gate,
        config_fingerprint=fresh.config_fingerprint,
        data_fingerprint=fresh.data_fingerprint,
        tokenizer_fingerprint=fresh.tokenizer_fingerprint,
    )


def _listed(changed: Sequence[Changed]) -> str:
    return " and ".join(WHAT_CHANGED[what] for what in changed)
