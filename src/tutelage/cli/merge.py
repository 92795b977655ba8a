"""`tutelage merge`: write a plain model from an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run directory or a peft adapter folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the plain model; it must not exist.")],
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Base model, when it is not where the adapter says.")
    ] = None,
) -> None:
    """Fold a LoRA adapter into its base model; the result is re-loaded and its logits compared before it is called done.

    tutelage merge runs/mine merged
    """
    raise NotImplementedError
