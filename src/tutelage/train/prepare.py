"""From a configuration to documents ready to be planned: read, split, render, fit, check, mix. Needs no torch.

Rows stream through: they are read, made into documents a chunk at a time, here or by worker processes, and put on disk a
shard at a time, so that memory does not grow with the data. Each row that does not get through is dropped through the
ledger, for a named reason; each token that does is booked.
"""

# D documents of one source

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from tutelage.chat.contract import ContractReport, check_contract
from tutelage.chat.documents import lengths_of
from tutelage.chat.render import Renderer, RenderOptions
from tutelage.chat.rendered import Rendered
from tutelage.chat.template import load_template, special_tokens_needed
from tutelage.chat.tokenizer import ChatTokenizer, load_tokenizer
from tutelage.config.schema import Config, SourceConfig, TooLong
from tutelage.data.conversation import Conversation
from tutelage.data.ledger import Ledger
from tutelage.data.mixture import Mixture, MixtureSource
from tutelage.data.retrieve import ANSWERED, LEFT_OUT, ROWS, open_retriever
from tutelage.data.sources import find_files, judge, judge_so_far, open_rows
from tutelage.data.tables import HUB_PREFIX, is_saved_data_set
from tutelage.errors import DataError
from tutelage.model.locate import locate_model
from tutelage.train import cache
from tutelage.train.chunks import HELD_OUT, STAGES, TRAIN, Chunk, Kit, Made, Trainable, chunks_of, make
from tutelage.train.shards import Gathered, Shelf
from tutelage.train.workers import Workers

CONTRACT_CONVERSATIONS = 64
SHOWN_RECORDS = 256

MOST_AUTO_WORKERS = 16  # one process cannot read rows for more
WORTH_WORKERS_BYTES = 8 << 20  # some seconds of work; a worker begins within one
GZIP_RATIO = 4  # of JSON, about

Progress = Callable[[str, int, int], None]
"""Called as (what is being done, how much is done, how much there is as far as is known)."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything a run knows before a model is loaded.

    `documents` are concatenated source after source, in the order in which `mixture` numbers them.
    `contract` is None when there is no conversation among the records, so that no template is in use.
    `records` and `held_out_records` are the first `SHOWN_RECORDS` of either side, for prompts to show the model at work.
    `news` says where the documents came from, in lines for people. `corpus` are the SHA-256 of the texts that passages were taken from.
    """

    documents: Sequence[Rendered]
    held_out: Sequence[Rendered]
    sources: tuple[str, ...]
    mixture: Mixture
    ledger: Ledger
    contract: ContractReport | None
    renderer: Renderer
    records: tuple[Trainable, ...]
    held_out_records: tuple[Trainable, ...]
    news: tuple[str, ...] = ()
    corpus: Mapping[str, str] = field(default_factory=dict)

    @property
    def tokenizer(self) -> ChatTokenizer:
        """The tokenizer that made the documents."""
        return self.renderer.tokenizer

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest document, held out or not."""
        return max(int(lengths_of(side).max(initial=0)) for side in (self.documents, self.held_out))

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
    found, corpus = None, {}
    if entry is not None:
        found, said = cache.load(entry, config)
        corpus = entry.corpus
        news += said
    came = f"from the cache (data.cache={config.data.cache})"
    if found is None:
        count, reason = num_workers(config) if renderer is None else (0, "a renderer of the caller's own")
        came = f"made anew by {count} worker processes ({reason})" if count else f"made anew in this process ({reason})"
        kit = Kit(config, own, open_retriever(config.data.retrieve))
        corpus = {} if kit.retriever is None else kit.retriever.files
        found, said = _made_anew(kit, entry, count, tell, lenient=lenient)
        news += said
        news += cache.make_room(entry, 1e9 * config.data.cache_gigabytes) if entry is not None else []
    if config.data.retrieve.corpus is not None:
        news.append(_retrieved(found.ledger, config.data.retrieve.corpus))
    news.append(f"prepared documents: {came}, {len(found.documents) + len(found.held_out):,} documents")
    return replace(_prepared(found, config, own), news=tuple(news), corpus=corpus)


def _retrieved(ledger: Ledger, corpus: str) -> str:
    """Return in words what passages the rows got, and what was left out so that no row is given its own answer unseen."""
    counts = ledger.totals.retrieved
    return (
        f"passages of {corpus} stand before the questions of {counts[ROWS]:,} rows; in {counts[ANSWERED]:,} of them they hold the answer "
        f"word for word; {counts[LEFT_OUT]:,} passages that hold question and answer of the row itself were left out"
    )


def _prepared(found: Gathered, config: Config, renderer: Renderer) -> Prepared:
    names = tuple(found.ledger.sources)
    settings = zip(names, config.data.train, strict=False)  # held-out sources come behind those to train on
    sources, start = [], 0
    for name, source in settings:
        sources.append(_mixture_source(name, found, start, source))
        start += sources[-1].num_documents
    return Prepared(
        documents=found.documents,
        held_out=found.held_out,
        sources=names,
        mixture=Mixture(sources, seed=config.train.seed),
        ledger=found.ledger,
        contract=found.contract,
        renderer=renderer,
        records=found.records,
        held_out_records=found.held_out_records,
    )


def _mixture_source(name: str, found: Gathered, start: int, source: SourceConfig) -> MixtureSource:
    booked = found.ledger.sources[name].tokens.get(TRAIN)
    own = slice(start, start + (0 if booked is None else booked.documents))
    return MixtureSource(
        name=name,
        num_documents=own.stop - own.start,
        tokens=found.documents.lengths[own],
        supervised=found.documents.supervised[own],
        weight=source.weight,
        share=source.share,
        epochs=source.epochs,
    )


def num_workers(config: Config) -> tuple[int, str]:
    """Return how many worker processes to prepare with, 0 for none, and why."""
    if config.data.workers is not None:
        return config.data.workers, f"data.workers={config.data.workers}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = min(MOST_AUTO_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if own < 2:
        return 0, "one core"
    size = _data_bytes(config)
    if size is not None and size < WORTH_WORKERS_BYTES:
        return 0, f"{size / 2**20:.1f} MiB are read before workers have begun"
    return own, f"{cores} cores"


def _data_bytes(config: Config) -> int | None:
    """Return about how many bytes of rows there are to read; None where nobody knows."""
    size = 0
    for source in (*config.data.train, *config.data.held_out):
        if source.path.startswith(HUB_PREFIX) or is_saved_data_set(Path(source.path)):
            return None
        try:
            files = find_files(source.path, split=source.split)
        except DataError:
            return 0  # reading will say it, and better
        size += sum(file.stat().st_size * (GZIP_RATIO if file.suffix == ".gz" else 1) for file in files)
    return size


def _made_anew(
    kit: Kit, entry: cache.Entry | None, count: int, tell: Progress, *, lenient: bool
) -> tuple[Gathered, list[str]]:
    """Return what preparation gives, kept in the cache where there is an entry to make, and what there is to say."""
    with cache.Maker(entry) as maker:
        shelves = {stage: Shelf(stage, maker.folder) for stage in STAGES}
        with Workers(kit, count) if count else nullcontext() as workers:
            gathered = _Gathering(kit, shelves, tell, lenient=lenient).run(workers)
        problems = [shelf.problem for shelf in shelves.values() if shelf.problem]
        corpus = {} if kit.retriever is None else kit.retriever.files
        maker.keep(gathered, corpus=corpus, problem=problems[0] if problems else "")
    return gathered, maker.news


class _Gathering:
    """One pass over all rows of all sources."""

    def __init__(self, kit: Kit, shelves: dict[str, Shelf], tell: Progress, *, lenient: bool) -> None:
        self._kit = kit
        self._shelves = shelves
        self._tell = tell
        self._lenient = lenient
        self._ledger = Ledger()
        self._records: dict[str, list[Trainable]] = {stage: [] for stage in STAGES}
        self._conversations: dict[str, list[Trainable]] = {stage: [] for stage in STAGES}
        self._contract: ContractReport | None = None
        self._read = self._done = self._oversized = 0

    def run(self, workers: Workers | None) -> Gathered:
        """Read, make and take everything.

        Raises: DataError and TemplateError as `prepare` does.
        """
        chunks = self._chunks()
        for made in workers.map(chunks) if workers else (make(self._kit, chunk) for chunk in chunks):
            self._take(made)
        self._tell("preparing rows", self._done, self._done)
        self._check_contract()
        self._ledger.check_balanced()
        for account in self._ledger.sources.values():
            judge(account, self._ledger, self._kit.config.data.max_bad_fraction)
        return Gathered(
            documents=self._shelves[TRAIN].documents(),
            held_out=self._shelves[HELD_OUT].documents(),
            ledger=self._ledger,
            contract=self._contract,
            records=tuple(self._records[TRAIN]),
            held_out_records=tuple(self._records[HELD_OUT]),
            oversized=self._oversized,
        )

    def _chunks(self) -> Iterator[Chunk]:
        for number, source in enumerate(self._kit.sources):
            account, rows = open_rows(source, self._ledger)
            for chunk in chunks_of(rows, number, account):
                self._read += len(chunk.rows)
                yield replace(
                    chunk,
                    shown=SHOWN_RECORDS - min(map(len, self._records.values())),
                    conversations=CONTRACT_CONVERSATIONS - len(self._conversations[TRAIN]),
                )

    def _take(self, made: Made) -> None:
        for stage, columns in made.columns.items():
            self._shelves[stage].add(columns)
            self._records[stage] += made.records[stage][: SHOWN_RECORDS - len(self._records[stage])]
            more = CONTRACT_CONVERSATIONS - len(self._conversations[stage])
            self._conversations[stage] += made.conversations[stage][:more]
        self._oversized += made.oversized
        self._ledger.merge(made.ledger)
        for name in made.ledger.sources:
            self._done += made.ledger.sources[name].rows
            judge_so_far(self._ledger.sources[name], self._ledger, self._kit.config.data.max_bad_fraction)
        if len(self._conversations[TRAIN]) == CONTRACT_CONVERSATIONS:
            self._check_contract()
        self._tell("preparing rows", self._done, self._read)

    def _check_contract(self) -> None:
        """Check the render contract, once, on the first conversations; they use every template that the run does."""
        first = [*self._conversations[TRAIN], *self._conversations[HELD_OUT]]
        conversations = [record for record in first if isinstance(record, Conversation)]
        if self._contract is None and conversations:
            self._contract = check_contract(self._kit.renderer, conversations[:CONTRACT_CONVERSATIONS])
            if not self._lenient:
                self._contract.raise_if_broken()


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
