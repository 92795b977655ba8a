"""Which layout the run trains in: asked of the model itself, before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from tutelage.chat.documents import lengths_of
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Layout
from tutelage.errors import IsolationError
from tutelage.model.probe import ProbeResult, probe_causality, probe_isolation, probe_layout
from tutelage.pack.batch import make_batches, pack_batch
from tutelage.pack.plan import Step
from tutelage.train.receipt import Check

MOST_PROBED_DOCUMENTS = 8  # the probe's cost grows with the documents; isolation fails between any two


@dataclass(frozen=True)
class LayoutChoice:
    """The layout, why, and what the probes found."""

    layout: Layout
    reason: str
    checks: tuple[Check, ...]


def choose_layout(
    asked: Layout,
    model: torch.nn.Module,
    steps: Sequence[Step],
    documents: Sequence[Rendered],
    *,
    micro_tokens: int,
    device: torch.device,
    autocast: AbstractContextManager[object],
) -> LayoutChoice:
    """Return the layout to train in: packed where the model keeps documents apart, padded otherwise.

    Raises:
        IsolationError: the layout asked for by name does not teach what each document alone teaches.
    """
    probed = [documents[index] for index in _documents_to_probe(steps, documents)]
    with autocast:
        if asked in (Layout.PADDED, Layout.SINGLE):
            apart = Check("isolation", "one document a row", True, "no two documents of a row can meet", {})
            alike = _check_rows(model, probed, asked, micro_tokens)
            return LayoutChoice(asked, "asked for by train.packing", (apart, alike))
        isolation = probe_isolation(model, pack_batch(probed).to(device))
        if not isolation.passed:
            return _unpacked(
                asked, model, probed, micro_tokens, isolation, "does not keep the documents of a pack apart"
            )
        causality = probe_causality(model, pack_batch(probed).to(device))
        if not causality.passed:
            raise IsolationError(
                f"the {causality.name} probe failed before the first step: {causality.detail}",
                mend="this model sees what it must predict, in any layout; try model.attention=eager",
            )
        equality = probe_layout(model, probed)
        if not equality.passed:
            fault = "learns something else from a document in a pack than from it alone"
            return _unpacked(asked, model, probed, micro_tokens, equality, fault)
    checks = (_check(isolation), _check(causality), _check(equality))
    return LayoutChoice(Layout.PACKED, "the probe found no influence between the documents of a pack", checks)


def _unpacked(
    asked: Layout,
    model: torch.nn.Module,
    probed: Sequence[Rendered],
    micro_tokens: int,
    found: ProbeResult,
    fault: str,
) -> LayoutChoice:
    """Return the padded layout for a model that cannot be packed; refuse where packing was asked for by name."""
    if asked is Layout.PACKED:
        raise IsolationError(
            f"train.packing asks for packing, but this model {fault}: {found.detail}",
            mend="train.packing=auto (or false) trains the same documents padded",
        )
    reason = f"this model {fault} ({found.detail}): trained padded, which is slower"
    apart = Check(found.law, "one document a row", True, reason, found.figures)
    return LayoutChoice(Layout.PADDED, reason, (apart, _check_rows(model, probed, Layout.PADDED, micro_tokens)))


def _check_rows(model: torch.nn.Module, probed: Sequence[Rendered], layout: Layout, micro_tokens: int) -> Check:
    """Compare documents that have a row each, as they will be trained, with each document alone."""
    equality = probe_layout(model, probed, make=lambda documents: make_batches(documents, layout, micro_tokens))
    if not equality.passed:
        raise IsolationError(
            f"this model learns something else from a {layout.value} row than from the document alone: {equality.detail}",
            mend="train.packing=single trains one document at a time"
            if layout is Layout.PADDED
            else "check the model's own code: it depends on something beside tokens and positions",
        )
    return _check(equality)


def _documents_to_probe(steps: Sequence[Step], documents: Sequence[Rendered]) -> list[int]:
    """Return a few documents of the first real pack that holds two, or of the first two packs."""
    for step in steps:
        for pack in step.packs:
            if len(pack) > 1:
                return list(pack[:MOST_PROBED_DOCUMENTS])
    seen = dict.fromkeys(index for step in steps for index in step.documents)
    lengths = lengths_of(documents)
    return sorted(seen, key=lambda index: int(lengths[index]))[:2]


def _check(result: ProbeResult) -> Check:
    return Check(result.law, result.name, result.passed, result.detail, result.figures)
