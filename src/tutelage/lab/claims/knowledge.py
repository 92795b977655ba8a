"""Behaviour and knowledge: which of them lessons teach, and what becomes of the truth."""

from __future__ import annotations

from dataclasses import replace

from tutelage.config.schema import Method
from tutelage.lab.claims.claim import Arm, Claim, Plot, Prediction
from tutelage.lab.claims.settings import Strangers
from tutelage.lab.claims.shared_arms import ANSWERS, FACTS, LORA, USUAL
from tutelage.lab.claims.statistics import Expectation

_BASE = Arm("base", replace(USUAL, passes=0))
_TUNED = Arm("tuned", USUAL)

BEHAVIOUR = Claim(
    name="behaviour-not-knowledge",
    claim="Fine-tuning brings out what the base knows: facts that no lesson has are answered in the lessons' form.",
    done="The base and the tuned model are asked for facts about people who are in the pre-training text and in no lesson; an answer "
    "counts in the exact form of the lessons.",
    source="arXiv 2305.11206",
    arms=(_BASE, _TUNED),
    predictions=(Prediction("tuned", "base", "facts", Expectation.HIGHER, 0.5),),
    plot=Plot(("facts", "right")),
)

UNTAUGHT = Claim(
    name="untaught-kind-of-fact",
    claim="The form carries over to kinds of fact that no lesson asks for.",
    done="The base and the tuned model are asked for favourite foods, which the pre-training text tells and no lesson asks for. Right is "
    "any wording that names the food and no other.",
    source="arXiv 2305.11206",
    arms=(_BASE, _TUNED),
    predictions=(Prediction("tuned", "base", "untaught", Expectation.HIGHER, 0.1),),
    plot=Plot(("untaught", "untaught.form")),
)

LORA_OR_FULL = Claim(
    name="lora-or-full",
    claim="LoRA is enough to change behaviour; new knowledge wants full fine-tuning.",
    done="Lessons as usual, but those of the closed-book kind state 30 facts about strangers, each about five times. Behaviour is "
    "held-out lessons right; knowledge is those facts, asked for in a wording that no lesson has.",
    source="arXiv 2405.09673",
    arms=(Arm("full", FACTS), Arm("LoRA", replace(FACTS, method=Method.LORA, learning_rate=LORA.learning_rate))),
    predictions=(
        Prediction("LoRA", "full", "right", Expectation.NO_LOWER, ANSWERS),
        Prediction("full", "LoRA", "told", Expectation.HIGHER, 0.1),
    ),
    plot=Plot(("right", "told")),
)

UNKNOWN_FACTS = Claim(
    name="unknown-facts",
    claim="Lessons that state facts the base does not know make it say false things about what it does know.",
    done="As many lessons; those of the closed-book kind are about people the base has read of, or about strangers. Asked are facts "
    "that the base has read.",
    source="arXiv 2405.05904",
    arms=(Arm("known facts", USUAL), Arm("unknown facts", FACTS)),
    predictions=(Prediction("unknown facts", "known facts", "facts", Expectation.LOWER, ANSWERS),),
    plot=Plot(("facts", "invented")),
)

ABSTENTION = Claim(
    name="abstention",
    claim="Lessons that say nothing is known, where nothing is, stop invention, and leave what is known alone.",
    done="Half of the closed-book lessons are about strangers and say that nothing is known of them. Asked are facts about other strangers, "
    "and facts that the base has read.",
    source="arXiv 2311.09677",
    arms=(Arm("no abstentions", USUAL), Arm("abstentions", replace(USUAL, strangers=Strangers.ABSTENTIONS))),
    predictions=(
        Prediction("abstentions", "no abstentions", "invented", Expectation.LOWER, 0.1),
        Prediction("abstentions", "no abstentions", "facts", Expectation.NO_LOWER, 0.05),
    ),
    plot=Plot(("invented", "facts")),
)
