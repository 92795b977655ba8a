"""The mask as a picture: which tokens of a document are trained, and what each of them is.

Made from rendered documents alone, after the fact: what it shows is what training sees. Here is the picture of the
terminal and the choice of the documents that most deserve a look; `picture_page` makes the HTML page of the same views.
"""

# T tokens of one document

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import numpy as np
import numpy.typing as npt
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from tutelage.chat.pieces import Piece, Pieces
from tutelage.chat.rendered import Part, Rendered
from tutelage.chat.tokenizer import ChatTokenizer

_LONGEST_PLAIN_RUN_TOKENS = 160
_KEPT_AT_EACH_END_TOKENS = 60
_LONGEST_PLAIN_RUN_MESSAGES = 5

_ROLE_STYLES = {"system": "magenta", "user": "cyan", "assistant": "bold green", "tool": "yellow"}
_TRAINED = ("black on green", "black on bright_green")  # in turn, so that one sees where tokens end
_PART_STYLES = {Part.REASONING: " italic", Part.TOOL_CALL: " underline"}
_TRAINED_STOP, _CONTROL, _UNTRAINED = "bold black on yellow", "italic dim", "dim"


@dataclass(frozen=True, eq=False)
class View:
    """One document, ready to be drawn. `typed_controls` counts control strings that stand in it as ordinary text."""

    document: Rendered
    pieces: tuple[Piece, ...]
    typed_controls: int
    why: str = ""

    @property
    def trained_share(self) -> float:
        """Trained tokens as a part of all tokens."""
        return self.document.supervised_tokens / max(1, len(self.document))

    def role(self, token: int) -> str:
        """Return the role of the message that a token belongs to; empty for tokens of no message."""
        return role_of(self.document, int(self.document.message[token]))


def role_of(document: Rendered, message: int) -> str:
    """Return the role of a message of a document; empty for -1."""
    return document.roles[message] if 0 <= message < len(document.roles) else ""


def view(document: Rendered, tokenizer: ChatTokenizer | Pieces, *, why: str = "") -> View:
    """Return the view of one document."""
    pieces = tokenizer if isinstance(tokenizer, Pieces) else Pieces(tokenizer)
    return View(document, tuple(pieces.of(document.ids.tolist())), count_typed_controls(document, pieces), why)


def count_typed_controls(document: Rendered, pieces: Pieces) -> int:
    """Return how many control strings, such as `<|im_end|>`, stand in the document without being control tokens."""
    return len(pieces.tokenizer.control_pattern.findall(pieces.text(document.ids.tolist())))


def worst_first(documents: Sequence[Rendered], pieces: Pieces) -> list[tuple[int, str]]:
    """Return (index, why) of every document, those first that most deserve a look.

    In turn: the longest, the least supervised, and the one with the most control strings typed into it; then the next
    longest, and so on. Of a conversation that was split by turn one document comes first, and the others at the end.
    """
    lengths = np.array([len(document) for document in documents])
    trained = np.array([document.supervised_tokens for document in documents])
    controls = np.array([count_typed_controls(document, pieces) for document in documents])
    share = trained / np.maximum(lengths, 1)
    rankings = (
        [(int(i), "longest") for i in np.argsort(-lengths, kind="stable")],
        [(int(i), "least supervised") for i in np.argsort(share, kind="stable")],
        [(int(i), "most control strings") for i in np.argsort(-controls, kind="stable") if controls[i]],
    )
    chosen: dict[int, str] = {}
    for ranks in zip_longest(*rankings):
        for entry in ranks:
            if entry is not None:
                chosen.setdefault(*entry)
    shown: set[tuple[str, str]] = set()
    first: list[tuple[int, str]] = []
    later: list[tuple[int, str]] = []
    for index, why in chosen.items():
        conversation = (documents[index].where, documents[index].record_id)
        (later if conversation in shown else first).append((index, why))
        shown.add(conversation)
    return first + later


def draw(views: Sequence[View], *, whole: bool = False, plain: bool = False) -> RenderableType:
    """Return the picture for a terminal; `whole` keeps long untrained runs, `plain` marks by brackets instead of colour."""
    return Group(legend(plain=plain), *(part for one in views for part in _draw_document(one, whole, plain)))


def legend(*, plain: bool) -> Text:
    """Return what the marks mean."""
    if plain:
        return Text(
            "⟦trained⟧  ⟦stop token■⟧  <control token>  ×0.5 weight of what follows  everything else is read only"
        )
    line = Text()
    for word, style in (
        ("trained", _TRAINED[0]),
        ("reasoning", _TRAINED[0] + _PART_STYLES[Part.REASONING]),
        ("tool call", _TRAINED[0] + _PART_STYLES[Part.TOOL_CALL]),
        ("stop token", _TRAINED_STOP),
        ("control token", _CONTROL),
        ("read only", _UNTRAINED),
    ):
        line.append(f" {word} ", style).append("  ")
    return line.append("×0.5 weight of what follows", "bold blue")


def print_picture(console: Console, views: Sequence[View], *, whole: bool = False) -> None:
    """Print the picture; without colours the trained tokens stand in brackets."""
    console.print(draw(views, whole=whole, plain=console.color_system is None))


def _draw_document(one: View, whole: bool, plain: bool) -> Iterator[RenderableType]:
    document = one.document
    facts = [
        document.where,
        f"{len(document):,} tokens",
        f"{document.supervised_tokens:,} trained ({one.trained_share:.0%})",
    ]
    facts += [f"turn {document.stage}"] if document.stage else []
    facts += [f"{one.typed_controls} control strings typed as text"] if one.typed_controls else []
    facts += [one.why] if one.why else []
    yield Text()
    title = Text(" · ".join(facts), style="bold")
    yield title if plain else Rule(title, align="left", style="dim")
    for start, end, num_messages in _shown_messages(document, whole):
        if num_messages > 1:
            yield Text(f"… {num_messages} messages, {end - start:,} tokens read only …", "bold dim")
            continue
        role = one.role(start)
        yield Text(f"{role} {document.message[start]}" if role else "(no message)", _ROLE_STYLES.get(role, "dim"))
        tokens = _draw_tokens(one, start, end, whole, plain)
        yield tokens if plain else Padding(tokens, (0, 0, 0, 2))


def _shown_messages(document: Rendered, whole: bool) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, 1) of each message to draw; many untrained ones in a row become one (start, end, how many)."""
    messages = runs(document.message)
    trained = np.array([bool(document.weights[start:end].any()) for start, end in messages])
    for first, last in runs(trained):
        gap_start, gap_end = first + 1, last - 2  # the first says what it is about, the last two are the context
        is_long = not whole and not trained[first] and last - first > _LONGEST_PLAIN_RUN_MESSAGES
        for number in range(first, last):
            if is_long and number == gap_start:
                yield messages[gap_start][0], messages[gap_end - 1][1], gap_end - gap_start
            elif not is_long or not gap_start < number < gap_end:
                yield *messages[number], 1


def _draw_tokens(one: View, start: int, end: int, whole: bool, plain: bool) -> Text:
    text = Text()
    weight = 1.0
    marks = _marks(one.document)[start:end]
    for run_start, run_end in runs(marks):
        first, last = start + run_start, start + run_end
        run_weight = float(one.document.weights[first])
        if run_weight not in (0.0, weight):
            text.append(f"×{run_weight:g} ", "bold blue")
            weight = run_weight
        if run_weight == 0 and not whole and last - first > _LONGEST_PLAIN_RUN_TOKENS:
            _append(text, one, first, first + _KEPT_AT_EACH_END_TOKENS, plain)
            text.append(f" … {last - first - 2 * _KEPT_AT_EACH_END_TOKENS:,} tokens not shown … ", "bold dim")
            first = last - _KEPT_AT_EACH_END_TOKENS
        _append(text, one, first, last, plain)
    if text.plain.endswith("\n"):
        text.right_crop(1)
    return text


def _append(text: Text, one: View, first: int, last: int, plain: bool) -> None:
    trained = bool(one.document.weights[first])
    is_stop = one.document.part[first] == Part.STOP
    if plain and trained:
        text.append("⟦")
    for token in range(first, last):
        piece = one.pieces[token]
        style = _UNTRAINED if not trained else _TRAINED_STOP if is_stop else _TRAINED[token % 2]
        style += _PART_STYLES.get(one.document.part[token], "")
        text.append(piece.text, _CONTROL if piece.control and not trained else style)
    if plain and trained:
        text.append("■⟧" if is_stop else "⟧")


def _marks(document: Rendered) -> npt.NDArray[np.float64]:
    """Shape [T]: equal for neighbours that are drawn alike: same weight, and both stop tokens or neither."""
    is_stop = document.part == Part.STOP
    return document.weights.astype(np.float64) + np.where(is_stop & (document.weights != 0), 1e6, 0.0)


def runs(values: npt.NDArray[np.generic]) -> list[tuple[int, int]]:
    """Return (start, end) of every run of equal neighbours.

    Example:
        >>> runs(np.array([5, 5, 7]))
        [(0, 2), (2, 3)]
    """
    if len(values) == 0:
        return []
    edges = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
    return list(pairwise(edges))
