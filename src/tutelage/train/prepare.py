"""From a configuration to documents ready to be planned: read, split, render, fit, check, mix. Needs no torch.

Each row that does not get through is dropped through the ledger, for a named reason; each token that does is booked.
"""

# D documents of one source

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
from tutelage.train import cache
from tutelage.train.shards import Gathered, Trainable

CONTRACT_CONVERSATIONS = 64
PROGRESS_RECORDS = 256
SHOWN_RECORDS = 256

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, how much is done, how much there is)."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything a run knows before a model is loaded.

    `documents` are concatenated source after source, in the order in which `mixture` numbers them.
    `contract` is None when there is no conversation among the records, so that no template is in use.
    `records` and `held_out_records` are the first `SHOWN_RECORDS` of either side, for prompts to show the model at work.
    `news` says where the documents came from, in lines for people.
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
    news: tuple[str, ...] = ()

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

    What was prepared before, of the same files with the same settings, comes from the cache (see `cache`); nothing but
    `news` differs. A `renderer` of the caller's own goes without the cache.
    `lenient` goes on past faulty rows, rows too long and a broken contract, which then stand in the ledger and in the
    contract's report: for `tutelage check`, which tells them all.

    Raises:
        DataError: unusable rows beyond `data.max_bad_fraction`, or a row too long under the policy `error`.
        TemplateError: the render contract is broken, or there is no template for the conversations.
    """
    if lenient:
        config = _without_limits(config)
    own = renderer or build_renderer(config)
    tell = progress or (lambda what, done, count: None)
    entry, news = cache.find_entry(config, own) if renderer is None else (None, [])
    found = None
    if entry is not None:
        found, said = cache.load(entry, config)
        news += said
    came = "made anew" if found is None else f"from the cache (data.cache={config.data.cache})"
    if found is None:
        found = _gather(config, own, tell, lenient=lenient)
        news += cache.store(entry, found) if entry is not None else []
    news.append(f"prepared documents: {came}, {len(found.documents) + len(found.held_out):,} documents")
    return _prepared(found, config, own, tuple(news))


def _prepared(found: Gathered, config: Config, renderer: Renderer, news: tuple[str, ...]) -> Prepared:
    names = tuple(found.ledger.sources)
    by_source: dict[str, list[Rendered]] = {name: [] for name in names}
    for document in found.documents:
        by_source[document.source].append(document)
    settings = zip(names, config.data.train, strict=False)  # held-out sources come behind those to train on
    mixture = Mixture(
        [_mixture_source(name, by_source[name], source) for name, source in settings], seed=config.train.seed
    )
    return Prepared(
        documents=found.documents,
        held_out=found.held_out,
        sources=names,
        mixture=mixture,
        ledger=found.ledger,
        contract=found.contract,
        renderer=renderer,
        records=found.records,
        held_out_records=found.held_out_records,
        news=news,
    )


def _gather(config: Config, renderer: Renderer, tell: Progress, *, lenient: bool) -> Gathered:
    """Read, split, render, fit and check."""
    ledger = Ledger()
    train: list[Trainable] = []
    held_out: list[Trainable] = []
    for number, source in enumerate(config.data.train):
        tell("reading", number, len(config.data.train))
        for record in _read(source, ledger, config):
            away = is_held_out(record, config.data.held_out_fraction, seed=config.train.seed)
            (held_out if away else train).append(record)
    tell("reading", len(config.data.train), len(config.data.train))
    for source in config.data.held_out:
        held_out += _read(source, ledger, config)
    contract = _contract(renderer, [*train, *held_out])
    if contract is not None and not lenient:
        contract.raise_if_broken()

    documents, oversized = _render(renderer, train, config, ledger, "train", tell)
    held_out_documents, held_out_oversized = _render(renderer, held_out, config, ledger, "held_out", tell)
    ledger.check_balanced()
    for account in ledger.sources.values():
        judge(account, ledger, config.data.max_bad_fraction)  # now with the rows that the template refused
    return Gathered(
        documents=tuple(documents),
        held_out=tuple(held_out_documents),
        ledger=ledger,
        contract=contract,
        records=_shown(train),
        held_out_records=_shown(held_out),
        oversized=oversized + held_out_oversized,
    )


def _shown(records: Sequence[Trainable]) -> tuple[Trainable, ...]:
    return tuple(replace(record, metadata={}) for record in records[:SHOWN_RECORDS])


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


def _read(source: SourceConfig, ledger: Ledger, config: Config) -> list[Trainable]:
    records = read_source(source, ledger, max_bad_fraction=config.data.max_bad_fraction)
    trainable = [record for record in records if not isinstance(record, PreferencePair)]
    if len(trainable) < len(records):
        name = list(ledger.sources)[-1]
        raise ConfigError(
            f"source {name!r} holds preference pairs, which supervised fine-tuning cannot use",
            mend="map its columns to train on the chosen answers: kind: prompt_completion, columns: {completion: chosen}",
        )
    return trainable


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
) -> tuple[list[Rendered], int]:
    """Return the documents of `records` that can be learned from, and how many were too long for `data.max_tokens`;
    book what became of each record's tokens."""
    documents: list[Rendered] = []
    oversized = 0
    for number, (record, result) in enumerate(zip(records, renderer.render_many(records), strict=True)):
        if number % PROGRESS_RECORDS == 0:
            tell(f"rendering {stage.replace('_', ' ')}", number, len(records))
        if isinstance(result, RenderFailure):
            ledger.drop(record, result.cause, str(result.problem))
            continue
        if isinstance(record, Document):
            fitted = result = [window for text in result for window in windows(text, config.data.max_tokens)]
        else:
            oversized += sum(len(document) > config.data.max_tokens for document in result)
            fitted = fit(record, result, config.data.max_tokens, config.data.too_long, renderer, ledger)
        kept = [document for document in fitted if document.supervised_tokens]
        if fitted and not kept:
            ledger.drop(record, Reason.NOTHING_TO_TRAIN, "no token of it carries loss")
        _book(ledger, record.source, result, kept, stage)
        documents += kept
    tell(f"rendering {stage.replace('_', ' ')}", len(records), len(records))
    return documents, oversized


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
