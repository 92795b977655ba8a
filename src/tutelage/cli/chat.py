"""`tutelage chat`: talk to a model in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer


def run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL_OR_RUN", help="A model folder, Hub name, `lab`, or run directory.")
    ],
) -> None:
    """Talk to a model in the terminal; answers stream. `/system TEXT` sets the system message, `/reset` starts anew.

    tutelage chat runs/mine
    """
    raise NotImplementedError
