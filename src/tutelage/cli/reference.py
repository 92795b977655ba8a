"""The reference pages of the configuration and the command line, written from the schema and the commands themselves.

    python -m tutelage.cli.reference docs/reference

A test holds the pages in `docs/reference` to what this writes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import typer.main

from tutelage.cli.edge import EXIT_MEANINGS
from tutelage.config.explain import KeyRow, explain_keys
from tutelage.config.load import preset_names, preset_text
from tutelage.config.schema import Config
from tutelage.files.atomic import write_text

_NOTE = "<!-- Written by `python -m tutelage.cli.reference docs/reference`; change the code, not this page. -->"

_CONFIG_HEAD = """\
A configuration is a YAML file. Values come from, each over the one before: the defaults below, a preset (`--preset`), the
file, and `key=value` words on the command line. `tutelage config explain FILE` prints every value with the place it came from.

- A key that does not exist is an error that names the nearest one; so is a value of the wrong type, and a key written twice.
- Lists are reached by index: `data.train.0.path=chats.jsonl`; one past the end appends; `data.train='[{path: a}, {path: b}]'`
  replaces the whole list. In the tables below `N` stands for an index.
- Relative paths of data and models in a file are those beside the file where they exist there, otherwise those of the
  working directory.
- Scalars are those of YAML 1.2: `1e-5` is a number, and `no`, `on` and `12:30` are text where a key takes text.
"""


def config_page() -> str:
    """Return the page of every configuration key."""
    lines = ["# Configuration", "", _NOTE, "", _CONFIG_HEAD]
    rows = explain_keys()
    for name, field in Config.model_fields.items():
        section: Any = field.annotation
        lines += [f"## {name}", "", inspect.cleandoc(section.__doc__), ""]
        lines += _key_table([row for row in rows if row.key.split(".")[0] == name])
    lines += ["## Presets", "", "| preset | for |", "|---|---|"]
    for name in preset_names():
        lines.append(f"| `{name}` | {preset_text(name).partition(chr(10))[0].lstrip('# ')} |")
    return "\n".join([*lines, ""])


def cli_page() -> str:
    """Return the page of every verb of the command line."""
    from tutelage.cli.main import app

    group: Any = typer.main.get_command(app)
    lines = ["# Command line", "", _NOTE, "", _plain(group.help).partition("\n")[0], ""]
    for name, command in _commands(group, "tutelage"):
        lines += [f"## {name}", "", *_help_lines(command), *_parameter_table(command)]
    lines += ["## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EXIT_MEANINGS.items()]
    return "\n".join([*lines, ""])


def _key_table(rows: list[KeyRow]) -> list[str]:
    table = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        cells = (f"`{row.key}`", _cell(row.values), f"`{row.default}`", _cell(row.doc))
        table.append(f"| {' | '.join(cells)} |")
    return [*table, ""]


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _help_lines(command: Any) -> list[str]:
    """Return a command's help as Markdown; its indented lines, which are typed as they stand, become blocks."""
    lines: list[str] = []
    for is_code, block in groupby(_plain(command.help).splitlines(), key=lambda line: line.startswith("    ")):
        if is_code:
            lines += ["", "```console", *(line.strip() for line in block), "```"]
        else:
            lines += block
    return [*lines, ""]


def _plain(help_text: str) -> str:
    """Return help without the backslashes that keep brackets from being markup."""
    return inspect.cleandoc(help_text).replace("\\[", "[")


def _parameter_table(command: Any) -> list[str]:
    rows = []
    for parameter in command.params:
        if "--help" in parameter.opts:
            continue
        is_option = parameter.param_type_name == "option"
        metavar = parameter.metavar or ""
        names = " ".join(filter(None, ["`, `".join(parameter.opts), metavar])) if is_option else metavar
        rows.append(f"| `{names}` | {_cell(parameter.help or '')} |")
    return ["| | |", "|---|---|", *rows, ""] if rows else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(folder: str) -> None:
    """Write the pages into `folder`."""
    write_text(Path(folder) / "config.md", config_page())
    write_text(Path(folder) / "cli.md", cli_page())


if __name__ == "__main__":
    main(*sys.argv[1:])
