"""Rows in the layouts that data sets come in, as records.

| kind              | columns (and other names that are understood)                                                        |
|-------------------|------------------------------------------------------------------------------------------------------|
| messages          | `messages` of {role, content, tool_calls, ...}, `tools`                                              |
| sharegpt          | `conversations` of {from, value}, `system`, `tools`                                                  |
| alpaca            | `instruction`, `input` (context), `output` (response, completion, answer), `system`, `history`       |
| prompt_completion | `prompt` (question, query, problem, input), `completion` (response, answer, solution, output), `system` |
| preference        | `chosen`, `rejected`, and `prompt`, `messages`, or `instruction` and `input`                         |
| text              | `text`                                                                                               |

Columns of other names are mapped by the configuration; a mapped name may be a path into a row, such as `answers.0.text`.
Columns that are not used become the record's metadata.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from tutelage.config.schema import Columns
from tutelage.data.columns import FIELDS, Row, RowView
from tutelage.data.conversation import Conversation, Document, Message, Origin, PreferencePair, Record, Role
from tutelage.data.messages import check_conversation, decoded_list, kind_of, parse_message, parse_messages, parse_tools
from tutelage.data.reasons import Reason, RowError

# Binary feedback as KTO data sets have it; a row marked false shows what not to say.
_LABELS = ("label", "kto_tag")


def parse_row(
    row: Row, kind: str, columns: Columns | None = None, *, source: str = "", origin: Origin | None = None
) -> Record:
    """Return the record that one row of the given kind holds.

    Raises: RowError with a named reason and the cause.
    """
    view = RowView(row, columns or Columns())
    if all(value is None for value in row.values()):
        raise RowError(Reason.EMPTY_ROW, "every column is null" if row else "the object has no keys")
    metadata = view.rest(FIELDS[kind])
    if kind == "text":
        return Document(_document_text(view), source=source, origin=origin, metadata=metadata)
    for label in _LABELS:
        if row.get(label) is False:
            raise RowError(Reason.LABELLED_UNDESIRABLE, f"{label} is false: this row shows what not to say")
    tools = parse_tools(view.get("tools"), column=view.name("tools"))
    if kind == "preference":
        prompt, chosen, rejected = _preference(view)
        return PreferencePair(prompt, chosen, rejected, tools, source=source, origin=origin, metadata=metadata)
    messages = _MESSAGES_OF[kind](view)
    check_conversation(messages)
    return Conversation(messages, tools, source=source, origin=origin, metadata=metadata)


def detect_kind(rows: Iterable[Row], columns: Columns | None = None) -> str:
    """Return the kind that most of the rows are of.

    Raises: RowError when none of them is of a known kind, with the columns that they have.
    """
    rows = list(rows)
    votes = Counter(guess for row in rows if (guess := guess_kind(row, columns)) is not None)
    if not votes:
        names = list(dict.fromkeys(str(name) for row in rows for name in row))
        raise RowError(
            Reason.MISSING_COLUMN,
            f"the columns are {', '.join(names[:20]) or 'none'}, which is no layout that tutelage knows",
            mend="say what they are, e.g. columns: {prompt: YOUR_QUESTION_COLUMN, completion: YOUR_ANSWER_COLUMN}",
        )
    return votes.most_common(1)[0][0]


def guess_kind(row: Row, columns: Columns | None = None) -> str | None:
    """Return the kind that one row looks like, by its columns; a column that is null only counts if nothing else fits."""
    view = RowView(row, columns or Columns())
    return _guess(view, view.filled) or _guess(view, view.has_column)


def describe(row: Row, kind: str, columns: Columns | None = None) -> str:
    """Return a sentence that says which columns of a row are taken for what."""
    view = RowView(row, columns or Columns())
    taken = [field if view.name(field) == field else f"{view.name(field)} as {field}" for field in view.used(kind)]
    others = list(view.rest(FIELDS[kind]))
    ignored = f"; not trained on: {', '.join(others[:8])}" if others else ""
    return f"{kind}: {', '.join(taken)}{ignored}"


def _guess(view: RowView, has: Callable[[str], bool]) -> str | None:
    if has("chosen") and has("rejected"):
        return "preference"
    if has("messages"):
        messages = view.get("messages")
        first = messages[0] if messages and isinstance(messages, list) else None
        return "sharegpt" if isinstance(first, Mapping) and "from" in first else "messages"
    if has("instruction") and has("output"):
        return "alpaca"
    if has("prompt") and has("completion"):
        return "prompt_completion"
    return "text" if has("text") else None


def _document_text(view: RowView) -> str:
    text = view.text("text")
    if not text.strip():
        raise RowError(Reason.EMPTY_CONTENT, f"column {view.name('text')!r} is empty")
    return text


def _system(view: RowView) -> tuple[Message, ...]:
    text = view.text("system", required=False)
    return (Message(Role.SYSTEM, text),) if text.strip() else ()


def _from_messages(view: RowView) -> tuple[Message, ...]:
    value = view.get("messages")
    if value is None:
        raise view.missing("messages")
    messages = parse_messages(value, column=view.name("messages"))
    if messages[0].role is Role.SYSTEM:  # a system turn of its own goes before the column
        return messages
    return _system(view) + messages


def _from_alpaca(view: RowView) -> tuple[Message, ...]:
    question = _instruction(view)
    answer = view.text("output")
    turns = [*_history(view), Message(Role.USER, question), Message(Role.ASSISTANT, answer)]
    return (*_system(view), *turns)


def _instruction(view: RowView) -> str:
    parts = (view.text("instruction"), view.text("input", required=False))
    return "\n".join(part for part in parts if part.strip())


def _history(view: RowView) -> list[Message]:
    value = decoded_list(view.get("history"), view.name("history"))
    if value is None or value == "":
        return []
    turns: list[Message] = []
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RowError(Reason.WRONG_TYPE, f"column {view.name('history')!r} is {kind_of(value)}, not a list of pairs")
    for index, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError(Reason.WRONG_TYPE, f"{view.name('history')}[{index}] is not a pair of question and answer")
        turns += [Message(Role.USER, pair[0]), Message(Role.ASSISTANT, pair[1])]
    return turns


def _from_prompt_completion(view: RowView) -> tuple[Message, ...]:
    prompt = _turns(view, "prompt", Role.USER)
    completion = _turns(view, "completion", Role.ASSISTANT)
    system = () if prompt and prompt[0].role is Role.SYSTEM else _system(view)
    return system + prompt + completion


def _turns(view: RowView, field: str, role: Role) -> tuple[Message, ...]:
    """Return a field that is text (one turn of `role`), one message, or a list of messages."""
    value = view.get(field)
    if value is None:
        raise view.missing(field)
    if isinstance(value, str):
        return (Message(role, value),)
    if isinstance(value, Mapping):
        return (parse_message(value, where=view.name(field)),)
    return parse_messages(value, column=view.name(field))


def _preference(view: RowView) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    chosen = _turns(view, "chosen", Role.ASSISTANT)
    rejected = _turns(view, "rejected", Role.ASSISTANT)
    prompt = _preference_prompt(view)
    if prompt is None:  # both sides hold the whole conversation: what they begin with in common is the prompt
        length = _common_length(chosen, rejected)
        prompt, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
        if not prompt:
            raise RowError(Reason.MISSING_COLUMN, "there is no prompt, and the two sides begin differently")
    elif len(chosen) > 1 and _common_length(prompt, chosen) == len(prompt):  # both sides repeat the prompt
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if prompt[0].role is not Role.SYSTEM:
        prompt = _system(view) + prompt
    if chosen == rejected:
        raise RowError(Reason.SAME_ANSWERS, "the two sides are equal")
    check_conversation(prompt + chosen)
    check_conversation(prompt + rejected)
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not any(message.role is Role.ASSISTANT for message in side):
            raise RowError(Reason.NO_ANSWER, f"the {name} side has no assistant turn")
    return prompt, chosen, rejected


def _preference_prompt(view: RowView) -> tuple[Message, ...] | None:
    if view.get("prompt") is not None and view.name("prompt") != "input":
        return _turns(view, "prompt", Role.USER)
    if view.get("messages") is not None:
        return parse_messages(view.get("messages"), column=view.name("messages"))
    if view.get("instruction") is not None:
        return (Message(Role.USER, _instruction(view)),)
    return None


def _common_length(left: Sequence[Message], right: Sequence[Message]) -> int:
    length = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        length += 1
    return length


_MESSAGES_OF: Mapping[str, Callable[[RowView], tuple[Message, ...]]] = {
    "messages": _from_messages,
    "sharegpt": _from_messages,
    "alpaca": _from_alpaca,
    "prompt_completion": _from_prompt_completion,
}
