"""What rendering yields: the tokens of one document, and of each token where it came from and what it weighs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

# T tokens of one document

IGNORED_TARGET = -100


class Part(IntEnum):
    """Which part of its message a token belongs to."""

    HEADER = 0
    CONTENT = 1
    REASONING = 2
    TOOL_CALL = 3
    STOP = 4


@dataclass(frozen=True, eq=False)
class Rendered:
    """One document as tokens.

    Shapes: every array is [T].
    `weights[t]` is the loss weight of *producing* token t (0: never trained); nothing here is shifted.
    `message[t]` is the index of the message that token t came from, -1 for tokens of no message (BOS, tool preamble).
    """

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    message: npt.NDArray[np.int32]
    part: npt.NDArray[np.int8]
    roles: tuple[str, ...]
    record_id: str
    source: str
    where: str
    stage: int = 0  # 0, or which assistant turn of a split conversation, or window of a text, is trained here
    typed_controls: int = 0  # control strings that were typed into messages, and were kept as text

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def supervised_tokens(self) -> int:
        """Tokens with a non-zero weight; the first token of a document is never predicted and never counts."""
        return int(np.count_nonzero(self.weights[1:]))

    def shifted(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return (targets [T], target weights [T]): what each position must predict. The one place where labels shift.

        Example:
            ids 5 6 7 with weights 0 0 1 give targets -100 7 -100 with weights 0 1 0.
        """
        targets = np.full(len(self.ids), IGNORED_TARGET, dtype=np.int64)
        weights = np.zeros(len(self.ids), dtype=np.float32)
        weights[:-1] = self.weights[1:]
        supervised = weights != 0
        targets[:-1][supervised[:-1]] = self.ids[1:][supervised[:-1]]
        return targets, weights
