"""`tutelage train` and `tutelage pretrain` from the command line to what they leave behind, on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tiny import tiny_config, tiny_folder, tiny_tokenizer
from tutelage.cli.edge import guard
from tutelage.cli.main import app
from tutelage.files import jsonl

METRICS = {
    *("step", "epoch", "loss", "loss_sum", "weight_sum", "tokens", "supervised_tokens", "documents", "packs", "fill"),
    *("seconds", "learning_rate", "grad_norm", "per_source", "per_slice", "replay_weight"),
}
TRADES = ("baker", "miller", "weaver", "potter", "smith", "mason", "tailor")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small models and small data."""
    folder = tmp_path_factory.mktemp("commands")
    for family in ("llama", "mamba"):
        tiny_folder(folder / family, family)
    tiny_tokenizer().save_pretrained(folder / "architecture")
    tiny_config("llama_tied").save_pretrained(folder / "architecture")
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"Who is number {i}?"},
                {"role": "assistant", "content": f"The {who}."},
            ]
        }
        for i in range(48)
        for who in [TRADES[i % len(TRADES)]]
    ]
    write_rows(folder / "chats.jsonl", chats)
    write_rows(
        folder / "texts.jsonl", [{"text": f"The {TRADES[i % 7]} sells {i} loaves in the morning."} for i in range(40)]
    )
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sft(place: Path, run: Path, *more: str, model: str = "llama") -> list[str]:
    """Return the words of a short fine-tuning run."""
    return [
        "train",
        f"model.path={place / model}",
        "model.template=chatml",
        f"data.train.0.path={place / 'chats.jsonl'}",
        "data.held_out_fraction=0.15",
        "data.max_tokens=128",
        "train.batch_tokens=512",
        "train.learning_rate=5e-3",
        "train.epochs=3",
        "train.threads=1",
        "sample.count=2",
        "sample.max_new_tokens=8",
        f"run.dir={run}",
        *more,
    ]


def tutelage(words: list[str]) -> int:
    """Run the command line in this process and return its exit code."""
    return guard(partial(app, words))


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in jsonl.read(run / "metrics.jsonl")]


def check_named(run: Path, name: str) -> dict[str, Any]:
    checks: list[dict[str, Any]] = json.loads((run / "receipt.json").read_text())["checks"]
    return next(check for check in checks if check["name"] == name)


def test_full_fine_tuning_leaves_a_plain_model_and_a_whole_run(place: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = tmp_path / "run"
    assert tutelage(sft(place, run, "train.epochs=10", "train.learning_rate=1e-2")) == 0
    assert losses(run)[-1] < 0.5 * losses(run)[0]
    evaluations = jsonl.read(run / "evals.jsonl")
    assert evaluations[0]["step"] == 0 and evaluations[-1]["loss"] < 0.5 * evaluations[0]["loss"]
    assert all(line.keys() >= METRICS for line in jsonl.read(run / "metrics.jsonl"))
    receipt = json.loads((run / "receipt.json").read_text())["checks"]
    assert {check["law"] for check in receipt} >= {"mask", "isolation", "layout", "conservation", "replay"}
    assert all(check["passed"] for check in receipt)
    for name in (
        "config.yaml",
        "origins.json",
        "environment.json",
        "ledger.json",
        "plan.json",
        "masks.json",
        "report.html",
    ):
        assert (run / name).stat().st_size > 0, name
    assert json.loads((run / "run.json").read_text())["status"] == "finished"

    model = AutoModelForCausalLM.from_pretrained(run / "final")
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who is number 3?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(ids).startswith("The ") and tokenizer.decode(ids).endswith("<|im_end|>")


def test_a_run_on_documents_from_the_cache_is_the_same_run(place: Path, tmp_path: Path, capsys: Any) -> None:
    printed = {}
    for name in ("anew", "kept"):
        words = sft(place, tmp_path / name, "train.max_steps=3", f"data.cache={tmp_path / 'cache'}")
        assert tutelage(words) == 0
        printed[name] = " ".join(capsys.readouterr().err.split())
    assert "made anew" in printed["anew"] and "from the cache" not in printed["anew"]
    assert "prepared documents: from the cache" in printed["kept"] and "48 documents" in printed["kept"]
    files = ("ledger.json", "plan.json", "masks.json", "samples.jsonl", "final/model.safetensors")
    for file in files:
        assert (tmp_path / "kept" / file).read_bytes() == (tmp_path / "anew" / file).read_bytes(), file
    quarantines = [tmp_path / name / "quarantine.jsonl" for name in ("anew", "kept")]
    assert quarantines[0].read_bytes() == quarantines[1].read_bytes()


def test_samples_show_the_same_prompts_before_and_after(place: Path, tmp_path: Path, capsys: Any) -> None:
    assert (
        tutelage(
            sft(place, tmp_path / "run", 'sample.prompts=["Who is number 3?"]', "sample.count=4", "train.max_steps=2")
        )
        == 0
    )
    samples = jsonl.read(tmp_path / "run" / "samples.jsonl")
    assert {sample["step"] for sample in samples} == {0, 1, 2}
    assert {sample["prompt"][-1]["content"] for sample in samples} == {"Who is number 3?"}
    printed = capsys.readouterr().out
    assert "before" in printed and "after" in printed and str(tmp_path / "run" / "final") in printed


def test_lora_leaves_an_adapter_that_peft_loads(place: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    run = tmp_path / "run"
    assert tutelage(sft(place, run, "train.method=lora", "train.lora.rank=4", "train.learning_rate=2e-2")) == 0
    assert losses(run)[-1] < 0.8 * losses(run)[0]
    plan = json.loads((run / "plan.json").read_text())
    assert plan["trainable_parameters"] < 0.3 * plan["parameters"]
    assert (run / "final" / "adapter_config.json").is_file() and not (run / "final" / "model.safetensors").exists()
    model = AutoPeftModelForCausalLM.from_pretrained(run / "final")
    assert torch.isfinite(model(torch.tensor([[3, 4, 5]])).logits).all()


def test_lora_in_bf16_keeps_half_size_matrices_and_merges_into_the_base_as_it_is_stored(
    place: Path, tmp_path: Path
) -> None:
    run, merged = tmp_path / "run", tmp_path / "merged"
    words = ["train.method=lora", "train.lora.rank=4", "train.learning_rate=2e-2"]
    assert tutelage(sft(place, run, *words, "train.precision=bf16")) == 0
    assert losses(run)[-1] < 0.8 * losses(run)[0]
    assert jsonl.read(run / "samples.jsonl")
    plain = tmp_path / "plain"
    assert tutelage(sft(place, plain, *words, "train.precision=fp32", "train.max_steps=1", "sample.count=0")) == 0
    weights = [
        json.loads((folder / "plan.json").read_text())["memory_bytes"]["frozen_weights"] for folder in (run, plain)
    ]
    assert weights[0] < 0.85 * weights[1]
    assert tutelage(["merge", str(run), str(merged)]) == 0
    base, whole = (load_file(folder / "model.safetensors") for folder in (place / "llama", merged))
    adapter = load_file(run / "final" / "adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    a_RI, b_OR = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    assert a_RI.dtype == torch.float32
    # alpha is 32 and the rank 4; a base rounded to bf16 on the way would be off by a part in 256
    assert torch.allclose(whole[f"{name}.weight"], base[f"{name}.weight"] + 32 / 4 * b_OR @ a_RI, rtol=1e-5, atol=1e-6)


def test_an_adapter_is_not_tuned_in_full(place: Path, tmp_path: Path, capsys: Any) -> None:
    lora = sft(place, tmp_path / "run", "train.method=lora", "train.max_steps=1", "sample.count=0")
    assert tutelage(lora) == 0
    again = sft(place, tmp_path / "again", f"model.path={tmp_path / 'run' / 'final'}")
    assert tutelage(again) == 2
    assert "train.method=lora" in capsys.readouterr().err


def test_layouts_and_micro_batches_train_alike(place: Path, tmp_path: Path) -> None:
    courses = {}
    for name, more in {
        "packed": ["train.packing=true"],
        "padded": ["train.packing=false"],
        "single": ["train.packing=single"],
        "small": ["train.micro_tokens=64", "data.max_tokens=64", "train.batch_tokens=256"],
        "large": ["train.micro_tokens=256", "data.max_tokens=64", "train.batch_tokens=256"],
    }.items():
        assert tutelage(sft(place, tmp_path / name, "sample.count=0", "train.epochs=1", *more)) == 0
        courses[name] = losses(tmp_path / name)
    assert courses["padded"] == pytest.approx(courses["packed"], rel=1e-4)
    assert courses["single"] == pytest.approx(courses["packed"], rel=1e-4)
    assert courses["large"] == pytest.approx(courses["small"], rel=1e-4)


def test_replay_gets_its_share_of_the_trained_tokens(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    replay = [f"data.train.1.path={place / 'texts.jsonl'}", "data.train.1.kind=text", "data.train.1.share=0.3"]
    assert tutelage(sft(place, run, *replay)) == 0
    shares = {share["source"]: share for share in json.loads((run / "plan.json").read_text())["shares"]}
    assert shares["texts"]["asked"] == 0.3 and shares["texts"]["realised"] == pytest.approx(0.3, abs=0.03)
    sums = {"chats": 0.0, "texts": 0.0}
    for line in jsonl.read(run / "metrics.jsonl"):
        for name, (_, weight) in line["per_source"].items():
            sums[name] += weight
    assert sums["texts"] / sum(sums.values()) == pytest.approx(shares["texts"]["realised"])


def test_slices_of_conversations_add_up_to_their_source_at_every_step_and_evaluation(
    place: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    replay = [f"data.train.1.path={place / 'texts.jsonl'}", "data.train.1.kind=text", "data.train.1.share=0.3"]
    assert tutelage(sft(place, run, *replay, "data.held_out_fraction=0.2")) == 0
    for line in jsonl.read(run / "metrics.jsonl"):
        parts = [line["per_slice"].get(name, (0.0, 0.0)) for name in ("answer", "reasoning", "tool call", "stop token")]
        assert [sum(column) for column in zip(*parts, strict=True)] == pytest.approx(line["per_source"]["chats"])
        assert line["per_slice"]["turn 1"] == pytest.approx(line["per_source"]["chats"])
    for line in jsonl.read(run / "evals.jsonl"):
        parts = [line["per_slice"][name] for name in ("answer", "stop token")]
        for unit, whole in line["per_source"]["chats"].items():
            assert sum(part[unit] for part in parts) == pytest.approx(whole)
        assert line["per_slice"]["first token"]["tokens"] == line["per_slice"]["stop token"]["tokens"]
    page = (run / "report.html").read_text()
    assert "Training loss per part of an answer" in page and "Held-out loss per part of an answer" in page
    assert "Training loss per turn" not in page  # there is but one


def test_rows_without_a_trained_token_are_dropped_and_told(place: Path, tmp_path: Path) -> None:
    silent = {
        "messages": [{"role": "user", "content": "Hush."}, {"role": "assistant", "content": "Yes.", "train": False}]
    }
    rows = jsonl.read(place / "chats.jsonl")
    write_rows(tmp_path / "mixed.jsonl", [*rows[:20], silent, *rows[20:]])
    run = tmp_path / "run"
    assert tutelage(sft(place, run, f"data.train.0.path={tmp_path / 'mixed.jsonl'}", "train.epochs=1")) == 0
    account = json.loads((run / "ledger.json").read_text())["sources"]["mixed"]
    assert account["rows"] == 49 and account["kept"] == 48 and account["dropped"] == {"no token to train": 1}
    assert account["tokens"]["planned"] == account["tokens"]["loss"]
    assert jsonl.read(run / "quarantine.jsonl")[0]["line"] == 21


def test_early_stopping_keeps_the_best_weights(place: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = tmp_path / "run"
    hopeless = ["train.learning_rate=0.5", "train.warmup_fraction=0", "train.schedule=constant", "train.epochs=30"]
    stop = ["train.evaluate_every_steps=1", "train.early_stopping.patience=3"]
    assert tutelage(sft(place, run, *hopeless, *stop)) == 0
    evaluations = jsonl.read(run / "evals.jsonl")
    best = min(evaluations[1:], key=lambda line: line["loss"])
    assert evaluations[-1]["step"] == best["step"] + 3 == len(losses(run)) < 30
    weights = load_file(run / "checkpoints" / f"best-step-{best['step']:06d}" / "weights.safetensors")
    final = load_file(run / "final" / "model.safetensors")
    assert all(torch.equal(final[name], weight) for name, weight in weights.items())


def test_checkpoints_are_written_at_the_asked_steps_and_only_the_newest_stay(place: Path, tmp_path: Path) -> None:
    more = [
        "train.checkpoint_every_steps=1",
        "train.keep_checkpoints=2",
        "train.max_steps=4",
        "data.held_out_fraction=0",
    ]
    assert tutelage(sft(place, tmp_path / "run", *more)) == 0
    folders = sorted(folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir())
    assert folders == ["step-000003", "step-000004"]


def test_pre_training_starts_from_chance_and_learns_the_text(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [
        "pretrain",
        f"model.path={place / 'architecture'}",
        f"data.train.0.path={place / 'texts.jsonl'}",
        "data.max_tokens=64",
        "train.batch_tokens=512",
        "train.learning_rate=1e-2",
        "train.epochs=6",
        "sample.max_new_tokens=8",
        f"run.dir={run}",
    ]
    assert tutelage(words) == 0
    assert losses(run)[0] > 5.0 and losses(run)[-1] < 0.7 * losses(run)[0]
    account = json.loads((run / "ledger.json").read_text())["sources"]["texts"]["tokens"]["train"]
    assert account["supervised"] == account["tokens"] - account["documents"]


def test_a_model_that_cannot_be_isolated_is_trained_padded_and_says_so(
    place: Path, tmp_path: Path, capsys: Any
) -> None:
    run = tmp_path / "run"
    assert tutelage(sft(place, run, "train.max_steps=2", model="mamba")) == 0
    assert json.loads((run / "plan.json").read_text())["layout"]["name"] == "padded"
    assert "does not keep the documents of a pack apart" in check_named(run, "one document a row")["detail"]
    assert "layout padded" in capsys.readouterr().err


def test_packing_by_name_is_refused_where_it_would_leak(place: Path, tmp_path: Path, capsys: Any) -> None:
    assert tutelage(sft(place, tmp_path / "run", "train.packing=true", model="mamba")) == 7
    assert "train.packing=auto" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_a_dry_run_shows_the_plan_and_leaves_nothing(place: Path, tmp_path: Path, capsys: Any) -> None:
    for method in ("full", "lora"):
        assert tutelage([*sft(place, tmp_path / "run", f"train.method={method}"), "--dry-run"]) == 0
        printed = capsys.readouterr().out
        assert all(word in printed for word in ("documents", "tokens", "packs", "steps", "memory (estimate)"))
        assert "train.learning_rate" in printed and "command line" in printed
        assert not (tmp_path / "run").exists()


def test_a_dry_run_plans_what_the_run_does(place: Path, tmp_path: Path, capsys: Any) -> None:
    assert tutelage([*sft(place, tmp_path / "run"), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert tutelage(sft(place, tmp_path / "run")) == 0
    assert (
        f" {len(losses(tmp_path / 'run'))} "
        in next(line for line in told.splitlines() if line.startswith("steps")) + " "
    )


def test_a_used_run_directory_is_not_overwritten(place: Path, tmp_path: Path) -> None:
    words = sft(place, tmp_path / "run", "train.max_steps=1", "sample.count=0")
    assert tutelage(words) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert tutelage(words) == 8
    assert tutelage([*words, "--resume"]) == 8
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["data.max_tokens=8"], 3, "data.too_long"),
        (["model.template=null"], 4, "model.template"),
        (["train.learning_rat=1"], 2, "learning_rate"),
        (["train.device=cuda"], 2, "train.device=cpu"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_mend(
    place: Path, tmp_path: Path, capsys: Any, more: list[str], code: int, said: str
) -> None:
    if "train.device=cuda" in more and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert tutelage(sft(place, tmp_path / "run", *more)) == code
    assert said in capsys.readouterr().err


def test_documents_longer_than_the_context_are_refused(place: Path, tmp_path: Path, capsys: Any) -> None:
    tiny_folder(tmp_path / "short", "llama", max_position_embeddings=8)
    words = sft(tmp_path, tmp_path / "run", f"data.train.0.path={place / 'chats.jsonl'}", model="short")
    for more in ([], ["--dry-run"]):
        assert tutelage([*words, *more]) == 2
        assert "data.max_tokens=8" in capsys.readouterr().err


def test_two_ranks_train_as_one_process_does(place: Path, tmp_path: Path) -> None:
    more = ["train.max_steps=3", "sample.count=1", "train.neftune_alpha=5"]
    assert tutelage(sft(place, tmp_path / "one", *more)) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tutelage"]
    ended = subprocess.run(
        [*command, *sft(place, tmp_path / "two", *more)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    one, two = (jsonl.read(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for alone, together in zip(one, two, strict=True):
        for key in ("loss", "grad_norm"):
            assert together[key] == pytest.approx(alone[key], rel=1e-4)
        for key in ("weight_sum", "tokens", "supervised_tokens", "documents"):
            assert together[key] == alone[key]
    assert (tmp_path / "two" / "final" / "model.safetensors").is_file()
