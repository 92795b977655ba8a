"""Which slices a supervised token belongs to: the turn of the conversation it stands in, and what it is there.

A batch keeps one small number for each supervised token, its cell. The sums of a slice are those of its cells, so that slices
that overlap (the first token of an answer is also one of turn 1) cost one addition a token together, in the forward pass there is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tutelage.chat.rendered import Part, Rendered
from tutelage.data.conversation import Role

# S supervised tokens of one document

TURNS = ("turn 1", "turn 2", "turn 3", "turn 4 and later")
FIRST = "first token"
PARTS = {
    Part.CONTENT: "answer",
    Part.REASONING: "reasoning",
    Part.TOOL_CALL: "tool call",
    Part.STOP: "stop token",
}
NO_TURN = 0
NUM_CELLS = 1 + len(TURNS) * 2 * len(Part)


def cells_of(document: Rendered, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the cells [S] of a document's supervised tokens, at places `tokens` [S] in ascending order.

    The first token of a turn is the first of it that carries loss. Tokens of plain text are in no turn.
    """
    message_S = document.message[tokens]
    answers = np.cumsum([role == Role.ASSISTANT for role in document.roles], dtype=np.int64)
    turn_S = np.append(np.minimum(answers, len(TURNS)), NO_TURN)[message_S]  # message -1 is the last entry
    is_first_S = np.append(True, message_S[1:] != message_S[:-1])[: len(tokens)]
    return np.where(turn_S == NO_TURN, NO_TURN, _cell(turn_S - 1, is_first_S, document.part[tokens].astype(np.int64)))


def _cell(
    turn: npt.NDArray[np.int64], is_first: npt.NDArray[np.bool_], part: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the cells of turns counted from 0."""
    return 1 + (turn * 2 + is_first) * len(Part) + part


def _cells_of_slices() -> Iterator[tuple[str, list[int]]]:
    turn, is_first, part = (axis.ravel() for axis in np.indices((len(TURNS), 2, len(Part))))
    cells = _cell(turn, is_first.astype(np.bool_), part)
    for number, name in enumerate(TURNS):
        yield name, cells[turn == number].tolist()
    yield FIRST, cells[is_first == 1].tolist()
    for number, name in PARTS.items():
        yield name, cells[part == number].tolist()


SLICES: dict[str, list[int]] = dict(_cells_of_slices())
"""The cells of each slice. Turns share no cell, nor do parts; the first tokens are in both."""
