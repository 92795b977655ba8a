"""The command line answers at once, keeps its verbs, and tells errors with a mend and an exit code."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tutelage import errors
from tutelage.cli import edge
from tutelage.cli.main import app
from tutelage.train.stop import RESUME_EXIT_CODE, StopNow

VERBS = (
    "demo",
    "show",
    "check",
    "advise",
    "train",
    "pretrain",
    "merge",
    "chat",
    "eval",
    "report",
    "replay",
    "claims",
    "why",
    "generate",
    "config",
    "lab",
)
SUBVERBS = (
    "generate best-of-n",
    "generate self-instruct",
    "config schema",
    "config presets",
    "config launch",
    "config explain",
    "lab text",
    "lab lessons",
    "lab model",
)
GROUPS = ("generate", "config", "lab")


def run(*words: str) -> tuple[int, str]:
    """Run the command line in this process; return exit code and everything it printed to standard output."""
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom tutelage.cli.main import main\nsys.argv = ['tutelage', '--help']\n"
        "try: main()\nexcept SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'yaml', 'peft', 'tokenizers', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"
    assert "Fine-tune" in result.stdout


def test_the_verbs_are_these() -> None:
    from typer.main import get_command

    command = get_command(app)
    assert tuple(command.commands) == VERBS  # type: ignore[attr-defined]
    nested = [f"{verb} {name}" for verb in GROUPS for name in command.commands[verb].commands]  # type: ignore[attr-defined]
    assert sorted(nested) == sorted(SUBVERBS)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in GROUPS] + list(SUBVERBS))
def test_the_help_of_every_verb_shows_how_it_is_typed(verb: str) -> None:
    code, text = run(*verb.split(), "--help")
    assert code == 0
    assert re.search(rf"Examples:\s+\$ tutelage {verb}", text)


def test_version() -> None:
    from tutelage import __version__

    assert run("--version") == (0, f"tutelage {__version__}\n")


def test_presets_can_be_printed_and_read_again(tmp_path: Path) -> None:
    from tutelage.config.load import load_config

    code, listing = run("config", "presets")
    assert code == 0
    assert "sft-lora" in listing
    code, text = run("config", "presets", "sft-lora")
    (tmp_path / "mine.yaml").write_text(text)
    assert load_config(tmp_path / "mine.yaml").config == load_config(preset="sft-lora").config


def test_the_schema_is_json() -> None:
    import json

    assert json.loads(run("config", "schema")[1])["title"] == "Config"


def test_explain_shows_values_with_their_origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("train:\n  epochs: 2\n")
    code, text = run("config", "explain", "run.yaml", "train.seed=3", "--preset", "sft-full")
    assert code == 0
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "run.yaml:2" in rows["train.epochs"]
    assert "command line" in rows["train.seed"]
    assert "preset sft-full:" in rows["train.schedule"]
    assert "default" in rows["train.betas"]


def test_explain_without_a_configuration_lists_the_keys() -> None:
    text = run("config", "explain", "--key", "lora.rank")[1]
    assert "train.lora.rank" in text
    assert "Rank r of the update." in text
    assert "learning_rate" not in text


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ConfigError, 2),
        (errors.DataError, 3),
        (errors.TemplateError, 4),
        (errors.ModelError, 5),
        (errors.TrainingError, 6),
        (errors.IsolationError, 7),
        (errors.RunDirError, 8),
        (errors.UnsafeError, 9),
        (errors.OutOfMemoryError, 76),
        (errors.DiskFullError, 74),
    ],
)
def test_each_error_has_its_exit_code(
    kind: type[errors.TutelageError], code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert edge.guard(raising(kind("it [broke]", mend="do this"))) == code
    assert capfd.readouterr().err.startswith("error it [broke]\n mend do this")
    assert code in edge.EXIT_MEANINGS


def test_every_error_of_the_tree_has_an_exit_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind is not errors.TutelageError]
    assert set(kinds) == set(edge.EXIT_CODES)
    assert len(set(edge.EXIT_CODES.values())) == len(kinds)


def test_the_table_of_exit_codes_is_whole_and_in_the_help() -> None:
    of_typer = {edge.EXIT_UNHEARD, edge.EXIT_INTERRUPTED}
    assert set(edge.EXIT_MEANINGS) == {0, edge.EXIT_UNEXPECTED, RESUME_EXIT_CODE, *of_typer, *edge.EXIT_CODES.values()}
    assert edge.guard(lambda: None) == 0
    assert edge.guard(raising(StopNow("SIGTERM"))) == RESUME_EXIT_CODE
    interrupted = typer.Typer()
    interrupted.command()(raising(KeyboardInterrupt()))
    assert edge.guard(partial(interrupted, [])) == edge.EXIT_INTERRUPTED
    shown = " ".join(run("--help")[1].split())
    assert all(f"{code} {meaning}" in shown for code, meaning in edge.EXIT_MEANINGS.items())


def in_subprocess(raised: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys\nfrom tutelage.cli.edge import guard\nfrom tutelage.errors import *\n"
        f"def command(): raise {raised}\nsys.exit(guard(command))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_a_known_error_is_told_without_a_traceback_and_without_secrets() -> None:
    result = in_subprocess("DataError('row 3 of https://me:pw@host [bad] is broken', mend='mend it')")
    assert result.returncode == 3
    assert result.stderr == "error row 3 of https://***@host [bad] is broken\n mend mend it\n"


def test_the_traceback_is_shown_on_request() -> None:
    result = in_subprocess("DataError('x')", TUTELAGE_TRACEBACK="1")
    assert "Traceback" in result.stderr


def test_an_unexpected_error_leaves_a_traceback_file_without_secrets(tmp_path: Path) -> None:
    result = in_subprocess("KeyError('hf_abcdefghijklmnopqrst')", TMPDIR=str(tmp_path))
    assert result.returncode == 70
    assert "this should not have happened: KeyError" in result.stderr
    assert "hf_abc" not in result.stderr
    (log,) = tmp_path.iterdir()
    assert "Traceback" in log.read_text()
    assert "hf_abc" not in log.read_text()


def test_a_file_that_cannot_be_read_is_not_a_crash() -> None:
    result = in_subprocess("FileNotFoundError(2, 'No such file or directory', 'absent.txt')")
    assert result.returncode == 74
    assert "absent.txt" in result.stderr


def test_the_end_of_a_pipe_is_no_reason_for_a_traceback() -> None:
    code = "from tutelage.cli.main import main; import sys; sys.argv = ['tutelage', 'config', 'schema']; main()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # gone before the first line
    assert process.stderr.read() == ""
    assert process.wait() == edge.EXIT_UNHEARD


def test_usage_mistakes_exit_with_2() -> None:
    assert run("trian")[0] == 2
    assert run("show")[0] == 2
