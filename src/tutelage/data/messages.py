"""Messages of a row, in any of the layouts that are in use, as the one `Message` type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tutelage.data.conversation import Json, Message, Role, ToolCall
from tutelage.data.reasons import Reason, RowError
from tutelage.data.strict_json import parse_json

ROLES: Mapping[str, Role] = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "human": Role.USER,
    "assistant": Role.ASSISTANT,
    "gpt": Role.ASSISTANT,
    "chatgpt": Role.ASSISTANT,
    "model": Role.ASSISTANT,
    "function_call": Role.ASSISTANT,
    "tool_call": Role.ASSISTANT,
    "tool": Role.TOOL,
    "function": Role.TOOL,
    "observation": Role.TOOL,
    "function_response": Role.TOOL,
    "tool_response": Role.TOOL,
    "ipython": Role.TOOL,
}
_CALL_ROLES = frozenset({"function_call", "tool_call"})
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_REASONING_PARTS = frozenset({"reasoning", "thinking"})
_CALL_PARTS = frozenset({"tool_call", "function_call"})
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


def parse_messages(value: Json, *, column: str = "messages") -> tuple[Message, ...]:
    """Return the messages of a list of `{role, content}` or `{from, value}` objects.

    Raises: RowError for what is missing, of the wrong type, or of an unknown role.
    """
    value = decoded_list(value, column)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RowError(Reason.WRONG_TYPE, f"{column} is {kind_of(value)}, not a list of messages")
    if not value:
        raise RowError(Reason.EMPTY_MESSAGES, f"{column} is an empty list")
    return tuple(_message(item, f"{column}[{index}]") for index, item in enumerate(value))


def parse_message(value: Json, *, where: str) -> Message:
    """Return one `{role, content}` or `{from, value}` object as a message."""
    return _message(value, where)


def check_conversation(messages: Sequence[Message]) -> None:
    """Check that the turns make sense in their order.

    A tool result must follow an assistant turn or another tool result, and answer a call that was made. There must be an
    assistant turn, and none may be empty unless it is marked as untrained. Anything else is left to the chat template:
    consecutive turns of one role, a greeting by the assistant, a system message in the middle.

    Raises: RowError.
    """
    calls: set[str] = set()
    for index, message in enumerate(messages):
        if message.role is Role.TOOL:
            _check_tool_turn(messages, index, calls)
        calls.update(call.id for call in message.tool_calls if call.id is not None)
        _check_not_empty(message, index)
    if not any(message.role is Role.ASSISTANT for message in messages):
        roles = ", ".join(message.role.value for message in messages[:6])
        raise RowError(Reason.NO_ANSWER, f"nobody answers: the roles are {roles}")


def parse_tools(value: Json, *, column: str = "tools") -> tuple[Mapping[str, Json], ...]:
    """Return tool descriptions in OpenAI's form; JSON strings are decoded, bare functions wrapped, null is none."""
    if isinstance(value, str):
        try:
            value = parse_json(value) if value.strip() else None
        except RowError as error:
            raise RowError(Reason.BAD_TOOLS, f"{column} is a string that is not JSON: {error.cause}") from None
    if value is None:
        return ()
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RowError(Reason.BAD_TOOLS, f"{column} is {kind_of(value)}, not a list")
    return tuple(_tool(item, f"{column}[{index}]") for index, item in enumerate(value))


def kind_of(value: Json) -> str:
    """Return the JSON name of a value's type, for error texts."""
    names = ((bool, "a boolean"), (str, "a string"), ((int, float), "a number"), (Mapping, "an object"))
    if value is None:
        return "null"
    return next((name for types, name in names if isinstance(value, types)), "a list")


def _message(item: Json, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise RowError(Reason.WRONG_TYPE, f"{where} is {kind_of(item)}, not an object")
    role_name = _role_name(item, where)
    role = ROLES[role_name]
    raw = item.get("content")
    if raw is None:
        raw = item.get("value")
    if role_name in _CALL_ROLES:
        content, reasoning, calls = "", None, parse_calls(raw, where=where)
    else:
        content, reasoning, calls = _content(raw, role, where)
    calls += parse_calls(item.get("tool_calls"), where=f"{where}.tool_calls")
    calls += parse_calls(item.get("function_call"), where=f"{where}.function_call")
    if calls and role is not Role.ASSISTANT:
        raise RowError(Reason.BAD_TOOL_CALL, f"{where} has tool calls, but its role is {role.value}")
    if raw is None and not calls and role is not Role.ASSISTANT:
        raise RowError(Reason.WRONG_TYPE, f"{where} has no content")
    train, weight = _training(item, where)
    if train and role is not Role.ASSISTANT:
        raise RowError(Reason.NOT_TRAINABLE, f"{where} of the {role.value} asks to be trained")
    return Message(
        role=role,
        content=content,
        tool_calls=calls,
        reasoning=_reasoning(item, reasoning, where),
        name=_optional_text(item, "name", where),
        tool_call_id=_optional_text(item, "tool_call_id", where),
        train=train,
        weight=weight,
    )


def _role_name(item: Mapping[str, Json], where: str) -> str:
    name = item.get("role")
    if name is None:
        name = item.get("from")
    if name is None:
        raise RowError(Reason.MISSING_ROLE, f"{where} has no role; its keys are {', '.join(map(str, list(item)[:8]))}")
    if not isinstance(name, str):
        raise RowError(Reason.WRONG_TYPE, f"the role of {where} is {kind_of(name)}")
    if name not in ROLES:
        raise RowError(Reason.UNKNOWN_ROLE, f"{where} has the role {name[:40]!r}; known are {', '.join(ROLES)}")
    return name


def _content(raw: Json, role: Role, where: str) -> tuple[str, str | None, tuple[ToolCall, ...]]:
    """Return text, reasoning and tool calls of a content that is a string, null, or a list of parts."""
    if raw is None:
        return "", None, ()
    if isinstance(raw, str):
        return raw, None, ()
    if isinstance(raw, Mapping) and "type" not in raw and role is Role.TOOL:
        raise RowError(
            Reason.WRONG_TYPE, f"the content of {where} is an object; write a tool's result as a JSON string"
        )
    if isinstance(raw, (bool, int, float, Mapping)):
        raise RowError(Reason.WRONG_TYPE, f"the content of {where} is {kind_of(raw)}, not text")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: tuple[ToolCall, ...] = ()
    for index, part in enumerate(raw):
        place = f"{where}.content[{index}]"
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _TEXT_PARTS:
            texts.append(_part_text(part, place))
        elif kind in _REASONING_PARTS:
            thoughts.append(_part_text(part, place))
        elif kind in _CALL_PARTS:
            calls += parse_calls(part.get("value", part.get("tool_call", part)), where=place)
        else:
            raise RowError(Reason.UNSUPPORTED_CONTENT, f"{place} is of type {kind!r}; only text can be trained on")
    return "".join(texts), "".join(thoughts) if thoughts else None, calls


def _part_text(part: Mapping[str, Json], where: str) -> str:
    text = next((part[key] for key in ("text", "value", "thinking", "reasoning") if key in part), None)
    if not isinstance(text, str):
        raise RowError(Reason.WRONG_TYPE, f"the text of {where} is {kind_of(text)}")
    return text


def _reasoning(item: Mapping[str, Json], from_parts: str | None, where: str) -> str | None:
    texts = [] if from_parts is None else [from_parts]
    for key in _REASONING_KEYS:
        text = _optional_text(item, key, where)
        if text and text not in texts:  # some servers write the same reasoning under two keys
            texts.append(text)
    if len(texts) > 1:
        raise RowError(Reason.WRONG_TYPE, f"{where} has two different reasoning texts")
    return texts[0] if texts else None


def _optional_text(item: Mapping[str, Json], key: str, where: str) -> str | None:
    value = item.get(key)
    if value is not None and not isinstance(value, str):
        raise RowError(Reason.WRONG_TYPE, f"{key} of {where} is {kind_of(value)}, not text")
    return value


def _training(item: Mapping[str, Json], where: str) -> tuple[bool | None, float]:
    """Return (train, weight) of a message from its keys `train`, `weight` and `loss_weight`; weight 0 means untrained."""
    train = item.get("train")
    if train is not None and not isinstance(train, bool):
        raise RowError(Reason.WRONG_TYPE, f"train of {where} is {kind_of(train)}, not true or false")
    weight: Any = item.get("weight")
    if weight is None:
        weight = item.get("loss_weight")
    if weight is None:
        return train, 1.0
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise RowError(Reason.WRONG_TYPE, f"weight of {where} is {kind_of(weight)}, not a number")
    if not 0 <= weight < math.inf:
        raise RowError(Reason.WRONG_TYPE, f"weight of {where} is {weight}, and must be zero or positive")
    return (False, 0.0) if weight == 0 else (train, float(weight))


def parse_calls(value: Json, *, where: str) -> tuple[ToolCall, ...]:
    """Return tool calls given as one call, a list of calls, or a JSON string of either; null is none."""
    if value is None:
        return ()
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except RowError as error:
            raise RowError(Reason.BAD_TOOL_CALL, f"{where} is a string that is not JSON: {error.cause}") from None
    calls = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return tuple(_call(call, where if call is value else f"{where}[{index}]") for index, call in enumerate(calls))


def _call(value: Json, where: str) -> ToolCall:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RowError(Reason.BAD_TOOL_CALL, f"{where} has no function name")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments) if arguments.strip() else {}
        except RowError as error:
            raise RowError(Reason.BAD_TOOL_CALL, f"the arguments of {where} are not JSON: {error.cause}") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise RowError(Reason.BAD_TOOL_CALL, f"the arguments of {where} are {kind_of(arguments)}, not an object")
    identity = value.get("id")
    if identity is not None and not isinstance(identity, str):
        raise RowError(Reason.BAD_TOOL_CALL, f"the id of {where} is {kind_of(identity)}, not text")
    return ToolCall(name=function["name"], arguments=arguments, id=identity)


def _tool(item: Json, where: str) -> Mapping[str, Json]:
    if isinstance(item, Mapping) and isinstance(item.get("function"), Mapping) and item["function"].get("name"):
        return item
    if isinstance(item, Mapping) and isinstance(item.get("name"), str):
        return {"type": "function", "function": item}
    raise RowError(Reason.BAD_TOOLS, f"{where} is not a function with a name")


def decoded_list(value: Json, column: str) -> Json:
    """Return a list that was stored as a JSON string (as CSV files must) decoded; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return parse_json(value)
        except RowError as error:
            raise RowError(Reason.WRONG_TYPE, f"{column} is a string that is not JSON: {error.cause}") from None
    return value


def _check_tool_turn(messages: Sequence[Message], index: int, calls: Iterable[str]) -> None:
    if index == 0 or messages[index - 1].role not in (Role.ASSISTANT, Role.TOOL):
        before = messages[index - 1].role.value if index else "nothing"
        raise RowError(Reason.ROLE_ORDER, f"message {index} is a tool's result, but {before} comes before it")
    answered = messages[index].tool_call_id
    if answered is not None and calls and answered not in calls:
        raise RowError(Reason.ROLE_ORDER, f"message {index} answers the tool call {answered!r}, which nobody made")


def _check_not_empty(message: Message, index: int) -> None:
    if message.content.strip() or message.tool_calls:
        return
    if message.role is Role.ASSISTANT and message.train is not False:
        raise RowError(Reason.EMPTY_ANSWER, f"message {index} has neither text nor a tool call")
    if message.role is Role.USER:
        raise RowError(Reason.EMPTY_CONTENT, f"message {index} of the user is empty")
