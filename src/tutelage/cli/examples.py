"""What `show` and `check` share: a data file or a configuration, the model that renders it, and the examples in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tutelage.chat.render import Renderer, RenderFailure
    from tutelage.chat.rendered import Rendered
    from tutelage.config.load import Resolved
    from tutelage.config.schema import Config
    from tutelage.data.conversation import Conversation, Document
    from tutelage.data.ledger import Ledger

DataPath = Annotated[
    str,
    typer.Argument(metavar="DATA", help="A data file, folder or glob, or a configuration (.yaml).", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Values of the configuration, such as data.max_tokens=4096.",
        show_default=False,
    ),
]
ModelPath = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="M",
        help="Model folder or Hub name, `lab`, or a folder with tokenizer files alone.",
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


@dataclass(frozen=True, eq=False)
class Example:
    """One row: the documents it renders to, or why it cannot be rendered.

    `passages` says where those stand that `data.retrieve` put before each message of the user; None where it did not.
    """

    row: int
    record: Conversation | Document
    result: list[Rendered] | RenderFailure
    passages: tuple[tuple[str, ...], ...] | None = None


def resolve_examples(
    data: str, words: Sequence[str] | None, *, model: str | None, kind: str | None, template: str | None
) -> Resolved:
    """Return the configuration of DATA, which is a configuration itself or a data file; options go over it."""
    from tutelage.config.load import load_config

    is_config = data.endswith((".yaml", ".yml"))
    chosen = [] if is_config else [("data.train.0.path", data)]
    chosen += [("data.train.0.kind", kind)] if kind else []
    chosen += [("model.path", model)] if model else []
    chosen += [("model.template", template)] if template else []
    # JSON text is a YAML value, whatever signs a path contains.
    overrides = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in chosen]
    return load_config(Path(data) if is_config else None, [*overrides, *(words or [])])


def read_examples(config: Config, renderer: Renderer, ledger: Ledger, *, row: int | None = None) -> Iterator[Example]:
    """Yield every training row that can be read, rendered; with `row`, those with this number in their file.

    Faulty rows are booked in the ledger and passed over. Raises: DataError when `row` does not exist or is faulty.
    """
    from tutelage.data.conversation import Conversation, PreferencePair
    from tutelage.data.retrieve import open_retriever
    from tutelage.data.sources import read_source

    retriever = open_retriever(config.data.retrieve)
    for source in config.data.train:
        records = read_source(source, ledger, max_bad_fraction=1.0)
        trainable = [record for record in records if not isinstance(record, PreferencePair)]
        chosen = [record for record in trainable if row is None or (record.origin and record.origin.row == row)]
        passages: list[tuple[tuple[str, ...], ...] | None] = [None] * len(chosen)
        for number, record in enumerate(chosen):
            if retriever is not None and isinstance(record, Conversation):
                with_passages = retriever.for_row(record)
                chosen[number], passages[number] = with_passages.conversation, with_passages.where
        for record, result, where in zip(chosen, renderer.render_many(chosen), passages, strict=True):
            yield Example(record.origin.row if record.origin else 0, record, result, where)


def count(number: int, word: str) -> str:
    """Return a number with its word, such as `1 row` or `2,000 rows`."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
