"""`tutelage show`: what will be learned, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from tutelage.cli.console import errors, output, warn
from tutelage.cli.examples import (
    DataPath,
    Example,
    KindName,
    ModelPath,
    Overrides,
    TemplateName,
    count,
    read_examples,
    resolve_examples,
)
from tutelage.errors import DataError

if TYPE_CHECKING:
    from tutelage.chat.picture import View
    from tutelage.chat.render import Renderer
    from tutelage.chat.rendered import Rendered
    from tutelage.data.ledger import Ledger

_SHOWN_IN_TERMINAL, _SHOWN_ON_PAGE = 3, 40


def run(
    data: DataPath,
    words: Overrides = None,
    model: ModelPath = None,
    row: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Only this row of the file, counted from 0.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the picture as one HTML page.", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per row and line: ids, weights, message, role, part.")
    ] = False,
    num_shown: Annotated[
        int | None,
        typer.Option(
            "--count",
            metavar="N",
            min=1,
            help=f"How many documents to show: {_SHOWN_IN_TERMINAL} in the terminal, {_SHOWN_ON_PAGE} on a page.",
            show_default=False,
        ),
    ] = None,
    kind: KindName = None,
    template: TemplateName = None,
) -> None:
    """Show which tokens of each example are trained, with the role and part every token belongs to.

    Only tokenizer files are needed as the model. Without --row the worst documents come first: the longest, the least
    supervised, those with the most control strings typed into them.

    Examples:
        tutelage show chats.jsonl --model Qwen/Qwen3-0.6B
        tutelage show chats.jsonl --model my-model --row 17
        tutelage show chats.jsonl --model my-model --html masks.html --count 100
        tutelage show chats.jsonl --model my-model --json
        tutelage show mine.yaml data.train_on=last_turn
    """
    from tutelage.data.ledger import Ledger
    from tutelage.train.prepare import build_renderer

    config = resolve_examples(data, words, model=model, kind=kind, template=template).config
    renderer, ledger = build_renderer(config), Ledger()
    examples = read_examples(config, renderer, ledger, row=row)
    if as_json:
        _print_json(examples, ledger, row)
        return
    documents = [document for example in _renderable(examples, ledger, row) for document in example]
    views = _views(documents, renderer, num_shown or (_SHOWN_ON_PAGE if html else _SHOWN_IN_TERMINAL), row)
    if html is None:
        _print_pictures(views, documents, whole=row is not None)
    else:
        _write_page(html, views, documents, data, renderer)


def _renderable(examples: Iterator[Example], ledger: Ledger, row: int | None) -> Iterator[list[Rendered]]:
    """Yield the documents of each row; rows that cannot be read or rendered are told at the end.

    Raises: the error of the row that was asked for; DataError when no row can be shown.
    """
    shown, failed = 0, 0
    for example in examples:
        if isinstance(example.result, list):
            shown += 1
            if row is not None:
                _tell_passages(example)
            yield example.result
        elif row is not None:
            raise example.result.error
        else:
            failed += 1
            if failed == 1:
                warn(str(example.result.error))
    _tell_what_is_left_out(ledger, shown, failed, row)


def _tell_passages(example: Example) -> None:
    """Say where the passages of a row stand."""
    for number, where in enumerate(example.passages or (), start=1):
        errors().print(f"[quiet]passages before question {number}:[/] {escape('; '.join(where) or 'none')}")


def _tell_what_is_left_out(ledger: Ledger, shown: int, failed: int, row: int | None) -> None:
    asked = [entry for entry in ledger.quarantine if row is not None and entry.row == row]
    if not shown and asked:
        raise DataError(f"{asked[0].where}: {asked[0].reason}: {asked[0].cause}", mend="mend the row")
    if not shown and not failed:
        raise DataError(
            f"there is no row {row}" if row is not None else "no row can be shown",
            mend=f"rows count from 0; {ledger.totals.rows:,} were read, {ledger.totals.kept:,} of them are whole",
        )
    left_out = failed + (0 if row is not None else len(ledger.quarantine))
    if left_out:
        warn(f"{count(left_out, 'row')} cannot be shown; `tutelage check` says which and why")


def _views(documents: Sequence[Rendered], renderer: Renderer, num_shown: int, row: int | None) -> list[View]:
    from tutelage.chat.picture import view, worst_first
    from tutelage.chat.pieces import Pieces

    pieces = Pieces(renderer.tokenizer)
    if row is not None:
        return [view(document, pieces) for document in documents]
    return [view(documents[index], pieces, why=why) for index, why in worst_first(documents, pieces)[:num_shown]]


def _print_pictures(views: Sequence[View], documents: Sequence[Rendered], *, whole: bool) -> None:
    from tutelage.chat.picture import print_picture

    print_picture(output(), views, whole=whole)
    if len(views) < len(documents):
        errors().print(f"\n[quiet]{_summary(documents)}; --count shows more of them, --html makes a page[/]")


def _write_page(
    path: Path, views: Sequence[View], documents: Sequence[Rendered], data: str, renderer: Renderer
) -> None:
    from tutelage.chat.picture_page import picture_page
    from tutelage.files.atomic import write_text

    tokens = sum(map(len, documents))
    supervised = sum(document.supervised_tokens for document in documents)
    facts = {
        "Tokenizer": str(renderer.tokenizer.hf.name_or_path),
        "Documents": f"{len(documents):,}",
        "Tokens": f"{tokens:,}",
        "With loss": f"{supervised:,} ({supervised / max(1, tokens):.1%})",
        "Longest": f"{max(map(len, documents)):,} tokens",
    }
    title = f"What will be learned from {Path(data).name}"
    write_text(path, picture_page(views, title=title, facts=facts, num_documents=len(documents)))
    errors().print(f"{_summary(documents)}; {count(len(views), 'picture')} in [figure]{path}[/]")


def _summary(documents: Sequence[Rendered]) -> str:
    tokens = sum(map(len, documents))
    supervised = sum(document.supervised_tokens for document in documents)
    return (
        f"{count(len(documents), 'document')}, {tokens:,} tokens, {supervised / max(1, tokens):.1%} of them with loss"
    )


def _print_json(examples: Iterator[Example], ledger: Ledger, row: int | None) -> None:
    from tutelage.files.encode import encode_json

    shown, failed = 0, 0
    for example in examples:
        if isinstance(example.result, list):
            shown += 1
            for document in example.result:
                passages = {} if example.passages is None else {"passages": example.passages}
                typer.echo(encode_json({**_json_document(example.row, document), **passages}))
        elif row is not None:
            raise example.result.error
        else:  # a line of its own, so that no row is missing without a word
            failed += 1
            error = str(example.result.error)
            typer.echo(encode_json({"row": example.row, "cause": example.result.cause, "error": error}))
    _tell_what_is_left_out(ledger, shown, failed, row)


def _json_document(row: int, document: Rendered) -> dict[str, Any]:
    """Return one document; lists are as long as `ids`, and `weights` are of producing the token at the same place."""
    from tutelage.chat.picture import role_of
    from tutelage.chat.rendered import Part

    messages = document.message.tolist()
    names = [part.name.lower() for part in Part]
    return {
        "row": row,
        "source": document.source,
        "where": document.where,
        "stage": document.stage,
        "ids": document.ids.tolist(),
        "weights": document.weights.tolist(),
        "message": messages,
        "role": [role_of(document, message) or None for message in messages],
        "part": [names[part] for part in document.part.tolist()],
    }
