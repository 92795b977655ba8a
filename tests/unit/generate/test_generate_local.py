"""Generation: the same answers in any batch, the same samples from a seed, and text that streams whole characters."""

from __future__ import annotations

import random

import pytest
import torch

from tiny import FAMILIES, tiny_model, tiny_tokenizer
from tutelage.config.schema import LoraConfig
from tutelage.errors import ModelError
from tutelage.generate.local import IncrementalText, generate, sample_tokens, stream
from tutelage.generate.sampler import Sampling
from tutelage.model.adapters import add_lora
from tutelage.model.attention import NAME, register_attention

TOKENIZER = tiny_tokenizer()
STOPS = [2, *range(60, 70)]  # enough tokens that answers of random models stop at many different lengths


def prompts_of(count: int, longest: int = 20) -> list[list[int]]:
    chance = random.Random(0)
    return [[chance.randrange(3, 384) for _ in range(chance.randrange(1, longest))] for _ in range(count)]


PROMPTS = prompts_of(12)


@pytest.mark.parametrize("family", [*FAMILIES, "mamba"])
def test_greedy_answers_are_those_of_transformers_and_do_not_depend_on_the_batch(family: str) -> None:
    model = tiny_model(family)
    together = generate(model, TOKENIZER, PROMPTS, stop_ids=STOPS, max_new_tokens=16, batch_rows=8)
    backwards = generate(model, TOKENIZER, PROMPTS[::-1], stop_ids=STOPS, max_new_tokens=16, batch_rows=5)
    assert together == backwards[::-1]
    for prompt, answer in list(zip(PROMPTS, together, strict=True))[:4]:
        assert generate(model, TOKENIZER, [prompt], stop_ids=STOPS, max_new_tokens=16) == [answer]
        whole = model.generate(
            torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=STOPS, pad_token_id=0
        )
        new = whole[0, len(prompt) :].tolist()
        assert answer.stopped == (new[-1] in STOPS)
        assert list(answer.ids) == (new[:-1] if answer.stopped else new)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_training_with_attention_per_document_gives_the_same_answers(family: str) -> None:
    register_attention()
    settings = {"stop_ids": STOPS, "max_new_tokens": 12}
    expected = generate(tiny_model(family), TOKENIZER, PROMPTS, **settings)
    assert generate(tiny_model(family, attn_implementation=NAME), TOKENIZER, PROMPTS, **settings) == expected


def test_answers_stop_at_a_stop_token_or_at_the_limit_and_say_which() -> None:
    answers = generate(tiny_model("llama"), TOKENIZER, prompts_of(30), stop_ids=STOPS, max_new_tokens=24)
    assert {answer.stopped for answer in answers} == {True, False}
    for answer in answers:
        assert not set(answer.ids) & set(STOPS)
        assert answer.stopped or len(answer.ids) == 24
        assert answer.text == (TOKENIZER.decode(list(answer.ids)) if answer.ids else "")


def test_samples_depend_on_seed_and_prompt_number_and_not_on_the_batch() -> None:
    model = tiny_model("llama")
    sampling = Sampling(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=5)
    once = generate(model, TOKENIZER, PROMPTS, stop_ids=STOPS, sampling=sampling, batch_rows=32)
    assert generate(model, TOKENIZER, PROMPTS, stop_ids=STOPS, sampling=sampling, batch_rows=3) == once
    assert generate(model, TOKENIZER, PROMPTS, stop_ids=STOPS, sampling=sampling, seed=6) != once
    same_prompt = generate(model, TOKENIZER, [PROMPTS[0]] * 8, stop_ids=STOPS, sampling=sampling)
    assert len({answer.ids for answer in same_prompt}) > 4


def test_samples_follow_the_probabilities_that_temperature_and_top_p_leave() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[torch.tensor([2, 0, 3, 1])]  # not in order
    chance_B = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000

    def shares(temperature: float, top_p: float) -> list[float]:
        tokens = sample_tokens(logits.expand(1000, 4), chance_B, temperature, top_p)
        return [float((tokens == token).double().mean()) for token in (1, 3, 0, 2)]  # likeliest first

    assert shares(1.0, 1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=1e-3)
    assert shares(1.0, 0.6) == pytest.approx([0.625, 0.375, 0, 0], abs=1e-3)  # 0.5 alone does not reach 0.6
    assert shares(1.0, 0.4) == pytest.approx([1, 0, 0, 0])
    squared = torch.tensor([0.5, 0.3, 0.15, 0.05]) ** 2
    assert shares(0.5, 1.0) == pytest.approx((squared / squared.sum()).tolist(), abs=1e-3)


def test_a_chance_just_below_one_still_chooses_a_kept_token() -> None:
    logits_BV = torch.zeros(1, 5)
    nearly_one = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    assert int(sample_tokens(logits_BV, nearly_one, 1.0, 0.39)) in (0, 1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streamed_pieces_join_to_the_generated_text(temperature: float) -> None:
    model = tiny_model("llama")
    for prompt in PROMPTS[:6]:
        (answer,) = generate(model, TOKENIZER, [prompt], stop_ids=STOPS, max_new_tokens=20, temperature=temperature)
        pieces = list(stream(model, TOKENIZER, prompt, stop_ids=STOPS, max_new_tokens=20, temperature=temperature))
        assert "".join(pieces) == answer.text
        assert all(pieces)


def test_a_character_of_several_tokens_is_handed_out_whole() -> None:
    text = IncrementalText(TOKENIZER)
    ids = TOKENIZER("née 🙂 日本", add_special_tokens=False).input_ids
    pieces = [text.add(token) for token in ids]
    assert len(ids) > len("née 🙂 日本")
    assert "".join(pieces) == "née 🙂 日本"
    assert not any("\ufffd" in piece for piece in pieces)
    assert text.rest() == ""
    half = IncrementalText(TOKENIZER)
    assert half.add(TOKENIZER("🙂", add_special_tokens=False).input_ids[0]) == ""
    assert "\ufffd" in half.rest()


def test_the_models_mode_and_gradients_are_as_before() -> None:
    model = tiny_model("gpt2").train()  # with dropout
    first = generate(model, TOKENIZER, PROMPTS[:2], stop_ids=STOPS, max_new_tokens=8)
    assert model.training
    assert generate(model, TOKENIZER, PROMPTS[:2], stop_ids=STOPS, max_new_tokens=8) == first
    pieces = stream(model, TOKENIZER, PROMPTS[0], stop_ids=[], max_new_tokens=8)
    next(pieces)
    assert model.training
    assert torch.is_grad_enabled()
    assert model(torch.tensor([[3]])).logits.requires_grad


def test_an_adapted_model_answers() -> None:
    model = tiny_model("llama")
    plain = generate(model, TOKENIZER, PROMPTS, stop_ids=STOPS, max_new_tokens=8)
    adapted = add_lora(model, LoraConfig(rank=2))
    assert generate(adapted, TOKENIZER, PROMPTS, stop_ids=STOPS, max_new_tokens=8) == plain


def test_answers_end_where_the_context_ends() -> None:
    model = tiny_model("gpt2", max_position_embeddings=16)
    prompts = [[5] * 10, [6] * 3, [7] * 14]
    answers = generate(model, TOKENIZER, prompts, stop_ids=[], max_new_tokens=11)
    assert [len(answer.ids) for answer in answers] == [6, 11, 2]
    assert not any(answer.stopped for answer in answers)
    assert answers == [generate(model, TOKENIZER, [p], stop_ids=[], max_new_tokens=11)[0] for p in prompts]
    assert "".join(stream(model, TOKENIZER, prompts[0], stop_ids=[], max_new_tokens=50)) == answers[0].text
    with pytest.raises(ModelError, match="holds 16"):
        generate(model, TOKENIZER, [[5], [5] * 16], stop_ids=[])


def test_empty_prompts_and_settings_without_meaning_are_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="prompt 1 is empty"):
        generate(model, TOKENIZER, [[5], []], stop_ids=[])
    for settings in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match="got"):
            Sampling(**settings)
    assert generate(model, TOKENIZER, [], stop_ids=[]) == []
