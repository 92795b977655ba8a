"""The settings of one run of a claim: all that decides it, seed included, and the hash by which runs are shared between claims."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from enum import StrEnum

from tutelage.config.schema import Method
from tutelage.files.encode import encode_json

RECIPE = 1
"""Part of every hash: another number, and no run that was made before is taken for one of now."""


class Choice(StrEnum):
    """Which lessons are trained on."""

    ALL = "all"
    ONE_WORDING = "one wording"
    """Each fact is asked for in one wording only; answers stay as they are."""
    FEW_PEOPLE = "few people"
    """Lessons name 20 of the 200 people."""
    ONE_KIND = "one kind"
    """Tasks with words only, of the six kinds."""


class Strangers(StrEnum):
    """What the lessons of the closed-book kind say about people of whom the base has never read."""

    NONE = "none"
    FACTS = "facts"
    """All of them are about six strangers, and state facts."""
    ABSTENTIONS = "abstentions"
    """Half of them are about twenty strangers, and say that nothing is known."""


class LossOn(StrEnum):
    """Which tokens carry loss."""

    ANSWERS = "answers"
    EVERYTHING = "everything"


class Arrangement(StrEnum):
    """How documents of a step are laid out."""

    PACKED = "packed"
    PADDED = "padded"
    LEAKY = "leaky"
    """Wrong on purpose: a pack is one long document, in which positions go on and attention reaches what stands before."""


@dataclass(frozen=True)
class Settings:
    """One run. The defaults are the run that every claim compares with.

    `lessons` are the different ones that are written, `passes` how many are seen, repetitions counted; without a pass the base is asked
    as it is. `wrong_share` of the lessons have the answer of another one. `asked` is the number of held-out lessons, of facts and
    of strangers asked for; `texts` that of held-out documents.
    """

    seed: int = 0
    lessons: int = 900
    passes: int = 900
    choice: Choice = Choice.ALL
    wrong_share: float = 0.0
    strangers: Strangers = Strangers.NONE
    replay_share: float = 0.0
    role_tokens: bool = True
    loss_on: LossOn = LossOn.ANSWERS
    arrangement: Arrangement = Arrangement.PACKED
    method: Method = Method.FULL
    learning_rate: float = 5e-4
    dropout: float = 0.0
    neftune_alpha: float = 0.0
    takes_best: bool = False
    asked: int = 160
    texts: int = 60

    @property
    def key(self) -> str:
        """Sixteen hex digits that name the run."""
        content = encode_json({"recipe": RECIPE, **vars(self)})
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Scale:
    """How large the runs of a set of claims are: `part` of the lessons and passes, and how much is asked."""

    part: float
    asked: int
    texts: int
    seeds: int

    def of(self, settings: Settings, seed: int) -> Settings:
        """Return the settings of one run at this scale."""
        return replace(
            settings,
            seed=seed,
            lessons=max(6, round(self.part * settings.lessons)),
            passes=round(self.part * settings.passes),
            asked=self.asked,
            texts=self.texts,
        )


FULL = Scale(part=1.0, asked=160, texts=60, seeds=5)
QUICK = Scale(part=0.3, asked=48, texts=20, seeds=3)
