"""Learning rate, noise, dropout, and when to stop."""

from __future__ import annotations

from dataclasses import replace

from tutelage.lab.claims.claim import Arm, Claim, Plot, Prediction
from tutelage.lab.claims.settings import Settings
from tutelage.lab.claims.shared_arms import ANSWERS, FEW, FORGOTTEN, LOSS, USUAL
from tutelage.lab.claims.statistics import Expectation

LEARNING_RATE = Claim(
    name="learning-rate",
    claim="The learning rate decides: far too low teaches nothing, too high forgets and answers worse.",
    done="The same lessons at peak rates from 1e-6 to 2e-3. The model has 3 million parameters, and wants higher rates than large ones.",
    source="common practice",
    arms=tuple(Arm(f"{rate:g}", replace(USUAL, learning_rate=rate)) for rate in (1e-6, 1e-5, 1e-4, 5e-4, 2e-3)),
    predictions=(
        Prediction("1e-06", "0.0005", "right", Expectation.LOWER, 0.1),
        Prediction("0.002", "0.0005", "right", Expectation.LOWER, ANSWERS),
        Prediction("0.002", "0.0005", "forgetting", Expectation.HIGHER, FORGOTTEN),
    ),
    plot=Plot(("right", "forgetting"), is_scatter=True),
)

MANY_PASSES = Settings(lessons=30, passes=1800)

NEFTUNE = Claim(
    name="neftune",
    claim="Noise on the embeddings while training (NEFTune) gives better answers.",
    done="90 lessons ten times, where there is something to regularise, without noise and with alpha 5.",
    source="arXiv 2310.05914",
    arms=(Arm("no noise", FEW), Arm("alpha 5", replace(FEW, neftune_alpha=5.0))),
    predictions=(Prediction("alpha 5", "no noise", "right", Expectation.HIGHER, ANSWERS),),
    plot=Plot(("right", "facts")),
)

DROPOUT = Claim(
    name="dropout",
    claim="Dropout helps where there is little data.",
    done="90 lessons ten times, without dropout and with 0.1 of the attention weights dropped, all that this architecture has a setting for.",
    source="common practice",
    arms=(Arm("no dropout", FEW), Arm("dropout 0.1", replace(FEW, dropout=0.1))),
    predictions=(
        Prediction("dropout 0.1", "no dropout", "right", Expectation.HIGHER, ANSWERS),
        Prediction("dropout 0.1", "no dropout", "gap", Expectation.LOWER, LOSS),
    ),
    plot=Plot(("right", "facts")),
)

EARLY_STOPPING = Claim(
    name="early-stopping",
    claim="The weights of the lowest held-out loss answer better than the last ones, and have forgotten less.",
    done="30 lessons sixty times, so that there is something to stop before; the held-out loss is looked at ten times, on other lessons than "
    "those asked.",
    source="common practice",
    arms=(Arm("last weights", MANY_PASSES), Arm("lowest held-out loss", replace(MANY_PASSES, takes_best=True))),
    predictions=(
        Prediction("lowest held-out loss", "last weights", "right", Expectation.HIGHER, ANSWERS),
        Prediction("lowest held-out loss", "last weights", "forgetting", Expectation.LOWER, FORGOTTEN),
    ),
    plot=Plot(("right", "forgetting"), is_scatter=True),
)
