"""From a configuration to documents ready to be planned: read, split, render, fit, check, mix. Needs no torch.

Each row that does not get through is dropped through the ledger, for a named reason; each token that does is booked.
"""

# D documents of one source

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tutelage.chat.contract import ContractReport, check_contract
from tutelage.chat.fit import fit
from tutelage.chat.render import Renderer, RenderFailure, RenderOptions
from tutelage.chat.rendered import Rendered
from tutelage.chat.tokenizer import ChatTokenizer, load_tokenizer
from tutelage.config.schema import Config, SourceConfig
from tutelage.data.conversation import Conversation, Record
from tutelage.data.ledger import Ledger
from tutelage.data.mixture import Mixture, MixtureSource
from tutelage.data.reasons import Reason
from tutelage.data.sources import read_source
from tutelage.data.split import split_held_out

CONTRACT_CONVERSATIONS = 64

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
    records: tuple[Record, ...] = ()
    held_out_records: tuple[Record, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> ChatTokenizer:
        """The tokenizer that made the documents."""
        return self.renderer.tokenizer


@dataclass
class _Side:
    """Records and documents of one side of the held-out split, source by source."""

    records: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    documents: dict[str, list[Rendered]] = field(default_factory=lambda: defaultdict(list))


def prepare(config: Config, *, renderer: Renderer | None = None, progress: Progress | None = None) -> Prepared:
    """Read, split, render, fit and check everything that `config` names, without loading a model.

    Raises:
        DataError: unusable rows beyond `data.max_bad_fraction`, or a row too long under the policy `error`.
        TemplateError: the render contract is broken, or there is no template for the conversations.
    """
    ledger = Ledger()
    renderer = renderer or build_renderer(config)
    train, held_out = _Side(), _Side()
    settings: dict[str, SourceConfig] = {}
    for source in config.data.train:
        records = read_source(source, ledger, max_bad_fraction=config.data.max_bad_fraction)
        name = records[0].source if records else _newest_account(ledger)
        settings[name] = source
        train.records[name], held_out.records[name] = split_held_out(
            records, config.data.held_out_fraction, seed=config.train.seed
        )
    for source in config.data.held_out:
        records = read_source(source, ledger, max_bad_fraction=config.data.max_bad_fraction)
        held_out.records[records[0].source if records else _newest_account(ledger)] += records
    contract = _check_contract(renderer, [*_all(train), *_all(held_out)])
    for side, stage in ((train, "train"), (held_out, "held_out")):
        for name, records in side.records.items():
            documents = _render(renderer, records, config, ledger, stage, progress)
            side.documents[name] = documents
    ledger.check_balanced()
    mixture = Mixture([_mixed(name, train.documents[name], source) for name, source in settings.items()], config.train.seed)
    return Prepared(
        documents=tuple(d for name in settings for d in train.documents[name]),
        held_out=tuple(d for documents in held_out.documents.values() for d in documents),
        sources=tuple(ledger.sources),
        mixture=mixture,
        ledger=ledger,
        contract=contract,
        renderer=renderer,
        records=tuple(_all(train)),
        held_out_records=tuple(_all(held_out)),
    )


def build_renderer(config: Config) -> Renderer:
    """Return the renderer of the configured tokenizer, template and loss options."""
    raise NotImplementedError


def _newest_account(ledger: Ledger) -> str:
    return list(ledger.sources)[-1]


def _all(side: _Side) -> list[Record]:
    return [record for records in side.records.values() for record in records]
