"""What the lessons are: how they are worded, whom they are about, how many there are, how many of them are wrong."""

from __future__ import annotations

from dataclasses import replace

from tutelage.lab.claims.claim import Arm, Claim, Plot, Prediction
from tutelage.lab.claims.settings import Choice
from tutelage.lab.claims.shared_arms import ANSWERS, FEW, USUAL
from tutelage.lab.claims.statistics import Expectation

_NOISY = replace(USUAL, wrong_share=0.3)
_SIZES = (
    Arm("90 lessons", FEW),
    Arm("300 lessons", replace(USUAL, lessons=300)),
    Arm("900 lessons", USUAL),
)

WORDINGS = Claim(
    name="wordings",
    claim="Prompts that are all worded alike teach the wording; varied ones teach what is meant.",
    done="The same lessons, with questions for facts in four or five wordings each or in the first one only. Facts about people of no "
    "lesson are asked in the first wording and in another.",
    source="arXiv 2212.10560, arXiv 2402.10891",
    arms=(Arm("varied wordings", USUAL), Arm("one wording", replace(USUAL, choice=Choice.ONE_WORDING))),
    predictions=(
        Prediction("one wording", "varied wordings", "facts.reworded", Expectation.LOWER, 0.05),
        Prediction("one wording", "varied wordings", "facts.worded", Expectation.NO_LOWER, 0.05),
    ),
    plot=Plot(("facts.worded", "facts.reworded")),
)

COVERAGE = Claim(
    name="coverage",
    claim="Lessons that cover little of the world teach less of what holds beyond it.",
    done="As many lessons, about 200 people or about 20 of them; asked are people of no lesson.",
    source="arXiv 2308.07074",
    arms=(Arm("200 people", USUAL), Arm("20 people", replace(USUAL, choice=Choice.FEW_PEOPLE))),
    predictions=(
        Prediction("20 people", "200 people", "right", Expectation.LOWER, ANSWERS),
        Prediction("20 people", "200 people", "facts", Expectation.LOWER, 0.05),
    ),
    plot=Plot(("right", "facts")),
)

QUALITY = Claim(
    name="quality",
    claim="A few curated examples do better than ten times as many noisy ones.",
    done="90 good lessons ten times, against 900 of which three in ten have the answer of another lesson of the same task, once; "
    "900 good ones for comparison. All take as many steps.",
    source="arXiv 2305.11206, arXiv 2307.08701",
    arms=(Arm("90 good", FEW), Arm("900, 30 % wrong", _NOISY), Arm("900 good", USUAL)),
    predictions=(
        Prediction("90 good", "900, 30 % wrong", "right", Expectation.HIGHER, ANSWERS),
        Prediction("900, 30 % wrong", "900 good", "right", Expectation.LOWER, ANSWERS),
    ),
    plot=Plot(("right", "facts")),
)

SIZE = Claim(
    name="size",
    claim="Beyond some hundred good examples, more of the same add little.",
    done="90 to 900 different lessons, repeated so that every run sees as many and takes as many steps.",
    source="arXiv 2305.11206",
    arms=_SIZES,
    predictions=(
        Prediction("300 lessons", "90 lessons", "right", Expectation.HIGHER, ANSWERS),
        Prediction("900 lessons", "300 lessons", "right", Expectation.NO_HIGHER, ANSWERS),
    ),
    plot=Plot(("right", "facts")),
)
