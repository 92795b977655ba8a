"""Arms that several claims have, and the differences that would matter; both were written down before the runs."""

from __future__ import annotations

from dataclasses import replace

from tutelage.config.schema import Method
from tutelage.lab.claims.settings import Settings, Strangers

USUAL = Settings()
FEW = Settings(lessons=90)
"""As many steps as usual, over a tenth of the lessons: ten passes, enough to learn them by heart."""
LORA = replace(USUAL, method=Method.LORA, learning_rate=2e-3)
"""Adapters of rank 8 on every matrix, at four times the rate of full fine-tuning."""
FACTS = replace(USUAL, strangers=Strangers.FACTS)

ANSWERS = 0.03
"""Of the answers right: three in a hundred."""
LOSS = 0.02
"""Nats per token."""
FORGOTTEN = 0.05
"""Rise of the loss on pre-training text, as a part of what it was."""
