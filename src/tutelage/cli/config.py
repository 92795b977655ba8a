"""`tutelage config`: the keys of a configuration, the presets, and where a value comes from."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from tutelage.cli.configuration import ConfigWords, PresetName, print_resolved, resolve
from tutelage.cli.console import output

app = typer.Typer(no_args_is_help=True, help="What a configuration may say: keys, presets, JSON Schema for editors.")


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a configuration, for editors that check and complete YAML.

    Examples:
        tutelage config schema > tutelage.schema.json

    A configuration that begins with `# yaml-language-server: $schema=tutelage.schema.json` is then checked as you type.
    """
    from tutelage.config.explain import json_schema
    from tutelage.files.encode import encode_json

    typer.echo(encode_json(json_schema(), indent=2))


@app.command("presets")
def presets(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this preset.", show_default=False)] = None,
) -> None:
    """List the presets that ship, or print one of them to begin your own from.

    Examples:
        tutelage config presets
        tutelage config presets sft-lora > mine.yaml
    """
    from tutelage.config.load import preset_names, preset_text

    if name is not None:
        typer.echo(preset_text(name), nl=False)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for preset in preset_names():
        table.add_row(f"[figure]{preset}[/]", escape(preset_text(preset).partition("\n")[0].lstrip("# ")))
    output().print(table)


@app.command("launch")
def launch(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this file.", show_default=False)] = None,
) -> None:
    """List the launch files for one GPU, several, and several machines, or print one of them to begin your own from.

    Examples:
        tutelage config launch
        tutelage config launch eight-gpus.sh > eight-gpus.sh
        tutelage config launch two-nodes.slurm > two-nodes.slurm
    """
    from tutelage.config.load import launch_names, launch_text

    if name is not None:
        typer.echo(launch_text(name), nl=False)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for launcher in launch_names():
        table.add_row(f"[figure]{launcher}[/]", escape(launch_text(launcher).splitlines()[1].lstrip("# ")))
    output().print(table)


@app.command("explain")
def explain(
    words: ConfigWords = None,
    preset: PresetName = None,
    key: Annotated[str, typer.Option(metavar="TEXT", help="Only keys that contain this text.")] = "",
) -> None:
    """Print every value of a configuration and where it came from; without one, every key and what it means.

    Examples:
        tutelage config explain
        tutelage config explain --key lora
        tutelage config explain mine.yaml train.epochs=2
    """
    if words or preset:
        print_resolved(resolve(words, preset=preset), everything=True, containing=key)
    else:
        _print_keys(key)


def _print_keys(containing: str) -> None:
    from tutelage.config.explain import explain_keys

    for row in explain_keys():
        if containing in row.key:
            output().print(f"[figure]{row.key}[/]  [quiet]{escape(row.values)}; default {escape(row.default)}[/]")
            output().print(f"    {escape(row.doc)}")
