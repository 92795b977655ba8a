"""`tutelage why`: what a record was made of, back to prompts and sources."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from tutelage.cli.console import output

if TYPE_CHECKING:
    from tutelage.synthesize.lineage import Node

_EXCERPT_CHARACTERS = 100


def run(
    record: Annotated[str, typer.Argument(metavar="ID", help="Id of a record, request or prompt, or how it begins.")],
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders that `tutelage generate` wrote.")],
    descendants: Annotated[
        bool, typer.Option("--descendants", help="What was made of it, in place of what it was made of.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each as a JSON object, one a line.")] = False,
) -> None:
    """Print what a record was made of: operator, requests, model, seed, prompt, and the row of the file that it began with.

    With --descendants, print every record that a bad prompt, request or record led to.

    Examples:
        tutelage why 3f9c21 best
        tutelage why 3f9c21 evolved best
        tutelage why --descendants 77ab01 best --json
    """
    from tutelage.files.encode import encode_json
    from tutelage.synthesize.lineage import read_family, tree

    family = read_family(folders)
    node = family.find(record)
    found = [(0, one) for one in family.descendants(node)] if descendants else list(tree(family, node))
    for depth, one in found:
        if as_json:
            typer.echo(encode_json({**vars(one), "depth": depth}))
        else:
            output().print("  " * depth + _line(one), soft_wrap=True)
    if not found:
        output().print(f"nothing was made of {escape(node.id)}")


def _line(node: Node) -> str:
    lineage, body = node.facts.get("lineage"), node.facts.get("body")
    said = ""
    if lineage is not None:
        scores = f", scores {lineage['scores']}" if "scores" in lineage else ""
        said = f"by {lineage['operator']}, version {lineage['version']}{scores}"
    elif body is not None:
        reason = f" ({node.facts['reason']})" if node.facts["reason"] else ""
        last = str(body["messages"][-1]["content"])
        said = f"{node.facts['state']}{reason}; {body['model']}, seed {body['seed']}: {last}"
    short = " ".join(said.split())
    short = short if len(short) <= _EXCERPT_CHARACTERS else f"{short[:_EXCERPT_CHARACTERS]}..."
    return f"[figure]{escape(node.id)}[/] {node.kind} [quiet]{escape(node.where)}[/] {escape(short)}"
