"""From a configuration to documents ready to be planned: read, split, render, fit, check, mix. Needs no torch.

Each row that does not get through is dropped through the ledger, for a named reason; each token that does is booked.
"""

# D documents of one source

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from tutelage.chat.contract import ContractReport, check_contract
from tutelage.chat.fit import fit, windows
from tutelage.chat.render import Renderer, RenderFailure, RenderOptions
from tutelage.chat.rendered import Rendered
from tutelage.chat.template import load_template, special_tokens_needed
from tutelage.chat.tokenizer import ChatTokenizer, load_tokenizer
from tutelage.config.schema import Config, SourceConfig, TooLong
from tutelage.data.conversation import Conversation, Document, PreferencePair
from tutelage.data.ledger import Ledger
from tutelage.data.mixture import Mixture, MixtureSource
from tutelage.data.reasons import Reason
from tutelage.data.sources import judge, read_source
from tutelage.data.split import is_held_out
from tutelage.errors import ConfigError
from tutelage.model.locate import locate_model

CONTRACT_CONVERSATIONS = 64
PROGRESS_RECORDS = 256

Trainable: TypeAlias = Conversation | Document

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, how much is done, how much there is)."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything a run knows before a model is loaded.

    `documents` are concatenated source after source, in the order in which `mixture` numbers them.
    `contract` is None when there is no conversation among the records, so that no template is in use.
    """

    documents: tuple[Rendered, ...]
    held_out: tuple[Rendered, ...]
    sources: tuple[str, ...]
    mixture: Mixture
    ledger: Ledger
    contract: ContractReport | None
    renderer: Renderer
    records: tuple[Trainable, ...]
    held_out_records: tuple[Trainable, ...]

    @property
    def tokenizer(self) -> ChatTokenizer:
        """The tokenizer that made the documents."""
        return self.renderer.tokenizer

    @property
    def new_ids(self) -> tuple[int, ...]:
        """Tokens that the template brought and the model does not know yet."""
        return self.tokenizer.new_ids


def prepare(
    config: Config, *, renderer: Renderer | None = None, progress: Progress | None = None, lenient: bool = False
) -> Prepared:
    """Read, split, render, fit and check everything that `config` names, without loading a model.

    `lenient` goes on past faulty rows, rows too long and a broken contract, which then stand in the ledger and in the
    contract's report: for `tutelage check`, which tells them all.

    Raises:
        DataError: unusable rows beyond `data.max_bad_fraction`, or a row too long under the policy `error`.
        TemplateError: the render contract is broken, or there is no template for the conversations.
    """
    tell = progress or (lambda what, done, count: None)
    if lenient:
        config = _without_limits(config)
    renderer = renderer or build_renderer(config)
    ledger = Ledger()
    train: list[Trainable] = []
    held_out: list[Trainable] = []
    settings: list[tuple[str, SourceConfig]] = []
    for number, source in enumerate(config.data.train):
        tell("reading", number, len(config.data.train))
        name, records = _read(source, ledger, config)
        settings.append((name, source))
        for record in records:
            away = is_held_out(record, config.data.held_out_fraction, seed=config.train.seed)
            (held_out if away else train).append(record)
    tell("reading", len(config.data.train), len(config.data.train))
    for source in config.data.held_out:
        held_out += _read(source, ledger, config)[1]
    contract = _contract(renderer, [*train, *held_out])
    if contract is not None and not lenient:
        contract.raise_if_broken()

    documents = _render(renderer, train, config, ledger, "train", tell)
    held_out_documents = _render(renderer, held_out, config, ledger, "held_out", tell)
    ledger.check_balanced()
    for account in ledger.sources.values():
        judge(account, ledger, config.data.max_bad_fraction)  # now with the rows that the template refused
    by_source = [[d for d in documents if d.source == name] for name, _ in settings]
    mixture = Mixture(
        [_mixture_source(name, own, source) for (name, source), own in zip(settings, by_source, strict=True)],
        seed=config.train.seed,
    )
    return Prepared(
        documents=tuple(document for own in by_source for document in own),
        held_out=tuple(held_out_documents),
        sources=tuple(ledger.sources),
        mixture=mixture,
        ledger=ledger,
        contract=contract,
        renderer=renderer,
        records=tuple(train),
        held_out_records=tuple(held_out),
    )


def build_renderer(config: Config) -> Renderer:
    """Return the renderer of the configured tokenizer, template and loss options.

    A template of another name brings its control strings as new special tokens: `renderer.tokenizer.new_ids`.

    Raises: ConfigError when there is no such template, or it does not read one of `model.template_variables`.
    """
    source = locate_model(config.model.path, revision=config.model.revision, weights=False)
    tokenizer = load_tokenizer(source.tokenizer_folder)
    template = None
    if config.model.template is not None:
        template = load_template(config.model.template)
        tokenizer = tokenizer.with_special_tokens(special_tokens_needed(template, tokenizer))
    options = RenderOptions.from_config(config.data)
    return Renderer(tokenizer, template, options, variables=config.model.template_variables)


def _without_limits(config: Config) -> Config:
    """Return the configuration with nothing in it that stops a run for a row."""
    too_long = TooLong.DROP if config.data.too_long is TooLong.ERROR else config.data.too_long
    return config.model_copy(
        update={"data": config.data.model_copy(update={"max_bad_fraction": 1.0, "too_long": too_long})}
    )


def _read(source: SourceConfig, ledger: Ledger, config: Config) -> tuple[str, list[Trainable]]:
    """Return the source's unique name and its records."""
    records = read_source(source, ledger, max_bad_fraction=config.data.max_bad_fraction)
    name = list(ledger.sources)[-1]
    trainable = [record for record in records if not isinstance(record, PreferencePair)]
    if len(trainable) < len(records):
        raise ConfigError(
            f"source {name!r} holds preference pairs, which supervised fine-tuning cannot use",
            mend="map its columns to train on the chosen answers: kind: prompt_completion, columns: {completion: chosen}",
        )
    return name, trainable


def _contract(renderer: Renderer, records: Sequence[Trainable]) -> ContractReport | None:
    """Check the render contract on the first conversations; they use every template that the run does."""
    conversations = [record for record in records if isinstance(record, Conversation)]
    if not conversations:
        return None
    return check_contract(renderer, conversations[:CONTRACT_CONVERSATIONS])


def _mixture_source(name: str, documents: Sequence[Rendered], source: SourceConfig) -> MixtureSource:
    return MixtureSource(
        name=name,
        num_documents=len(documents),
        tokens=np.array([len(document) for document in documents], dtype=np.int64),
        supervised=np.array([document.supervised_tokens for document in documents], dtype=np.int64),
        weight=source.weight,
        share=source.share,
        epochs=source.epochs,
    )


def _render(
    renderer: Renderer, records: Sequence[Trainable], config: Config, ledger: Ledger, stage: str, tell: Progress
) -> list[Rendered]:
    """Return the documents of `records` that can be learned from, and book what became of each record's tokens."""
    documents: list[Rendered] = []
    for number, (record, result) in enumerate(zip(records, renderer.render_many(records), strict=True)):
        if number % PROGRESS_RECORDS == 0:
            tell(f"rendering {stage.replace('_', ' ')}", number, len(records))
        if isinstance(result, RenderFailure):
            ledger.drop(record, result.cause, str(result.problem))
            continue
        if isinstance(record, Document):
            fitted = result = [window for text in result for window in windows(text, config.data.max_tokens)]
        else:
            fitted = fit(record, result, config.data.max_tokens, config.data.too_long, renderer, ledger)
        kept = [document for document in fitted if document.supervised_tokens]
        if fitted and not kept:
            ledger.drop(record, Reason.NOTHING_TO_TRAIN, "no token of it carries loss")
        _book(ledger, record.source, result, kept, stage)
        documents += kept
    tell(f"rendering {stage.replace('_', ' ')}", len(records), len(records))
    return documents


def _book(ledger: Ledger, source: str, rendered: Sequence[Rendered], kept: Sequence[Rendered], stage: str) -> None:
    counts = {
        name: (sum(map(len, group)), sum(document.supervised_tokens for document in group), len(group))
        for name, group in (("rendered", rendered), (stage, kept))
    }
    for name, (tokens, supervised, number) in counts.items():
        ledger.book_tokens(source, name, tokens, supervised, documents=number)
    (tokens, supervised, number), (kept_tokens, kept_supervised, kept_number) = counts["rendered"], counts[stage]
    if (tokens, supervised) != (kept_tokens, kept_supervised):
        ledger.book_tokens(
            source, "dropped", tokens - kept_tokens, supervised - kept_supervised, documents=number - kept_number
        )
