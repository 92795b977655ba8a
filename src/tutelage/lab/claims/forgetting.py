"""What makes a model forget, and what learning the remedies cost."""

from __future__ import annotations

from dataclasses import replace

from tutelage.lab.claims.claim import Arm, Claim, Plot, Prediction
from tutelage.lab.claims.settings import Choice
from tutelage.lab.claims.shared_arms import ANSWERS, FEW, FORGOTTEN, LORA, USUAL
from tutelage.lab.claims.statistics import Expectation

_LEARNING_AND_FORGETTING = Plot(("right", "forgetting"), is_scatter=True)
_NO_REPLAY = Arm("no replay", USUAL)
_REPLAY = tuple(Arm(f"{percent} % replay", replace(USUAL, replay_share=percent / 100)) for percent in (1, 5, 10))
_LOWER_RATE = Arm("lower rate", replace(USUAL, learning_rate=2e-4))
_SHORTER = Arm("shorter", replace(USUAL, lessons=300, passes=300))

NARROW_DATA = Claim(
    name="narrow-data",
    claim="A narrow domain makes a model forget more.",
    done="As many lessons, of six kinds or of tasks with words only. Forgetting is the rise of the loss on held-out pre-training text.",
    source="arXiv 2308.08747",
    arms=(Arm("six kinds", USUAL), Arm("words only", replace(USUAL, choice=Choice.ONE_KIND))),
    predictions=(Prediction("words only", "six kinds", "forgetting", Expectation.HIGHER, FORGOTTEN),),
    plot=Plot(("forgetting",)),
)

LITTLE_DATA = Claim(
    name="little-data",
    claim="Many passes over little data make a model forget more than one pass over much.",
    done="90 lessons ten times and 900 lessons once, in as many steps.",
    source="common practice",
    arms=(Arm("900 once", USUAL), Arm("90 ten times", FEW)),
    predictions=(Prediction("90 ten times", "900 once", "forgetting", Expectation.HIGHER, FORGOTTEN),),
    plot=_LEARNING_AND_FORGETTING,
)

REPLAY = Claim(
    name="replay",
    claim="One per cent of pre-training text already saves much from being forgotten, and costs no learning; more saves more.",
    done="Pre-training text mixed in, as 0, 1, 5 and 10 % of all tokens that carry loss; the lessons stay as many.",
    source="arXiv 2502.06042",
    arms=(_NO_REPLAY, *_REPLAY),
    predictions=(
        Prediction("1 % replay", "no replay", "forgetting", Expectation.LOWER, FORGOTTEN),
        Prediction("1 % replay", "no replay", "right", Expectation.NO_LOWER, ANSWERS),
        Prediction("10 % replay", "1 % replay", "forgetting", Expectation.LOWER, FORGOTTEN),
        Prediction("10 % replay", "no replay", "right", Expectation.NO_LOWER, ANSWERS),
    ),
    plot=_LEARNING_AND_FORGETTING,
)

LORA_FORGETS_LESS = Claim(
    name="lora-forgets-less",
    claim="LoRA learns less and forgets less than full fine-tuning.",
    done="The same lessons, all weights at 5e-4 or adapters of rank 8 on every matrix at 2e-3; embeddings of the template's new tokens "
    "are trained either way.",
    source="arXiv 2405.09673",
    arms=(Arm("full", USUAL), Arm("LoRA", LORA)),
    predictions=(
        Prediction("LoRA", "full", "right", Expectation.LOWER, ANSWERS),
        Prediction("LoRA", "full", "forgetting", Expectation.LOWER, FORGOTTEN),
    ),
    plot=_LEARNING_AND_FORGETTING,
)

REMEDIES = Claim(
    name="remedies",
    claim="Replay keeps what was known at less cost in learning than a lower rate or a shorter schedule.",
    done="What each remedy leaves of learning (up) and of forgetting (across): a rate of 2e-4 in place of 5e-4, a third of the lessons, "
    "LoRA, and replay.",
    source="arXiv 2405.09673, arXiv 2502.06042",
    arms=(_NO_REPLAY, *_REPLAY, _LOWER_RATE, _SHORTER, Arm("LoRA", LORA)),
    predictions=(
        Prediction("10 % replay", "lower rate", "right", Expectation.HIGHER, ANSWERS),
        Prediction("10 % replay", "lower rate", "forgetting", Expectation.NO_HIGHER, FORGOTTEN),
        Prediction("10 % replay", "shorter", "right", Expectation.HIGHER, ANSWERS),
        Prediction("10 % replay", "shorter", "forgetting", Expectation.NO_HIGHER, FORGOTTEN),
    ),
    plot=_LEARNING_AND_FORGETTING,
)
