"""`tutelage show`: what will be learned, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.examples import DataPath, KindName, ModelPath, Overrides, TemplateName


def run(
    data: DataPath,
    words: Overrides = None,
    model: ModelPath = None,
    row: Annotated[
        int | None, typer.Option(metavar="N", help="Only this row (counted from 0) of the file.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the picture as one HTML page.", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per row and line: ids, weights, message, role, part.")
    ] = False,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="How many documents to show, worst first.")] = 3,
    kind: KindName = None,
    template: TemplateName = None,
) -> None:
    """Show which tokens of each example are trained, with the role and part every token belongs to.

    Only tokenizer files are needed as the model. Without --row the worst documents come first: the longest, the least
    supervised, those with the most control strings.

        tutelage show chats.jsonl --model Qwen/Qwen3-0.6B
        tutelage show chats.jsonl --model my-model --row 17
        tutelage show chats.jsonl --model my-model --html masks.html --count 50
        tutelage show chats.jsonl --model my-model --json | head -1
        tutelage show mine.yaml data.train_on=last_turn
    """
    raise NotImplementedError
