"""What carries loss, and what tells the roles apart."""

from __future__ import annotations

from dataclasses import replace

from tutelage.lab.claims.claim import Arm, Claim, Plot, Prediction
from tutelage.lab.claims.settings import LossOn
from tutelage.lab.claims.shared_arms import ANSWERS, USUAL
from tutelage.lab.claims.statistics import Expectation

LOSS_ON_ANSWERS = Claim(
    name="loss-on-answers",
    claim="Loss on the answers alone gives better answers than loss on everything, and does not learn prompts by heart.",
    done="The same lessons in the same steps, with loss on the assistant's tokens or on every token of the document. "
    "What is learned of prompts is the loss on held-out prompts less that on trained ones.",
    source="common practice; arXiv 2405.14394 has the opposite for short answers",
    arms=(Arm("loss on answers", USUAL), Arm("loss on everything", replace(USUAL, loss_on=LossOn.EVERYTHING))),
    predictions=(
        Prediction("loss on answers", "loss on everything", "right", Expectation.HIGHER, ANSWERS),
        Prediction("loss on everything", "loss on answers", "prompts.gap", Expectation.HIGHER, 0.1),
    ),
    plot=Plot(("right", "right.multi_turn")),
)

ROLE_TOKENS = Claim(
    name="role-tokens",
    claim="A chat template with role tokens teaches better than plain concatenation, most of all in conversations of several turns.",
    done="The same lessons in the ChatML template, and as plain lines: each message on a line of its own, an end of text after each answer.",
    source="chat templates of every model family",
    arms=(Arm("chat template", USUAL), Arm("plain lines", replace(USUAL, role_tokens=False))),
    predictions=(
        Prediction("chat template", "plain lines", "right", Expectation.HIGHER, ANSWERS),
        Prediction("chat template", "plain lines", "right.multi_turn", Expectation.HIGHER, 0.05),
    ),
    plot=Plot(("right", "right.multi_turn")),
)
