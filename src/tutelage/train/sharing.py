"""Whether prefixes that documents share are computed once: asked of the configuration, of the data, and of the model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice, pairwise

import numpy as np
import numpy.typing as npt
import torch

from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Config, Layout
from tutelage.errors import IsolationError
from tutelage.model.load import has_dropout
from tutelage.model.probe import MOST_LAYOUT_TOKENS, probe_layout
from tutelage.pack.batch import Batch, pack_batch
from tutelage.pack.plan import PlanOptions, Step
from tutelage.pack.tree import SharedPrefixes, common_prefix, find_shared_prefixes
from tutelage.train.receipt import Check

LEAST_REDUCTION = 1.2  # below that, attention in branches costs what the shared tokens save
PROBED_PACKS = 16  # that the smallest tree is looked for in


@dataclass(frozen=True)
class Sharing:
    """The prefixes that are computed once, None for none, and why."""

    prefixes: SharedPrefixes | None
    reason: str


def find_sharing(documents: Sequence[Rendered], config: Config) -> Sharing:
    """Return the prefixes that are worth sharing, unless the configuration stands against it."""
    train = config.train
    if not train.shared_prefixes:
        return Sharing(None, "off (train.shared_prefixes)")
    if train.packing in (Layout.PADDED, Layout.SINGLE):
        return Sharing(None, f"none: documents have a row each (train.packing={train.packing.value})")
    if train.neftune_alpha:
        return Sharing(None, "none: NEFTune noise belongs to each document (train.neftune_alpha)")
    prefixes = find_shared_prefixes(documents, PlanOptions.from_config(config).pack_tokens)
    return Sharing(prefixes, "") if prefixes else Sharing(None, "no rows share a prefix worth it")


def require_enough(found: Sharing, order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Sharing:
    """Drop what was found where not even all of it together would be worth it in an epoch, before steps are planned with it.

    Shapes: order [M] documents of the epoch, lengths [D] their tokens.
    """
    if found.prefixes is None:
        return found
    num_tokens = int(lengths[order].sum())
    most = num_tokens / max(1, num_tokens - found.prefixes.most_saved_tokens(order))
    if most < LEAST_REDUCTION:
        return Sharing(None, f"no rows share a prefix worth it: at most {most:.2f}x fewer tokens")
    return found


def judge_sharing(found: Sharing, num_tokens: int, computed_tokens: int) -> Sharing:
    """Keep what was found if the steps that were planned with it compute far fewer tokens than they hold."""
    reduction = num_tokens / computed_tokens
    if reduction < LEAST_REDUCTION:
        return Sharing(None, f"no rows share a prefix worth it: {reduction:.2f}x fewer tokens")
    return Sharing(
        found.prefixes, f"{reduction:.1f}x fewer tokens, {computed_tokens:,} computed of {num_tokens:,} trained on"
    )


def ask_model(
    found: Sharing,
    model: torch.nn.Module,
    steps: Sequence[Step],
    documents: Sequence[Rendered],
    *,
    layout: Layout,
    autocast: AbstractContextManager[object],
) -> tuple[Sharing, Check | None]:
    """Return whether the model may be trained on the trees that were `found`, and what its probe showed.

    A few documents of a real tree are computed through it and each alone, and must have the same losses and gradients.
    """
    if layout is not Layout.PACKED:
        return Sharing(None, f"none: documents are trained {layout.value}"), None
    if has_dropout(model):
        return Sharing(None, "none: dropout is drawn for each document"), None
    try:
        with autocast:
            probed = probe_layout(model, _small_tree(steps, documents), _as_tree, name="shared prefixes")
    except IsolationError as refused:
        return Sharing(None, f"none: {refused.problem}"), None
    if not probed.passed:
        return Sharing(None, f"none: in a tree of this model, {probed.detail}"), None
    return found, Check(probed.law, probed.name, probed.passed, probed.detail, probed.figures)


def _as_tree(documents: Sequence[Rendered]) -> list[Batch]:
    return [pack_batch(documents, [0, *(common_prefix(one, other) for one, other in pairwise(documents))])]


def _small_tree(steps: Sequence[Step], documents: Sequence[Rendered]) -> list[Rendered]:
    """Return the shortest two documents of the first packs that share a prefix, and what follows them as far as a probe goes."""
    packs = (
        (pack, shared) for step in steps for pack, shared in zip(step.packs, step.shared, strict=True) if any(shared)
    )
    shortest: list[Rendered] = []
    for pack, shared in islice(packs, PROBED_PACKS):
        for at in (number for number, common in enumerate(shared) if common):
            end = at + 1
            while end < len(pack) and shared[end]:
                end += 1
            tree = [documents[index] for index in pack[at - 1 : end]]
            if not shortest or _tokens(tree[:2]) < _tokens(shortest[:2]):
                shortest = tree
    fitting = [
        d for number, d in enumerate(shortest) if number < 2 or _tokens(shortest[: number + 1]) <= MOST_LAYOUT_TOKENS
    ]
    # Copies of one row have one name, by which the probe would take them for one document.
    return [replace(d, record_id=f"{d.record_id}/{number}") for number, d in enumerate(fitting)]


def _tokens(documents: Sequence[Rendered]) -> int:
    return sum(map(len, documents))
