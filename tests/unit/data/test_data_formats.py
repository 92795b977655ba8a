"""Each layout of a row gives the messages that a person would read in it."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from tutelage.config.schema import Columns
from tutelage.data.conversation import Conversation, Document, Message, PreferencePair, Role, ToolCall
from tutelage.data.formats import describe, detect_kind, parse_row
from tutelage.data.reasons import Reason, RowError

SYSTEM = Message(Role.SYSTEM, "be kind")
USER = Message(Role.USER, "hello")
ANSWER = Message(Role.ASSISTANT, "hi")


def conversation(row: dict[str, Any], kind: str | None = None, **columns: str) -> Conversation:
    mapped = Columns(**columns)
    record = parse_row(row, kind or detect_kind([row], mapped), mapped)
    assert isinstance(record, Conversation)
    return record


def pair(row: dict[str, Any]) -> PreferencePair:
    record = parse_row(row, detect_kind([row]))
    assert isinstance(record, PreferencePair)
    return record


def openai(*messages: dict[str, Any], **columns: Any) -> tuple[Message, ...]:
    return conversation({"messages": list(messages), **columns}).messages


HELLO = {"role": "user", "content": "hello"}
HI = {"role": "assistant", "content": "hi"}


def test_openai_messages() -> None:
    system = {"role": "system", "content": "be kind"}
    assert openai(system, HELLO, HI) == (SYSTEM, USER, ANSWER)


def test_developer_messages_are_system_messages() -> None:
    assert openai({"role": "developer", "content": "be kind"}, HELLO, HI) == (SYSTEM, USER, ANSWER)


def test_content_in_parts_is_joined_without_anything_between() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "input_text", "text": "lo"}]
    assert openai({"role": "user", "content": parts}, HI) == (USER, ANSWER)
    assert openai({"role": "user", "content": ["hel", "lo"]}, HI) == (USER, ANSWER)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_kept_apart_from_the_answer(key: str) -> None:
    assert openai(HELLO, {**HI, key: "hm"})[1] == Message(Role.ASSISTANT, "hi", reasoning="hm")


def test_reasoning_parts_are_kept_apart_from_the_answer() -> None:
    parts = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "reasoning", "value": "."},
        {"type": "text", "value": "hi"},
    ]
    answer = openai(HELLO, {"role": "assistant", "content": parts})[1]
    assert answer == Message(Role.ASSISTANT, "hi", reasoning="hm.")


def test_the_same_reasoning_under_two_keys_counts_once() -> None:
    answer = openai(HELLO, {**HI, "reasoning": "hm", "reasoning_content": "hm"})[1]
    assert answer.reasoning == "hm"


@pytest.mark.parametrize("arguments", ['{"city": "Oslo"}', {"city": "Oslo"}])
def test_tool_calls_with_arguments_as_text_or_object(arguments: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "rain"}
    messages = openai(HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}, result, HI)
    assert messages[1] == Message(Role.ASSISTANT, "", (ToolCall("weather", {"city": "Oslo"}, "c1"),))
    assert messages[2] == Message(Role.TOOL, "rain", name="weather", tool_call_id="c1")


@pytest.mark.parametrize("arguments", ["", None, {}, "{}"])
def test_a_call_without_arguments_has_an_empty_object(arguments: Any) -> None:
    call = {"function": {"name": "now", "arguments": arguments}}
    assert openai(HELLO, {"role": "assistant", "tool_calls": [call]})[1].tool_calls == (ToolCall("now", {}),)


def test_old_function_calls_and_results() -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
    messages = openai(HELLO, call, {"role": "function", "name": "f", "content": "1"}, HI)
    assert messages[1].tool_calls == (ToolCall("f", {}),)
    assert messages[2] == Message(Role.TOOL, "1", name="f")


def test_a_tool_may_return_nothing() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}
    assert openai(HELLO, call, {"role": "tool", "content": ""}, HI)[2].content == ""


FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}


@pytest.mark.parametrize("column", ["tools", "functions"])
@pytest.mark.parametrize("value", [[TOOL], [FUNCTION], TOOL, json.dumps([FUNCTION]), json.dumps([TOOL])])
def test_tools_are_read_from_lists_objects_and_text(column: str, value: Any) -> None:
    assert conversation({"messages": [HELLO, HI], column: value}).tools == (TOOL,)


@pytest.mark.parametrize("value", [None, "", "  ", "[]", []])
def test_no_tools(value: Any) -> None:
    assert conversation({"messages": [HELLO, HI], "tools": value}).tools == ()


@pytest.mark.parametrize(
    ("keys", "train", "weight"),
    [
        ({}, None, 1.0),
        ({"train": True}, True, 1.0),
        ({"train": False}, False, 1.0),
        ({"weight": 1}, None, 1.0),
        ({"weight": 0}, False, 0.0),
        ({"weight": 0.25}, None, 0.25),
        ({"loss_weight": 0.0}, False, 0.0),
        ({"loss_weight": 2.0}, None, 2.0),
        ({"train": True, "weight": 0.5}, True, 0.5),
        ({"train": True, "weight": 0}, False, 0.0),
    ],
)
def test_training_flags_and_weights(keys: dict[str, Any], train: bool | None, weight: float) -> None:
    answer = openai(HELLO, {**HI, **keys})[1]
    assert (answer.train, answer.weight) == (train, weight)


def test_an_empty_turn_may_stand_when_it_is_not_trained() -> None:
    messages = openai(HELLO, {"role": "assistant", "content": "", "train": False}, HELLO, HI)
    assert messages[1].content == ""


@pytest.mark.parametrize(
    "roles", ["assistant user assistant", "user user assistant assistant", "user assistant system user assistant"]
)
def test_orders_of_roles_that_a_template_may_judge_are_let_through(roles: str) -> None:
    messages = [{"role": role, "content": "x"} for role in roles.split()]
    assert [message.role for message in openai(*messages)] == roles.split()


def test_sharegpt_with_tools() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "hello"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "hi"},
        ],
        "system": "be kind",
        "tools": json.dumps([FUNCTION]),
    }
    assert detect_kind([row]) == "sharegpt"
    record = conversation(row)
    call = Message(Role.ASSISTANT, "", (ToolCall("f", {"x": 1}),))
    assert record.messages == (SYSTEM, USER, call, Message(Role.TOOL, "2"), ANSWER)
    assert record.tools == (TOOL,)


def test_sharegpt_function_call_with_several_calls() -> None:
    value = '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"x": 1}}]'
    turns = [{"from": "human", "value": "hello"}, {"from": "function_call", "value": value}]
    assert conversation({"conversations": turns}).messages[1].tool_calls == (ToolCall("f", {}), ToolCall("g", {"x": 1}))


def test_a_system_turn_goes_before_the_system_column() -> None:
    turns = [
        {"from": "system", "value": "be kind"},
        {"from": "human", "value": "hello"},
        {"from": "gpt", "value": "hi"},
    ]
    assert conversation({"conversations": turns, "system": "other"}).messages == (SYSTEM, USER, ANSWER)


def test_alpaca() -> None:
    row = {"instruction": "add", "input": "1 2", "output": "3", "system": "be kind", "history": [["hello", "hi"]]}
    assert detect_kind([row]) == "alpaca"
    question, answer = Message(Role.USER, "add\n1 2"), Message(Role.ASSISTANT, "3")
    assert conversation(row).messages == (SYSTEM, USER, ANSWER, question, answer)


@pytest.mark.parametrize(
    "extra", [{}, {"input": ""}, {"input": None}, {"system": ""}, {"history": []}, {"history": ""}]
)
def test_alpaca_without_the_optional_columns(extra: dict[str, Any]) -> None:
    assert conversation({"instruction": "hello", "output": "hi", **extra}).messages == (USER, ANSWER)


def test_the_columns_of_dolly_are_known() -> None:
    row = {"instruction": "add", "context": "1 2", "response": "3", "category": "maths"}
    record = conversation(row)
    assert record.messages == (Message(Role.USER, "add\n1 2"), Message(Role.ASSISTANT, "3"))
    assert record.metadata == {"category": "maths"}
    assert describe(row, "alpaca") == (
        "alpaca: instruction, context as input, response as output; not trained on: category"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hello", "completion": "hi"},
        {"question": "hello", "answer": "hi"},
        {"input": "hello", "output": "hi"},
        {"query": "hello", "response": "hi"},
        {"problem": "hello", "solution": "hi"},
        {"prompt": [HELLO], "completion": [HI]},
        {"prompt": HELLO, "completion": HI},
        {"prompt": "hello", "completion": "hi", "label": True},
        {"prompt": None, "question": "hello", "completion": None, "answer": "hi"},
    ],
)
def test_prompt_and_completion(row: dict[str, Any]) -> None:
    assert detect_kind([row]) == "prompt_completion"
    assert conversation(row).messages == (USER, ANSWER)


def test_a_row_labelled_false_is_not_trained_on() -> None:
    for label in ("label", "kto_tag"):
        row = {"messages": [HELLO, HI], label: False}
        with pytest.raises(RowError) as caught:
            parse_row(row, "messages")
        assert caught.value.reason is Reason.LABELLED_UNDESIRABLE
        assert not Reason.LABELLED_UNDESIRABLE.is_fault


BAD = Message(Role.ASSISTANT, "go away")
GO_AWAY = {"role": "assistant", "content": "go away"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hello", "chosen": "hi", "rejected": "go away"},
        {"prompt": [HELLO], "chosen": [HI], "rejected": [GO_AWAY]},
        {"prompt": "hello", "chosen": [HELLO, HI], "rejected": [HELLO, GO_AWAY]},
        {"chosen": [HELLO, HI], "rejected": [HELLO, GO_AWAY]},
        {"messages": [HELLO], "chosen": HI, "rejected": GO_AWAY},
        {"instruction": "hello", "input": "", "chosen": "hi", "rejected": "go away"},
        {
            "conversations": [{"from": "human", "value": "hello"}],
            "chosen": {"from": "gpt", "value": "hi"},
            "rejected": {"from": "gpt", "value": "go away"},
        },
    ],
)
def test_preference_pairs(row: dict[str, Any]) -> None:
    assert detect_kind([row]) == "preference"
    assert pair(row) == PreferencePair((USER,), (ANSWER,), (BAD,))


def test_a_preference_pair_with_system_and_several_turns() -> None:
    row = {"chosen": [HELLO, HI, HELLO, HI], "rejected": [HELLO, HI, HELLO, GO_AWAY], "system": "be kind"}
    assert pair(row) == PreferencePair((SYSTEM, USER, ANSWER, USER), (ANSWER,), (BAD,))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "hello", "chosen": "hi", "rejected": "hi"}, Reason.SAME_ANSWERS),
        ({"chosen": "hi", "rejected": "go away"}, Reason.MISSING_COLUMN),
        ({"prompt": "hello", "chosen": "hi", "rejected": ""}, Reason.EMPTY_ANSWER),
        ({"prompt": "hello", "chosen": [HELLO], "rejected": "go away"}, Reason.NO_ANSWER),
        ({"prompt": "hello", "chosen": None, "rejected": "go away"}, Reason.WRONG_TYPE),
        ({"prompt": "hello", "rejected": "go away"}, Reason.MISSING_COLUMN),
    ],
)
def test_pairs_that_teach_nothing_are_refused(row: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(row, "preference")
    assert caught.value.reason is reason


def test_documents_keep_their_text_and_other_columns() -> None:
    record = parse_row({"text": " a\n", "url": "u"}, "text")
    assert record == Document(" a\n", metadata={"url": "u"})
    with pytest.raises(RowError):
        parse_row({"text": " \n"}, "text")


def test_columns_are_mapped_and_may_be_paths() -> None:
    row = {"q": "hello", "runs": [{"text": "no"}, {"text": "hi"}], "a.b": 1}
    record = conversation(row, prompt="q", completion="runs.1.text")
    assert record.messages == (USER, ANSWER)
    assert record.metadata == {"a.b": 1}
    with pytest.raises(RowError) as caught:
        conversation(row, "prompt_completion", prompt="q", completion="runs.2.text")
    assert caught.value.reason is Reason.MISSING_COLUMN
    assert conversation({"a.b": "hello", "c": "hi"}, prompt="a.b", completion="c").messages == (USER, ANSWER)


def test_a_mapped_column_wins_over_the_known_names() -> None:
    row = {"prompt": "other", "question": "hello", "completion": "hi"}
    assert conversation(row, prompt="question").messages == (USER, ANSWER)


def test_chosen_answers_can_be_trained_on_by_mapping_them() -> None:
    row = {"prompt": "hello", "chosen": "hi", "rejected": "go away"}
    assert conversation(row, "prompt_completion", completion="chosen").messages == (USER, ANSWER)
    turns = {"conversations": [{"from": "human", "value": "hello"}], "chosen": {"from": "gpt", "value": "hi"}}
    mapping = {"prompt": "conversations", "completion": "chosen"}
    assert conversation({**turns, "rejected": None}, "prompt_completion", **mapping).messages == (USER, ANSWER)


def test_the_kind_is_that_of_most_rows() -> None:
    chat, text = {"messages": [HELLO, HI]}, {"text": "x"}
    assert detect_kind([text, chat, chat, {}]) == "messages"
    with pytest.raises(RowError) as caught:
        detect_kind([{"foo": 1, "bar": 2}, {}])
    assert "foo, bar" in caught.value.cause


def test_errors_name_the_column_as_the_file_has_it() -> None:
    with pytest.raises(RowError, match="column 'response' is a number"):
        parse_row({"instruction": "a", "response": 3}, "alpaca")
    with pytest.raises(RowError, match="no column 'text'; the columns are body"):
        parse_row({"body": "a"}, "text")


@pytest.mark.parametrize("history", ["x", [["a"]], [["a", 1]], ["ab"], [None]])
def test_a_history_that_is_no_list_of_pairs_is_refused(history: Any) -> None:
    with pytest.raises(RowError) as caught:
        parse_row({"instruction": "a", "output": "b", "history": history}, "alpaca")
    assert caught.value.reason is Reason.WRONG_TYPE


def test_lists_stored_as_text_are_read() -> None:
    assert conversation({"messages": json.dumps([HELLO, HI])}).messages == (USER, ANSWER)
    with pytest.raises(RowError) as caught:
        parse_row({"messages": "[{"}, "messages")
    assert caught.value.reason is Reason.WRONG_TYPE


def test_ids_depend_on_what_is_said_and_on_nothing_else() -> None:
    one = parse_row({"messages": [HELLO, HI], "id": 1}, "messages", source="a")
    other = parse_row({"prompt": "hello", "completion": "hi"}, "prompt_completion", source="b")
    assert one.id == other.id
    assert one.id != parse_row({"prompt": "hello", "completion": "hi!"}, "prompt_completion").id
    assert one.id != conversation({"messages": [HELLO, {**HI, "weight": 0.5}]}).id
    assert one.id != conversation({"messages": [HELLO, HI], "tools": [TOOL]}).id


def test_a_row_error_survives_pickling() -> None:
    error = RowError(Reason.WRONG_TYPE, "a cause", mend="a mend")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert (type(copy), copy.reason, copy.cause, copy.mend) == (RowError, Reason.WRONG_TYPE, "a cause", "a mend")
