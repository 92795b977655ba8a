"""`tutelage chat`: talk to a model in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from tutelage.cli.console import errors, say_problem, warn

if TYPE_CHECKING:
    from tutelage.data.retrieve import Retriever
    from tutelage.generate.sampler import Sampling
    from tutelage.generate.talk import Continuation, Talk

_COMMANDS = {
    "/system TEXT": "set the system message and start anew; without TEXT, take it away",
    "/reset": "start anew; the system message stays",
    "/save FILE": "append the conversation to a JSONL file of examples",
    "/help": "this list",
    "/quit": "leave (so does end of input)",
}
_READABLE = {"\n", "\t"}


def run(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL_OR_RUN", help="A model or adapter folder, Hub name, `lab`, or run directory."),
    ],
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="With a temperature: keep the likeliest tokens of this probability.")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="With a temperature: which answer.")] = 0,
    template_variable: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Setting of the chat template, such as enable_thinking=false; a run's own ones hold already.",
            show_default=False,
        ),
    ] = None,
    retrieve: Annotated[
        str | None,
        typer.Option(
            metavar="CORPUS",
            help="Texts (file, folder or glob) whose best passages stand before each question, as data.retrieve does in training.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Talk to a model in the terminal; answers stream. `/system TEXT` sets the system message, `/reset` starts anew.

    Without a terminal each line of standard input is a turn, and only the answers are written to standard output.

    Examples:
        tutelage chat runs/mine
        tutelage chat Qwen/Qwen3-0.6B --system "Answer in one sentence." --temperature 0.7
        tutelage chat runs/mine --retrieve handbook.txt
        echo "Who is the baker?" | tutelage chat runs/mine
    """
    if top_p == 0:
        raise typer.BadParameter("must be above 0", param_hint="--top-p")
    from tutelage.generate.sampler import Sampling

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    talk = _open(model, device, sampling, system, template_variable or [], retrieve)
    _converse(talk, _typed_lines() if sys.stdin.isatty() else _piped_lines())


def _open(
    name: str, device: str, sampling: Sampling, system: str | None, variables: list[str], corpus: str | None
) -> Talk | Continuation:
    """Load model, tokenizer, template and corpus; a model without a template only continues text, and that is said."""
    import torch

    from tutelage.chat.render import Renderer
    from tutelage.chat.tokenizer import load_tokenizer
    from tutelage.config.schema import ModelConfig
    from tutelage.generate.talk import Continuation, Talk
    from tutelage.model.load import load_model
    from tutelage.model.locate import locate_model

    source = locate_model(name)
    retriever = _retriever(source.folder, corpus)
    tokenizer = load_tokenizer(source.tokenizer_folder)
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    model = load_model(ModelConfig(path=name), device=place, dtype=dtype, source=source).model
    if tokenizer.chat_template is None:
        warn("this model has no chat template: it is a base model that continues each text you type, and forgets it")
        if system is not None:
            warn("without a chat template there is no place for a system message")
        if corpus is not None:
            warn("without a chat template there is no question for passages to stand before")
        return Continuation(model, tokenizer, sampling)
    renderer = Renderer(tokenizer, variables=_template_variables(name, variables))
    return Talk(model, renderer, sampling, system=system, retriever=retriever)


def _retriever(folder: Path, corpus: str | None) -> Retriever | None:
    """Return what puts passages of `corpus` before questions, and say where the model was trained otherwise."""
    from tutelage.config.schema import Retrieve
    from tutelage.data.retrieve import Retriever, digest_of, recall

    known = recall(folder)
    if corpus is None:
        if known is not None:
            warn(
                f"this model was trained with passages of {known.corpus} before each question; --retrieve gives it some"
            )
        return None
    retriever = Retriever(corpus, Retrieve(corpus=corpus) if known is None else known.rule(corpus))
    if known is None:
        warn("this model was not trained with passages before its questions, so it may pass them over")
    elif digest_of(retriever.files) != known.digest:
        warn(f"these are other texts than those it was trained with ({known.corpus})")
    return retriever


def _template_variables(name: str, words: list[str]) -> dict[str, Any]:
    """Return the settings of the chat template: those of the run `name`, if it is one, then those typed."""
    from tutelage.config.load import load_config
    from tutelage.files.rundir import RunDir

    run = RunDir(name)
    config = run.config if run.status_file.is_file() and run.config.is_file() else None
    overrides = [f"model.template_variables.{word}" for word in words]
    return dict(load_config(config, overrides).config.model.template_variables)


def _converse(talk: Talk | Continuation, lines: Iterator[str]) -> None:
    from tutelage.errors import TutelageError

    for line in lines:
        if not line.strip():
            continue
        if line.startswith("/"):
            if not _obey(talk, line.strip()):
                return
            continue
        try:
            _speak(talk.answer(line))
            _tell_sources(talk)
        except TutelageError as error:  # a question that cannot be asked ends the turn, not the conversation
            say_problem(error.problem, error.mend)


def _speak(pieces: Generator[str, None, None]) -> None:
    """Print an answer as it comes. Ctrl-C ends the answer, not the conversation."""
    try:
        with closing(pieces):
            for piece in pieces:
                sys.stdout.write(_printable(piece))
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" [stopped]")
    sys.stdout.write("\n")
    sys.stdout.flush()


def _tell_sources(talk: Talk | Continuation) -> None:
    from tutelage.generate.talk import Talk

    if isinstance(talk, Talk) and talk.sources:
        errors().print(f"[quiet]passages: {escape('; '.join(talk.sources))}[/]")


def _printable(text: str) -> str:
    """Return `text` without control characters: a model's words must not move the cursor or retitle the window."""
    return "".join(character for character in text if character.isprintable() or character in _READABLE)


def _obey(talk: Talk | Continuation, line: str) -> bool:
    """Follow a command; return whether the conversation goes on."""
    from tutelage.generate.talk import Talk

    command, _, rest = line.partition(" ")
    if command in ("/quit", "/exit"):
        return False
    if command == "/help":
        for name, meaning in _COMMANDS.items():
            errors().print(f"[figure]{escape(name):<14}[/] {escape(meaning)}")
    elif command in ("/system", "/reset", "/save") and not isinstance(talk, Talk):
        warn(f"{command} needs a chat template")
    elif command == "/system" and isinstance(talk, Talk):
        talk.system = rest.strip() or None
        talk.reset()
        warn("system message set; the conversation starts anew" if talk.system else "no system message; starting anew")
    elif command == "/reset" and isinstance(talk, Talk):
        talk.reset()
        warn("the conversation starts anew")
    elif command == "/save" and isinstance(talk, Talk):
        _save(talk, rest.strip())
    else:
        warn(f"there is no command {command}; /help lists them")
    return True


def _save(talk: Talk, name: str) -> None:
    from tutelage.files.jsonl import append

    if not name:
        warn("/save needs the name of a file")
    elif not talk.messages:
        warn("nothing has been said yet")
    else:
        append(Path(name).expanduser(), talk.as_row())
        warn(f"appended to {name}")


def _typed_lines() -> Iterator[str]:
    """Yield what a person types, with line editing where the platform has it; Ctrl-C or Ctrl-D at the prompt ends it."""
    with suppress(ImportError):
        import readline  # noqa: F401 - importing it gives input() history and editing

    errors().print("[quiet]/help lists the commands, /quit leaves[/]")
    while True:
        try:
            line = input("\n> ")
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            return
        yield line


def _piped_lines() -> Iterator[str]:
    for line in sys.stdin:
        yield line.rstrip("\n")
