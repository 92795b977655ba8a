"""For any conversation: the ids are transformers', the mask is the assistant's words, and no user can forge a token."""

from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from chat_samples import GOLDEN, TOKENIZERS, tokenizer_of
from tutelage.chat.render import Renderer
from tutelage.chat.template import load_template, special_tokens_needed
from tutelage.chat.view import template_messages
from tutelage.data.conversation import Conversation, Message, Role

OWN = ("merged_system", "next_header_stops", "numbered_loop", "generation_tag")
MARKERS = ("<|im_start|>", "<|im_end|>", "<|end|>", "</turn>", "<|user|>", "<|assistant|>", "[END]", "</s>", "<think>")
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\ue0f8\ue0f9"), max_size=20)
WORDS = TEXT.filter(lambda text: text.strip() and not any(sign in text for sign in "<[|"))
TYPED = st.lists(st.one_of(TEXT, st.sampled_from(MARKERS)), min_size=1, max_size=6).map("".join)


@cache
def renderer_of(template_name: str, tokenizer_name: str) -> Renderer:
    path = GOLDEN / "own" / f"{template_name}.jinja"
    template = load_template(path if path.is_file() else template_name)
    tokenizer = tokenizer_of(tokenizer_name, MARKERS[:-1], MARKERS[-1:], eos="<|im_end|>")
    return Renderer(tokenizer.with_special_tokens(special_tokens_needed(template, tokenizer)), template)


RENDERERS = st.builds(renderer_of, st.sampled_from(("chatml", "llama3", "plain", *OWN)), st.sampled_from(TOKENIZERS))


def chats(words: st.SearchStrategy[str], answers: st.SearchStrategy[str]) -> st.SearchStrategy[Conversation]:
    turn = st.tuples(
        words.map(lambda text: Message(Role.USER, text)), answers.map(lambda text: Message(Role.ASSISTANT, text))
    )
    return st.lists(turn, min_size=1, max_size=3).map(
        lambda turns: Conversation(tuple(m for turn in turns for m in turn))
    )


@settings(max_examples=80, deadline=None)
@given(renderer=RENDERERS, record=chats(WORDS, WORDS))
def test_ids_equal_apply_chat_template_and_the_mask_is_the_answers(renderer: Renderer, record: Conversation) -> None:
    documents = renderer.inspect(record)
    tokenizer = renderer.tokenizer
    expected = tokenizer.hf.apply_chat_template(
        template_messages(record.messages), chat_template=renderer.dialect_for().template.source
    )
    assert documents[-1].rendered.ids.tolist() == expected["input_ids"]
    answers = [message.content.strip() for message in record.messages if message.role is Role.ASSISTANT]
    found: list[str] = []
    for document in documents:
        text, rendered, tokens = document.draft.render.text, document.rendered, document.encoded
        for turn in document.draft.turns:
            inside = (tokens.ends > turn.start) & (tokens.starts < turn.end)
            own = rendered.weights != 0
            assert (own & inside).sum() == inside.sum()
            found.append(text[turn.start : turn.stop].strip())
        covered = [(tokens.ends > turn.start) & (tokens.starts < turn.end) for turn in document.draft.turns]
        assert ((rendered.weights != 0) == sum(covered).astype(bool)).all()
    assert found == answers


@settings(max_examples=80, deadline=None)
@given(renderer=RENDERERS, record=chats(TYPED.filter(str.strip), WORDS))
def test_no_text_of_a_user_becomes_a_control_token(renderer: Renderer, record: Conversation) -> None:
    harmless = Conversation(tuple(Message(m.role, "x" if m.role is Role.USER else m.content) for m in record.messages))
    is_control = renderer.tokenizer.is_control
    for typed, plain in zip(renderer.render(record), renderer.render(harmless), strict=True):
        assert typed.ids[is_control[typed.ids]].tolist() == plain.ids[is_control[plain.ids]].tolist()
        assert typed.supervised_tokens == plain.supervised_tokens


@settings(max_examples=60, deadline=None)
@given(renderer=RENDERERS, record=chats(TYPED.filter(str.strip), TYPED.filter(str.strip)))
def test_typed_text_is_neither_lost_nor_changed(renderer: Renderer, record: Conversation) -> None:
    for document in renderer.inspect(record):
        tokens, text = document.encoded, document.draft.render.text
        covered = set()
        for start, end in zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True):
            covered |= set(range(start, end))
        assert not [at for at, letter in enumerate(text) if at not in covered and not letter.isspace()]
        assert (tokens.starts[1:] >= tokens.starts[:-1]).all()
