"""What a run gives up to fit into memory: nothing while there is room, then the cheapest first, the same steps in any case."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sample_documents import random_documents
from tiny import tiny_model
from tutelage.config.schema import Checkpointing, Config, Layout, Precision
from tutelage.data.mixture import Mixture, MixtureSource
from tutelage.errors import ConfigError
from tutelage.files.rundir import RunDir
from tutelage.model.attention import NAME, register_attention
from tutelage.train.fitting import FILLED, KINDS, Began, Fit, fit_memory, largest_batch, predict_step, ways_to_need_less
from tutelage.train.memory import Part
from tutelage.train.plan import plan_run
from tutelage.train.step import StepSettings

DOCUMENTS = random_documents([40 + (7 * i) % 60 for i in range(30)])


class Case:
    """A tiny Llama and a plan over thirty documents."""

    def __init__(self, layout: Layout = Layout.PACKED, **train: Any) -> None:
        register_attention()
        self.model = tiny_model("llama", num_hidden_layers=4, hidden_size=48).train()
        self.model.set_attn_implementation(NAME)
        train = {"batch_tokens": 1024, "packing": layout.value, **train}
        self.config = Config.model_validate({"data": {"max_tokens": 512}, "train": train})
        lengths = np.array([len(document) for document in DOCUMENTS])
        mixture = Mixture([MixtureSource("rows", len(DOCUMENTS), lengths, lengths)], seed=0)
        self.prepared: Any = SimpleNamespace(documents=DOCUMENTS, mixture=mixture)
        self.plan = plan_run(DOCUMENTS, mixture, self.config)
        self.settings = StepSettings(
            layout=layout,
            micro_tokens=self.plan.slot_tokens,
            seed=0,
            precision=Precision.FP32,
            device=torch.device("cpu"),
            largest_grad_norm=1.0,
            neftune_alpha=0.0,
            sources=("rows",),
        )

    def fit(self, free: float, began: Began | None = None) -> Fit:
        return fit_memory(self.config, self.plan, self.prepared, self.model, self.settings, free, began=began)

    def needs(self, kind: Checkpointing) -> float:
        """Free bytes at which `kind` just fits."""
        fit = Case(gradient_checkpointing=kind.value).fit(math.inf)
        weights = fit.bytes_by_part[Part.WEIGHTS] + fit.bytes_by_part[Part.FROZEN]
        assert fit.predicted_bytes is not None
        return (fit.predicted_bytes - weights) / FILLED["cpu"]


def test_with_room_enough_nothing_is_given_up() -> None:
    case = Case()
    fit = case.fit(math.inf)
    assert (fit.plan, fit.checkpointing) == (case.plan, Checkpointing.NONE)
    assert not case.model.is_gradient_checkpointing
    assert fit.reason.endswith("which fits")


def test_the_kinds_of_checkpointing_need_less_and_less() -> None:
    none, selective, layers = (Case().needs(kind) for kind in KINDS)
    assert none > selective > layers


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_kind_that_fits_is_taken(kind: Checkpointing) -> None:
    case = Case()
    fit = case.fit(case.needs(kind) + 1)
    assert (fit.plan, fit.checkpointing) == (case.plan, kind)
    assert case.model.is_gradient_checkpointing == (kind is not Checkpointing.NONE)
    assert ("would not fit" in fit.reason) == (kind is not Checkpointing.NONE)


def test_with_lora_selective_would_gain_nothing_and_is_passed_over() -> None:
    case = Case(method="lora")
    assert case.fit(case.needs(Checkpointing.SELECTIVE) + 1).checkpointing is Checkpointing.LAYERS


def test_then_passes_become_smaller_and_the_documents_of_each_step_stay() -> None:
    case = Case()
    fit = case.fit(case.needs(Checkpointing.LAYERS) * 0.75)
    assert fit.checkpointing is Checkpointing.LAYERS
    longest = max(map(len, DOCUMENTS))
    assert longest <= fit.plan.slot_tokens < case.plan.slot_tokens
    for got, want in zip(fit.plan.steps, case.plan.steps, strict=True):
        assert sorted(got.documents) == sorted(want.documents)
        assert got.weight_sum == want.weight_sum
        assert max(sum(len(DOCUMENTS[i]) for i in pack) for pack in got.packs) <= fit.plan.slot_tokens


@pytest.mark.parametrize(
    ("kind", "is_named"), [("none", True), ("selective", True), ("layers", False), ("offload", False)]
)
def test_no_mend_would_need_more_than_what_was_asked_for(kind: str, is_named: bool) -> None:
    config = Case(gradient_checkpointing=kind).config
    assert ("train.gradient_checkpointing=auto" in ways_to_need_less(config)) is is_named


def test_what_compiled_layers_cannot_do_is_not_chosen_for_them() -> None:
    limit = Case().needs(Checkpointing.SELECTIVE)
    assert Case().fit(limit).checkpointing is Checkpointing.SELECTIVE
    assert Case(compile=True).fit(limit).checkpointing is Checkpointing.LAYERS


def test_passes_that_were_asked_for_stay_as_they_are_and_the_mend_says_so() -> None:
    case = Case(micro_tokens=512, gradient_checkpointing="none")
    with pytest.raises(ConfigError, match="fits into memory") as error:
        case.fit(case.needs(Checkpointing.LAYERS) * 0.75)
    assert "train.gradient_checkpointing=auto" in str(error.value.mend)
    assert "train.micro_tokens" in str(error.value.mend)


def test_what_fits_no_way_is_an_error_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match="no step of this run fits into memory") as error:
        Case().fit(1000)
    assert "train.method=lora" in str(error.value.mend)


def test_a_run_that_goes_on_keeps_what_it_began_with(tmp_path: Path) -> None:
    case = Case()
    run = RunDir(tmp_path)
    assert Began.of_run(run) is None
    run.plan.write_text(json.dumps({"checkpointing": {"name": "selective"}, "pack_tokens": 256}))
    fit = case.fit(1000, Began.of_run(run))
    assert (fit.checkpointing, fit.plan.slot_tokens) == (Checkpointing.SELECTIVE, 256)
    assert fit.reason == "as the run began" and fit.news is None


@pytest.mark.parametrize(("ran_out", "tokens"), [(512, 256), (256, 128), (150, 99), (100, 99)])
def test_passes_that_ran_out_of_memory_are_halved_down_to_the_longest_document(
    tmp_path: Path, ran_out: int, tokens: int
) -> None:
    case, run = Case(), RunDir(tmp_path)
    run.plan.write_text(json.dumps({"checkpointing": {"name": "none"}, "pack_tokens": ran_out}))
    run.out_of_memory.write_text(json.dumps({"micro_tokens": ran_out}))
    fit = case.fit(1000, Began.of_run(run))
    assert fit.plan.slot_tokens == tokens
    assert fit.news is not None and f"passes of {ran_out} tokens: from here on they have {tokens}" in fit.news
    assert [sorted(step.documents) for step in fit.plan.steps] == [sorted(step.documents) for step in case.plan.steps]
    run.plan.write_text(json.dumps({"checkpointing": {"name": "none"}, "pack_tokens": tokens}))
    assert case.fit(1000, Began.of_run(run)).plan.slot_tokens == tokens, "it goes on with passes that have not run out"


@pytest.mark.parametrize(("layout", "ran_out"), [(Layout.PACKED, 99), (Layout.PADDED, 64), (Layout.SINGLE, 512)])
def test_passes_that_cannot_be_smaller_end_the_run_with_what_would_need_less(layout: Layout, ran_out: int) -> None:
    with pytest.raises(ConfigError, match=r"the longest document has 99: no pass can be smaller") as error:
        Case(layout).fit(math.inf, Began(Checkpointing.LAYERS, 512, ran_out))
    assert "train.method=lora" in error.value.mend


def test_the_prediction_is_of_the_pass_with_most_tokens() -> None:
    case = Case()
    batch, several = largest_batch(case.plan, DOCUMENTS, case.settings)
    assert batch.num_tokens == max(
        sum(len(DOCUMENTS[i]) for i in pack) for step in case.plan.steps for pack in step.packs
    )
    assert several
    padded = Case(Layout.PADDED)
    rows, _ = largest_batch(padded.plan, DOCUMENTS, padded.settings)
    assert 0.75 * padded.plan.slot_tokens < rows.input_ids.numel() <= padded.plan.slot_tokens
    assert predict_step(padded.model, padded.plan, DOCUMENTS, padded.settings, padded.config.train).total > 0
