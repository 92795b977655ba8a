"""README and the other pages say what is: commands, options, files, laws and links exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from tutelage.cli.main import app
from tutelage.config.load import preset_names
from tutelage.config.schema import Config

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each `tutelage` command in the console blocks of a page."""
    for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:^\$ |\| |-m )tutelage (.*)$", line)
            if found:
                yield shlex.split(re.split(r" [|<>] ", found[1])[0], comments=True)


def click_command(words: list[str]) -> tuple[object, list[str]]:
    """Return the command that these words name, and the words that are its own."""
    command = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        command = command.commands[rest.pop(0)]
    return command, rest


EVERY_COMMAND = [(page, words) for page in PAGES for words in commands(page)]


def test_there_are_commands_to_check() -> None:
    verbs = {words[0] for page, words in EVERY_COMMAND if page.name == "README.md"}
    assert {"check", "show", "train", "chat", "merge", "report"} <= verbs


@pytest.mark.parametrize(("page", "words"), EVERY_COMMAND, ids=[f"{p.name}: {' '.join(w)}" for p, w in EVERY_COMMAND])
def test_every_command_exists_with_its_options(page: Path, words: list[str]) -> None:
    command, rest = click_command(words)
    options = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}  # type: ignore[attr-defined]
    assert {word.split("=")[0] for word in rest if word.startswith("-")} <= options
    if "--preset" in rest:
        assert rest[rest.index("--preset") + 1] in preset_names()


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_key_of_a_command_exists(page: Path) -> None:
    for words in commands(page):
        for word in words:
            found = re.fullmatch(r"((?:model|data|train|sample|run)(?:\.\w+)+)=.*", word)
            if found:
                key_type(found[1])


def key_type(key: str) -> object:
    """Return the type of a dotted key; numbers step into a list."""
    section: object = Config
    for part in key.split("."):
        section = section.__args__[0] if part.isdigit() else section.model_fields[part].annotation  # type: ignore[attr-defined]
    return section


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_yaml_block_that_is_a_configuration_is_valid(page: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        content = yaml.safe_load(block)
        if isinstance(content, dict) and set(content) <= set(Config.model_fields):
            Config.model_validate(content)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_and_every_named_test_leads_to_a_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) if "://" not in link]
    named = re.findall(r"`((?:tests|benchmarks|docs|src)/[\w/.-]+\.\w+)`", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists() and name != "benchmarks/RESULTS.md"]
    assert missing == []


def test_every_benchmark_of_the_table_exists() -> None:
    for name in re.findall(r"python -m benchmarks\.(\w+)", README):
        assert (ROOT / "benchmarks" / f"{name}.py").exists()


def test_the_tree_has_every_file_with_a_line_of_its_own() -> None:
    tree = README.split("## What is where")[1].split("```")[1]
    listed: set[str] = set()
    room = ""
    for line in tree.strip().splitlines():
        name, _, purpose = line.strip().partition(" ")
        depth = len(line) - len(line.lstrip())
        assert purpose.strip() or name == "src/tutelage/", f"{name} has no purpose"
        if depth == 2 and name.endswith("/"):
            room = name
        elif depth == 4:
            listed.add(room + name)
        elif depth == 2:
            listed.add(name)
    source = ROOT / "src" / "tutelage"
    files = {str(path.relative_to(source)) for path in source.rglob("*.py") if path.name != "__init__.py"}
    assert listed == files


def test_there_are_seven_laws_each_with_its_test() -> None:
    table = README.split("## The seven laws")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\w+) \| .+ \| `(tests/[\w/.]+)` \|$", table, re.MULTILINE)
    assert [law for law, _ in rows] == ["mask", "isolation", "layout", "conservation", "replay", "evidence", "safety"]


def test_the_promises_cover_every_law() -> None:
    promises = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    laws = set(re.findall(r"^\| (\w+) \| .+`tests/", promises, re.MULTILINE))
    assert laws == {"mask", "isolation", "layout", "conservation", "replay", "evidence", "safety"}


def test_the_architecture_page_has_the_arrows_that_are_tested() -> None:
    from test_architecture import ARROWS

    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## Arrows")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", text, re.MULTILINE)
    drawn = {room: set(re.findall(r"`(\w+)`", others)) for room, others in rows}
    assert drawn == {room: others for room, others in ARROWS.items() if room not in ("errors", "redact", "intervals")}
