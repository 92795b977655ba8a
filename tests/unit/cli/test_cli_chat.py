"""`tutelage chat`, as a program: with lines from a pipe, and on a terminal of its own."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tiny import tiny_folder
from tutelage.cli.chat import _printable, _template_variables

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a finished model."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    tiny_folder(folder / "final", "llama", chat_template=TEMPLATE)
    return folder


def chat(model: Path, lines: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from tutelage.cli.main import main; main()", "chat", str(model)]
    return subprocess.run(
        [*command, "--max-new-tokens", "8", *options], input=lines, capture_output=True, text=True, check=False
    )


def test_lines_from_a_pipe_are_turns_and_only_answers_are_printed(run_folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved.jsonl"
    first = ["hello", "", f"/save {saved}", "/reset", "hello", "/system Be kind.", "hello"]
    then = ["/bogus", "/help", "/save", "x" * 600, f"/save {saved}", "/quit", "never asked"]
    done = chat(run_folder, "\n".join([*first, *then]))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line)["messages"] for line in saved.read_text().splitlines()]
    assert [message["role"] for message in rows[0]] == ["user", "assistant"]
    assert [message["role"] for message in rows[1]] == ["system", "user", "assistant"]
    first, again, kind = rows[0][1]["content"], rows[0][1]["content"], rows[1][2]["content"]
    assert done.stdout == "".join(_printable(answer) + "\n" for answer in (first, again, kind))
    assert "no command /bogus" in done.stderr
    assert "/save needs the name" in done.stderr
    assert "context holds 512" in done.stderr
    assert "/system TEXT" in done.stderr


def test_template_variables_come_from_the_run_and_from_the_command_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "config.yaml").write_text("model:\n  template_variables:\n    mood: kind\n")
    tiny_folder(run / "final", "llama", chat_template="{{ mood }}{{ pace }}" + TEMPLATE)
    assert _template_variables(str(run), ["pace=slow"]) == {"mood": "kind", "pace": "slow"}
    refused = chat(run, "hello\n", "--template-variable", "place=home")
    assert refused.returncode == 2
    assert "does not read the variable 'place'" in refused.stderr
    assert chat(run, "hello\n", "--template-variable", "pace=slow").returncode == 0


def test_a_base_model_is_said_to_have_no_template(tmp_path: Path) -> None:
    done = chat(tiny_folder(tmp_path / "base", "llama"), "The baker\n/reset\n", "--system", "Be kind.")
    assert done.returncode == 0, done.stderr
    assert "no chat template" in done.stderr
    assert "no place for a system message" in done.stderr
    assert "/reset needs a chat template" in done.stderr
    assert done.stdout.strip()


def test_control_characters_of_an_answer_never_reach_the_terminal() -> None:
    assert _printable("a\x1b[2J\x07b\r\x9bc\td\n日本 é") == "a[2Jbc\td\n日本 é"


def test_on_a_terminal_it_prompts_streams_and_leaves_at_end_of_input(run_folder: Path) -> None:
    main, side = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-c", "from tutelage.cli.main import main; main()", "chat", str(run_folder)],
        stdin=side,
        stdout=side,
        stderr=side,
        env={**os.environ, "TERM": "dumb"},
        close_fds=True,
    )
    os.close(side)
    try:
        assert "leaves" in _read_until(main, "> ")
        os.write(main, b"/system Be kind.\n")
        assert "system message set" in _read_until(main, "> ")
        os.write(main, b"hello\n")
        assert len(_read_until(main, "\n> ").strip()) > len("hello")
        os.write(main, b"\x04")
        assert program.wait(timeout=60) == 0
    finally:
        program.kill()
        program.wait()
        os.close(main)


def _read_until(terminal: int, end: str, seconds: float = 300) -> str:
    """Read from a terminal until the text ends with `end` (line ends as the terminal writes them, made plain)."""
    text = ""
    deadline = time.monotonic() + seconds
    while not text.endswith(end):
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"no {end!r} within {seconds} s after {text!r}"
        text += os.read(terminal, 4096).decode(errors="replace").replace("\r\n", "\n")
    return text
