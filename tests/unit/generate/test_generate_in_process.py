"""The model in this process answers requests: each by its own seed, whatever it shares a batch with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tiny import tiny_folder
from tutelage.chat.template import named_template
from tutelage.data.conversation import Message, Role
from tutelage.errors import ModelError
from tutelage.generate.in_process import LocalSampler
from tutelage.generate.journal import Journal, State
from tutelage.generate.local import generate, log_probability_of, sample_tokens
from tutelage.generate.sampler import Sampling

CPU = torch.device("cpu")
CHATML = named_template("chatml").source
SAMPLING = Sampling(max_new_tokens=6, temperature=1.0, top_p=0.9)


def sampler_of(folder: Path, batch_rows: int = 64) -> LocalSampler:
    return LocalSampler(str(folder), SAMPLING, device=CPU, batch_rows=batch_rows)


def test_answers_do_not_depend_on_the_batch_and_are_kept(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", chat_template=CHATML)
    texts = {}
    for rows in (1, 7):
        sampler = sampler_of(folder, rows)
        asked = [
            sampler.request([Message(Role.USER, "word " * (seed % 3 + 1))], seed=10**9 + seed) for seed in range(9)
        ]
        with Journal(tmp_path / f"{rows}", sampler) as journal:
            outcomes = journal.ask(asked)
        texts[rows] = {key: outcome.reply.text for key, outcome in outcomes.items() if outcome.reply}
        with Journal(tmp_path / f"{rows}", sampler_of(tmp_path / "m")) as journal:
            assert journal.ask(asked, offline=True) == outcomes
    assert texts[1] == texts[7]
    assert len(set(texts[1].values())) > 5


def test_weights_that_were_trained_on_are_another_model(tmp_path: Path) -> None:
    message = [Message(Role.USER, "x")]
    keys = {
        sampler_of(tiny_folder(tmp_path / str(seed), seed=seed, chat_template=CHATML)).request(message, seed=1).key
        for seed in range(2)
    }
    assert len(keys) == 2


def test_a_prompt_that_fills_the_context_is_rejected_alone(tmp_path: Path) -> None:
    sampler = sampler_of(tiny_folder(tmp_path / "m", chat_template=CHATML, max_position_embeddings=64))
    requests = [sampler.request([Message(Role.USER, "word " * count)], seed=1) for count in (1, 80)]
    with Journal(tmp_path / "j", sampler) as journal:
        outcomes = journal.ask(requests)
    assert [outcomes[request.key].state for request in requests] == [State.ACCEPTED, State.REJECTED]
    assert "fills the model's context" in str(outcomes[requests[1].key].reason)


def test_a_model_without_a_chat_template_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no chat template"):
        sampler_of(tiny_folder(tmp_path / "m"))


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.6)])
def test_the_probability_of_a_token_is_how_often_it_is_sampled(temperature: float, top_p: float) -> None:
    logits_BV = torch.tensor([[2.0, 1.0, 0.5, -1.0]])
    chance_B = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    drawn = sample_tokens(logits_BV.expand(4000, -1), chance_B, temperature, top_p)
    for token in drawn.unique():
        share = float((drawn == token).double().mean())
        told = float(log_probability_of(logits_BV, token[None], temperature, top_p).exp())
        assert told == pytest.approx(share, abs=5e-4)


def test_the_probability_of_an_answer_is_that_of_its_tokens(tmp_path: Path) -> None:
    sampler = sampler_of(tiny_folder(tmp_path / "m", chat_template=CHATML))
    model, prompt = sampler._model, [1, 5, 9]
    (said,) = generate(
        model, sampler._renderer.tokenizer, [prompt], stop_ids=[2], sampling=SAMPLING, draws=[4], log_probabilities=True
    )
    ids = [*said.ids, 2] if said.stopped else list(said.ids)
    with torch.inference_mode():
        logits_TV = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].float()
    own = log_probability_of(logits_TV[len(prompt) - 1 : -1], torch.tensor(ids), SAMPLING.temperature, SAMPLING.top_p)
    assert said.log_probability == pytest.approx(float(own.sum()), abs=1e-4)
