from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from tiny import tiny_tokenizer
from tutelage.chat.render import Renderer
from tutelage.chat.template import named_template
from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.config.schema import SampleConfig
from tutelage.data.conversation import Conversation, Document, Message, Role
from tutelage.train.sample import Prompt, choose_prompts, of_one_pass, write_samples

CHAT = Conversation((Message(Role.SYSTEM, "Be brief."), Message(Role.USER, "Who?"), Message(Role.ASSISTANT, "Mira.")))


def renderer() -> Renderer:
    return Renderer(ChatTokenizer(tiny_tokenizer()), named_template("plain"))


def text_of(ids: Sequence[int]) -> str:
    return renderer().tokenizer.decode(ids)


def test_prompts_of_the_configuration_come_before_those_of_the_data() -> None:
    (prompt,) = choose_prompts(SampleConfig(prompts=["Hi"], system="Sing."), [CHAT], renderer(), context_tokens=512)
    assert text_of(prompt.ids) == "<|system|>\nSing.<|end_of_text|>\n<|user|>\nHi<|end_of_text|>\n<|assistant|>\n"


def test_a_prompt_of_the_data_is_what_the_first_answer_answers() -> None:
    (prompt,) = choose_prompts(SampleConfig(), [CHAT], renderer(), context_tokens=512)
    assert [message.role for message in prompt.messages] == [Role.SYSTEM, Role.USER]
    assert text_of(prompt.ids).endswith("<|assistant|>\n")


def test_prompts_that_leave_no_room_for_an_answer_are_passed_over() -> None:
    long = Conversation((Message(Role.USER, "word " * 200), Message(Role.ASSISTANT, "Yes.")))
    config = SampleConfig(max_new_tokens=16, count=2)
    prompts = choose_prompts(config, [long, CHAT, long, CHAT, CHAT], renderer(), context_tokens=150)
    assert [prompt.messages for prompt in prompts] == [CHAT.messages[:2]] * 2


def test_a_text_is_to_be_continued_from_its_first_words() -> None:
    text = Document("One two three four five six seven eight.")
    (prompt,) = choose_prompts(SampleConfig(), [text], renderer(), context_tokens=512)
    assert text_of(prompt.ids) == "<bos>One two three four five six"


def test_answers_are_given_in_evaluation_mode_and_training_goes_on() -> None:
    modes: list[bool] = []

    def generate(model: torch.nn.Module, tokenizer: Any, prompts: Any, /, **settings: Any) -> list[Any]:
        modes.append(model.training)
        assert settings["max_new_tokens"] == 3
        return [SimpleNamespace(ids=(5, 6), text="yes", stopped=True) for _ in prompts]

    model = torch.nn.Linear(1, 1).train()
    prompts = choose_prompts(SampleConfig(), [CHAT], renderer(), context_tokens=512)
    (sample,) = write_samples(model, prompts, generate, renderer(), step=4, max_new_tokens=3)
    assert modes == [False] and model.training
    assert sample.to_json() == {
        "step": 4,
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}],
        "answer": "yes",
        "stopped": True,
        "num_tokens": 2,
    }


def test_prompts_are_answered_together_as_long_as_their_rows_fit_and_a_longer_one_alone() -> None:
    prompts = [Prompt((), tuple(range(length))) for length in (10, 20, 10, 90, 10, 10)]
    groups = [[len(prompt.ids) for prompt in group] for group in of_one_pass(prompts, 10, 60)]
    assert groups == [[10, 20], [10], [90], [10, 10]]
    assert list(of_one_pass([], 10, 60)) == []
