"""`tutelage check`: whether data may be trained on."""

from __future__ import annotations

from typing import Annotated

import typer

from tutelage.cli.examples import DataPath, KindName, ModelPath, Overrides, TemplateName


def run(
    data: DataPath,
    words: Overrides = None,
    model: ModelPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Also load the model and measure isolation, layout and causality on a real pack."),
    ] = False,
    kind: KindName = None,
    template: TemplateName = None,
) -> None:
    """Read, render and check everything as training would, and say whether it may be trained on.

    The exit code is 0 when it may. Only tokenizer files are needed as the model, except with --probe.

        tutelage check chats.jsonl --model Qwen/Qwen3-0.6B
        tutelage check mine.yaml
        tutelage check chats.jsonl --model my-model --probe --json
    """
    raise NotImplementedError
