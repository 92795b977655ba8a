"""`tutelage merge`: write a plain model from an adapter."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from tutelage.cli.console import output

if TYPE_CHECKING:
    from tutelage.model.export import LogitComparison, MergeReport


class StoredType(StrEnum):
    """Type of the written weights; `auto` takes the one that the base model has on disk."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def run(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run directory or a peft adapter folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the plain model; it must not exist.")],
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Base model, when it is not where the adapter says.")
    ] = None,
    dtype: Annotated[
        StoredType, typer.Option(help="Type of the written weights; auto takes the one that the base has on disk.")
    ] = StoredType.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Fold a LoRA adapter into its base model; the result is re-loaded and its logits compared before it is called done.

    Examples:
        tutelage merge runs/mine merged
    """
    import torch

    from tutelage.model.export import merge

    types = {StoredType.FP32: torch.float32, StoredType.BF16: torch.bfloat16, StoredType.FP16: torch.float16}
    report = merge(source, out, base=base, dtype=types.get(dtype))
    if as_json:
        typer.echo(json.dumps(_figures(report)))
    else:
        _print(report)


def _print(report: MergeReport) -> None:
    console = output()
    console.print(f"[good]merged[/] into {escape(str(report.folder))}, written as {report.dtype_name}")
    console.print(f"compared with the adapter on its base at {report.error.tokens} positions, after loading it again:")
    rows = (
        ("written model against adapter", report.error),
        (f"rounding to {report.dtype_name} by itself", report.noise),
        ("adapter against base", report.effect),
    )
    console.print(f"[quiet]{'':<32} {'largest':>10} {'divergence':>12} {'same argmax':>12}[/]")
    for name, figures in rows:
        console.print(
            f"{name:<32} {figures.max_difference:>10.3g} {figures.mean_kl:>12.3g} {figures.argmax_agreement:>12.1%}"
        )
    console.print("[quiet]largest: difference of a logit; divergence: mean KL in nats per token[/]")


def _figures(report: MergeReport) -> dict[str, Any]:
    def row(figures: LogitComparison) -> dict[str, float]:
        return {
            "max_difference": figures.max_difference,
            "mean_kl": figures.mean_kl,
            "argmax_agreement": figures.argmax_agreement,
        }

    return {
        "folder": str(report.folder),
        "dtype": report.dtype_name,
        "tokens": report.error.tokens,
        "error": row(report.error),
        "noise": row(report.noise),
        "effect": row(report.effect),
        "allowed_difference": report.allowed_difference,
        "allowed_kl": report.allowed_kl,
    }
