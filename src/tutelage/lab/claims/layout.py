"""Packing, right and wrong."""

from __future__ import annotations

from dataclasses import replace

from tutelage.lab.claims.claim import Arm, Claim, Plot, Prediction
from tutelage.lab.claims.settings import Arrangement
from tutelage.lab.claims.shared_arms import ANSWERS, LOSS, USUAL
from tutelage.lab.claims.statistics import Expectation

PACKING = Claim(
    name="packing",
    claim="Packing learns as much from each document as padding does, and faster.",
    done="The same documents in the same steps of 512 tokens, packed with attention inside each document, or as padded rows grouped by "
    "length. Speed is in tokens of documents per second of processor time.",
    source="arXiv 2107.02027",
    arms=(Arm("packed", USUAL), Arm("padded", replace(USUAL, arrangement=Arrangement.PADDED))),
    predictions=(
        Prediction("packed", "padded", "right", Expectation.SAME, ANSWERS),
        Prediction("packed", "padded", "loss", Expectation.SAME, LOSS),
        Prediction("packed", "padded", "speed", Expectation.HIGHER, 0.1, relative=True),
    ),
    plot=Plot(("speed",)),
)

LEAKY_PACKING = Claim(
    name="leaky-packing",
    claim="A pack whose documents see one another teaches worse.",
    done="The same packs, trained on rightly, and wrongly as one long document each: positions go on from one lesson to the next, and "
    "attention reaches the lessons before.",
    source="arXiv 2407.09105",
    arms=(Arm("documents apart", USUAL), Arm("leaky", replace(USUAL, arrangement=Arrangement.LEAKY))),
    predictions=(
        Prediction("leaky", "documents apart", "right", Expectation.LOWER, ANSWERS),
        Prediction("leaky", "documents apart", "loss", Expectation.HIGHER, LOSS),
    ),
    plot=Plot(("right", "right.multi_turn")),
)
