"""The how-to pages on adapters and chatting say what the code does: their programs run, their tables are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from typer.main import get_command

from tiny import VOCABULARY, tiny_folder, tiny_tokenizer
from tutelage.chat.template import Template
from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.cli.chat import _COMMANDS
from tutelage.cli.main import app
from tutelage.config.schema import Config, LoraConfig, ModelConfig
from tutelage.model.adapters import add_lora
from tutelage.model.export import save_model
from tutelage.model.load import grow_embeddings, load_model

PAGES = Path(__file__).parents[3] / "docs" / "how-to"
CHAT = (PAGES / "chat.md").read_text(encoding="utf-8")
LORA = (PAGES / "lora-and-merge.md").read_text(encoding="utf-8")
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def programs(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose result is an adapter with two new tokens; its base lies beside it."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    base = tiny_folder(folder.with_name("base"), "llama")
    model = load_model(ModelConfig(path=str(base))).model
    new = [VOCABULARY, VOCABULARY + 1]
    grow_embeddings(model, new)
    hf = tiny_tokenizer()
    hf.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
    adapted = add_lora(model, LoraConfig(rank=2), new_ids=new)
    save_model(adapted, ChatTokenizer(hf), Template(TEMPLATE), folder / "final", stop_ids=new[1:])
    return folder


def run(program: str, run_folder: Path) -> dict[str, object]:
    program = program.replace("runs/mine", str(run_folder)).replace("my-base-model", str(run_folder.with_name("base")))
    names: dict[str, object] = {}
    exec(compile(program, "how-to", "exec"), names)
    return names


def test_the_chat_page_answers_its_questions(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = programs(CHAT)
    run(program, run_folder)
    assert capsys.readouterr().out


def test_the_lora_page_loads_the_adapter_in_both_ways(run_folder: Path) -> None:
    ids = torch.tensor([[5, VOCABULARY, VOCABULARY + 1]])
    expected = load_model(ModelConfig(path=str(run_folder))).model(ids).logits
    for program in programs(LORA):
        model = run(program, run_folder)["model"]
        assert torch.equal(model(ids).logits, expected)  # type: ignore[operator]
    assert len(programs(LORA)) == 2


def test_the_configuration_of_the_lora_page_is_valid() -> None:
    for block in re.findall(r"```yaml\n(.*?)```", LORA, re.DOTALL):
        assert Config.model_validate(yaml.safe_load(block)).train.method == "lora"


def test_the_chat_page_lists_every_command_and_option() -> None:
    listed = set(re.findall(r"`(/\w+)[^`]*`", CHAT))
    assert listed == {name.split()[0] for name in _COMMANDS}
    options = {name for parameter in get_command(app).commands["chat"].params for name in parameter.opts}  # type: ignore[attr-defined]
    assert set(re.findall(r"^\| `(--[\w-]+)", CHAT, re.MULTILINE)) == {o for o in options if o.startswith("--")}
