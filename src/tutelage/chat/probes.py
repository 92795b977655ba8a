"""Small synthetic conversations of the shapes that a data set has, to try a template on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.data.conversation import Conversation, Message, Role, ToolCall

CALL_ID = "call00001"  # nine letters and digits: some templates insist on it
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look up a word.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "description": "The word."}},
            "required": ["word"],
        },
    },
}


@dataclass(frozen=True, order=True)
class Shape:
    """What a conversation has beside one question and its answer."""

    system: bool = False
    several_turns: bool = False
    reasoning: bool = False
    tools: bool = False

    def __str__(self) -> str:
        names = [name.replace("_", " ") for name, present in vars(self).items() if present]
        return ", ".join(names) or "one question"


def shape_of(conversation: Conversation) -> Shape:
    """Return the shape of one conversation."""
    messages = conversation.messages
    return Shape(
        system=any(message.role is Role.SYSTEM for message in messages),
        several_turns=sum(message.role is Role.USER for message in messages) > 1,
        reasoning=any(message.reasoning for message in messages),
        tools=any(message.tool_calls for message in messages),
    )


def shapes_of(conversations: Sequence[Conversation]) -> list[Shape]:
    """Return the shapes that occur, the plain one if there is no conversation."""
    return sorted({shape_of(conversation) for conversation in conversations}) or [Shape()]


def synthetic(shape: Shape, *, typed: str = "") -> Conversation:
    """Return a conversation of this shape; `typed` is added to what everybody but the assistant says."""
    heard = f" {typed}" if typed else ""
    messages = [Message(Role.SYSTEM, f"Answer briefly.{heard}")] if shape.system else []
    for number in range(2 if shape.several_turns else 1):
        messages.append(Message(Role.USER, f"Question {number + 1}?{heard}"))
        thought = f"Thought {number + 1}." if shape.reasoning else None
        if shape.tools:
            call = ToolCall("look_up", {"word": f"word{number + 1}"}, CALL_ID)
            messages.append(Message(Role.ASSISTANT, tool_calls=(call,), reasoning=thought))
            messages.append(Message(Role.TOOL, f"Result {number + 1}.{heard}", name="look_up", tool_call_id=CALL_ID))
        messages.append(Message(Role.ASSISTANT, f"Reply {number + 1}.", reasoning=thought))
    return Conversation(tuple(messages), (TOOL,) if shape.tools else (), source=f"{shape}")
