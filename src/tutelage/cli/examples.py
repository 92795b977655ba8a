"""What `show` and `check` share: a data file or a configuration, and the model that renders it."""

from __future__ import annotations

from typing import Annotated

import typer

DataPath = Annotated[
    str,
    typer.Argument(metavar="DATA", help="A data file, folder or glob, or a configuration (.yaml).", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Values of the configuration, such as data.max_tokens=4096.", show_default=False
    ),
]
ModelPath = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="M",
        help="Model folder or Hub name, `lab`, or tokenizer files alone.",
        show_default=False,
    ),
]
KindName = Annotated[
    str | None,
    typer.Option(
        metavar="K",
        help="Layout of the rows: messages, sharegpt, alpaca, prompt_completion, preference or text.",
        show_default=False,
    ),
]
TemplateName = Annotated[
    str | None,
    typer.Option(metavar="T", help="Chat template: chatml, llama3, plain, or a .jinja file.", show_default=False),
]
