"""The labels of tokens: for each the message and part it came from, and its loss weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tutelage.chat.rendered import Part
from tutelage.chat.template import TracedRender
from tutelage.chat.tokenizer import Encoded
from tutelage.chat.trace import Field
from tutelage.chat.turns import Turn, parts_of_turn

# T tokens, S stretches of text

_SAID = {
    Field.CONTENT: Part.CONTENT,
    Field.REASONING: Part.REASONING,
    Field.TOOL_CALL: Part.TOOL_CALL,
}


class Trains(Protocol):
    """Says whether a part of a trained turn carries loss."""

    def trains(self, part: Part) -> bool:
        """Whether this part carries loss."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Shapes: all [T]. See `Rendered`."""

    weights: npt.NDArray[np.float32]
    message: npt.NDArray[np.int32]
    part: npt.NDArray[np.int8]


def label_tokens(render: TracedRender, turns: Sequence[tuple[Turn, float]], encoded: Encoded, policy: Trains) -> Labels:
    """Label each token by the stretch of text that its first character lies in; `turns` come with their weights.

    A token that straddles the beginning of a trained turn (a tokenizer may merge the header's last character with the
    answer's first) belongs to the turn: it is not among the tokens of the generation prompt.
    """
    painted = [*_template_words(render), *_message_words(render)]
    for turn, weight in turns:
        painted += _turn_words(render, turn, weight, policy)
    starts, weights, messages, parts = _flatten(painted)
    at = encoded.starts.astype(np.int64)
    for turn, _ in turns:
        at[(at < turn.start) & (encoded.ends > turn.start)] = turn.start
    index = np.searchsorted(starts, at, side="right") - 1
    return Labels(weights[index], messages[index], parts[index])


Painted: TypeAlias = tuple[int, int, int, Part, float]  # start, end, message, part, weight


def _template_words(render: TracedRender) -> Iterator[Painted]:
    for start, end, message in render.regions:
        yield start, end, message, Part.HEADER, 0.0


def _message_words(render: TracedRender) -> Iterator[Painted]:
    for span in render.sources:
        yield span.start, span.end, span.source.message, _SAID.get(span.source.field, Part.HEADER), 0.0


def _turn_words(render: TracedRender, turn: Turn, weight: float, policy: Trains) -> Iterator[Painted]:
    """Yield the parts of a trained turn. The stop token is earned by what stands before it: where that carries no
    loss (a tool call, with tool calls off), the model is not taught to stop there either."""
    earned = True
    for start, end, part in parts_of_turn(render, turn):
        earned = earned if part is Part.STOP else policy.trains(part)
        yield start, end, turn.message, part, weight if earned else 0.0


def _flatten(
    painted: list[Painted],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    """Return what is on top at each stretch, later paint over earlier. Shapes: all [S]."""
    starts = sorted({0, *(edge for stretch in painted for edge in stretch[:2])})
    place = {start: number for number, start in enumerate(starts)}
    weights = np.zeros(len(starts), dtype=np.float32)
    messages = np.full(len(starts), -1, dtype=np.int32)
    parts = np.full(len(starts), Part.HEADER, dtype=np.int8)
    for start, end, message, part, weight in painted:
        covered = slice(place[start], place[end])
        weights[covered], messages[covered], parts[covered] = weight, message, part
    return np.array(starts, dtype=np.int64), weights, messages, parts
