"""`tutelage show` and `tutelage check`, on files as people have them and a tokenizer folder without any model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tiny import tiny_folder, tiny_tokenizer
from tutelage.cli.edge import guard
from tutelage.cli.main import app

CHATML = (
    "{% for m in messages %}{{ '<bos>' + m.role + '\n' + m.content + '<eos>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bos>assistant\n' }}{% endif %}"
)
# Only the latest answer begins with an empty thought, so earlier turns are not what they were: they are split off.
FORGETFUL = (
    "{% for m in messages %}{{ '<bos>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '(no thought) ' }}{% endif %}{{ m.content + '<eos>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bos>assistant\n' }}{% endif %}"
)


def chat(*turns: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]}


ROWS = [
    chat("Who lives by the river?", "Mira lives there."),
    chat("Count to three.", "1 2 3", "And on?", "4 5 6"),
    chat("Say <eos> please. " * 12, "No."),
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders with tokenizer files and nothing else."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, template in (("plain", CHATML), ("forgetful", FORGETFUL)):
        tiny_tokenizer(template).save_pretrained(folder / name)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "chats.jsonl", ROWS)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def run(*words: object) -> tuple[int, str, str]:
    """Run the command line as the process does; return exit code, standard output and standard error."""
    captured = CliRunner()
    codes: list[int] = []

    def command() -> None:
        app([str(word) for word in words])

    with captured.isolation() as (out, err, _):
        codes.append(guard(command))
        return codes[0], out.getvalue().decode(), err.getvalue().decode()


def show_json(*words: object) -> list[dict[str, Any]]:
    code, out, err = run("show", *words, "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_show_prints_the_mask_of_each_row_as_json(data: Path, tokenizers: Path) -> None:
    lines = show_json(data, "--model", tokenizers / "plain")
    assert [line["row"] for line in lines] == [0, 1, 2]
    tokenizer = tiny_tokenizer()
    for line, row in zip(lines, ROWS, strict=True):
        length = len(line["ids"])
        assert all(len(line[key]) == length for key in ("weights", "message", "role", "part"))
        assert line["stage"] == 0
        trained = [number for number, weight in zip(line["ids"], line["weights"], strict=True) if weight]
        answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        assert tokenizer.decode(trained) == "".join(answer + "<eos>" for answer in answers)
        stops = [part for part, weight in zip(line["part"], line["weights"], strict=True) if weight and part == "stop"]
        assert len(stops) == len(answers)
        assert {role for role, weight in zip(line["role"], line["weights"], strict=True) if weight} == {"assistant"}


def test_show_prints_a_line_for_each_turn_of_a_split_conversation(data: Path, tokenizers: Path) -> None:
    lines = show_json(data, "--model", tokenizers / "forgetful", "--row", 1)
    assert [(line["row"], line["stage"]) for line in lines] == [(1, 1), (1, 2)]
    assert len(lines[0]["ids"]) < len(lines[1]["ids"])


def test_show_follows_the_options_of_the_configuration(data: Path, tokenizers: Path) -> None:
    (all_turns,) = show_json(data, "--model", tokenizers / "plain", "--row", 1)
    (last,) = show_json(data, "--model", tokenizers / "plain", "--row", 1, "data.train_on=last_turn")
    assert all_turns["ids"] == last["ids"]
    assert 0 < np.count_nonzero(last["weights"]) < np.count_nonzero(all_turns["weights"])


def test_show_takes_a_configuration_as_data(data: Path, tokenizers: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {{path: {tokenizers / 'plain'}}}\ndata: {{train: [{{path: chats.jsonl}}]}}\n")
    assert show_json(config) == show_json(data, "--model", tokenizers / "plain")


def test_a_file_may_have_any_name(tokenizers: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "Gespräch: 'a' 🤖 #1.jsonl", ROWS[:1])
    assert len(show_json(data, "--model", tokenizers / "plain")) == 1


def test_show_draws_the_worst_rows_first(data: Path, tokenizers: Path) -> None:
    code, out, err = run("show", data, "--model", tokenizers / "plain", "--count", 1)
    assert code == 0
    assert "chats.jsonl:3" in out
    assert "longest" in out
    assert "12 control strings typed as text" in out
    assert "⟦No.⟧⟦<eos>■⟧" in out
    assert "chats.jsonl:1 " not in out
    assert "3 documents" in err


def test_show_draws_one_row_whole(data: Path, tokenizers: Path) -> None:
    out = run("show", data, "--model", tokenizers / "plain", "--row", 0)[1]
    assert "⟦Mira lives there.⟧" in out
    assert "chats.jsonl:2" not in out


def test_show_writes_a_page(data: Path, tokenizers: Path, tmp_path: Path) -> None:
    code, out, err = run("show", data, "--model", tokenizers / "plain", "--html", tmp_path / "masks.html")
    assert (code, out) == (0, "")
    assert "masks.html" in err
    page = (tmp_path / "masks.html").read_text()
    assert "What will be learned from chats.jsonl" in page
    assert "Mira lives there." not in page.split('id="data"')[0]


def test_show_says_which_rows_it_leaves_out(tokenizers: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "bad.jsonl", [ROWS[0], "{broken", ROWS[1]])
    code, out, err = run("show", data, "--model", tokenizers / "plain", "--json")
    assert code == 0
    assert [json.loads(line)["row"] for line in out.splitlines()] == [0, 2]
    assert "1 row cannot be shown" in err


def test_show_of_a_bad_row_says_what_is_wrong_with_it(tokenizers: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "bad.jsonl", [ROWS[0], "{broken"])
    code, _, err = run("show", data, "--model", tokenizers / "plain", "--row", 1)
    assert code == 3
    assert "bad.jsonl:2: bad JSON" in err


def test_show_of_a_row_that_does_not_exist_says_how_many_there_are(data: Path, tokenizers: Path) -> None:
    code, _, err = run("show", data, "--model", tokenizers / "plain", "--row", 7)
    assert code == 3
    assert "there is no row 7" in err
    assert "3 were read" in err


def test_show_and_check_do_not_load_torch_by_themselves(data: Path, tokenizers: Path) -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\n"  # importing it fails
        "from tutelage.cli.main import app\n"
        f"app(['show', {str(data)!r}, '--model', {str(tokenizers / 'plain')!r}, '--json'], standalone_mode=False)\n"
        f"app(['check', {str(data)!r}, '--model', {str(tokenizers / 'plain')!r}], standalone_mode=False)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "It may be trained on." in result.stdout


def check(*words: object) -> tuple[int, dict[str, Any]]:
    code, out, err = run("check", *words, "--json")
    assert out, err
    return code, json.loads(out)


def test_check_passes_good_data_and_gives_its_figures(data: Path, tokenizers: Path) -> None:
    code, verdict = check(data, "--model", tokenizers / "plain")
    lines = show_json(data, "--model", tokenizers / "plain")
    assert code == 0
    assert verdict["may_train"] is True
    assert verdict["problems"] == []
    assert verdict["figures"]["documents"] == 3
    assert verdict["figures"]["tokens"] == sum(len(line["ids"]) for line in lines)
    assert verdict["figures"]["supervised_tokens"] == sum(np.count_nonzero(line["weights"]) for line in lines)
    assert sum(one["documents"] for one in verdict["lengths"]) == 3
    assert verdict["ledger"]["totals"]["rows"] == 3
    assert all(one["passed"] for one in verdict["contract"])
    assert any("documents with control strings typed as text: 1;" in warning for warning in verdict["warnings"])


def test_check_says_so_in_words(data: Path, tokenizers: Path) -> None:
    code, out, _ = run("check", data, "--model", tokenizers / "plain")
    assert code == 0
    assert "It may be trained on." in out
    assert "3 documents" in out


@pytest.mark.parametrize(
    ("rows", "override", "problem", "mend"),
    [
        ([ROWS[0], "{broken"], "", "1 of 2 rows", "data.max_bad_fraction=0.5"),
        (ROWS, "data.max_tokens=64", "1 row too long; the first is", "data.too_long"),
        ([ROWS[0]], "data.max_tokens=2", "nothing is left to train on", "dropped"),
    ],
)
def test_check_refuses_what_training_would_refuse(
    tmp_path: Path, tokenizers: Path, rows: list[Any], override: str, problem: str, mend: str
) -> None:
    data = write(tmp_path / "chats.jsonl", rows)
    code, verdict = check(data, "--model", tokenizers / "plain", *([override] if override else []))
    assert code == 3
    assert verdict["may_train"] is False
    assert problem in str(verdict["problems"])
    assert mend in str(verdict["problems"])


def test_check_lets_pass_what_the_configuration_allows(tmp_path: Path, tokenizers: Path) -> None:
    data = write(tmp_path / "chats.jsonl", [*ROWS, "{broken"])
    code, verdict = check(
        data, "--model", tokenizers / "plain", "data.max_bad_fraction=0.3", "data.max_tokens=64", "data.too_long=drop"
    )
    assert code == 0
    assert any("left out: 1 of 4 rows, bad JSON" in warning for warning in verdict["warnings"])
    assert len(verdict["quarantine"]) == 2


def test_check_tells_copies_and_split_conversations(tmp_path: Path, tokenizers: Path) -> None:
    data = write(tmp_path / "chats.jsonl", [ROWS[1], ROWS[1]])
    warnings = str(check(data, "--model", tokenizers / "forgetful")[1]["warnings"])
    assert "exact copies of other examples: 1;" in warnings
    assert "2 conversations become 4 documents" in warnings


def test_check_refuses_a_template_that_breaks_the_contract(tmp_path: Path, data: Path) -> None:
    tiny_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}").save_pretrained(tmp_path / "bare")
    code, verdict = check(data, "--model", tmp_path / "bare")
    assert code == 4
    assert verdict["may_train"] is False
    assert any(not one["passed"] for one in verdict["contract"])
    assert verdict["problems"][0]["kind"] == "TemplateError"


def test_check_shows_asked_and_realised_shares(tokenizers: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "chats.jsonl", [chat(f"What is {n}?", f"The number {n}. " * 5) for n in range(40)])
    (tmp_path / "text.txt").write_text("Once upon a time there was a lighthouse.\n\n" * 40)
    code, verdict = check(
        data, "--model", tokenizers / "plain", f"data.train.1={{path: {tmp_path / 'text.txt'}, kind: text, share: 0.2}}"
    )
    assert code == 0
    shares = {share["name"]: share for share in verdict["shares"]}
    assert shares["text"]["asked"] == 0.2
    assert shares["text"]["realised"] == pytest.approx(0.2, abs=0.1)


def test_check_probes_the_model_on_a_real_pack(data: Path, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", chat_template=CHATML)
    code, verdict = check(data, "--model", folder, "--probe")
    assert code == 0, verdict["problems"]
    probes = {probe["name"]: probe for probe in verdict["probes"]}
    assert {"isolation", "layout", "causality"} <= set(probes)
    assert all(probe["passed"] and probe["figures"] for probe in probes.values())


def test_check_probes_a_tree_of_rows_that_share_a_prompt(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", chat_template=CHATML)
    data = write(
        tmp_path / "chats.jsonl", [chat("Who lives in the house by the river?", f"Mira {n}.") for n in range(6)]
    )
    code, verdict = check(data, "--model", folder, "--probe")
    assert code == 0, verdict["problems"]
    found = next(probe for probe in verdict["probes"] if probe["name"] == "shared prefixes")
    assert found["passed"] and found["figures"]["documents"] > 1
    assert any("shared prefixes: " in warning and "x fewer tokens" in warning for warning in verdict["warnings"])


def test_check_without_weights_cannot_probe_and_says_so(data: Path, tokenizers: Path) -> None:
    code, verdict = check(data, "--model", tokenizers / "plain", "--probe")
    assert code == 5
    assert verdict["problems"][0]["kind"] == "ModelError"


def test_check_gives_a_verdict_in_json_whatever_goes_wrong(tmp_path: Path, tokenizers: Path) -> None:
    code, verdict = check(tmp_path / "absent.jsonl", "--model", tokenizers / "plain")
    assert code == 3
    assert verdict["may_train"] is False
    assert "absent.jsonl does not exist" in verdict["problems"][0]["problem"]
