"""Every claim, in the order in which they are run and shown."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from tutelage.errors import ConfigError
from tutelage.lab.claims import data, forgetting, knowledge, layout, masking, schedule
from tutelage.lab.claims.claim import Claim

CLAIMS: tuple[Claim, ...] = (
    masking.LOSS_ON_ANSWERS,
    masking.ROLE_TOKENS,
    layout.PACKING,
    layout.LEAKY_PACKING,
    data.WORDINGS,
    data.COVERAGE,
    data.QUALITY,
    data.SIZE,
    schedule.LEARNING_RATE,
    schedule.NEFTUNE,
    schedule.DROPOUT,
    schedule.EARLY_STOPPING,
    forgetting.NARROW_DATA,
    forgetting.LITTLE_DATA,
    forgetting.REPLAY,
    forgetting.LORA_FORGETS_LESS,
    forgetting.REMEDIES,
    knowledge.BEHAVIOUR,
    knowledge.UNTAUGHT,
    knowledge.LORA_OR_FULL,
    knowledge.UNKNOWN_FACTS,
    knowledge.ABSTENTION,
)


def claims_named(names: Sequence[str]) -> tuple[Claim, ...]:
    """Return the claims of these names, in the order of the catalogue; all of them where none is named.

    Raises: ConfigError for a name that there is not.
    """
    known = {claim.name: claim for claim in CLAIMS}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"there is no claim `{name}`",
                mend=f"did you mean `{near[0]}`?" if near else "`tutelage claims --list` shows them all",
            )
    return tuple(claim for claim in CLAIMS if not names or claim.name in names)
