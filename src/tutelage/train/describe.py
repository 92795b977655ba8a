"""What the run sets out to do, in figures: the plan file, and pictures of a few masks."""

# D documents

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tutelage.chat.documents import lengths_of, supervised_of
from tutelage.chat.pieces import Pieces
from tutelage.chat.rendered import Part, Rendered
from tutelage.config.schema import Config
from tutelage.train.plan import RunPlan
from tutelage.train.prepare import Prepared

Int64s = npt.NDArray[np.int64]

HISTOGRAM_BINS = 32
SHOWN_TOKENS = 400


def describe_plan(prepared: Prepared, plan: RunPlan, config: Config) -> dict[str, Any]:
    """Return the content of `plan.json` that is known without a model."""
    lengths = lengths_of(prepared.documents)
    supervised = supervised_of(prepared.documents)
    books = prepared.ledger.totals
    return {
        "documents": len(prepared.documents),
        "held_out_documents": len(prepared.held_out),
        "tokens": int(lengths.sum()),
        "supervised_tokens": int(supervised.sum()),
        "longest_document_tokens": int(lengths.max(initial=0)),
        "dropped_rows": dict(books.dropped),
        "dropped_tokens": books.tokens["dropped"].tokens if "dropped" in books.tokens else 0,
        "steps": plan.num_steps,
        "epochs": config.train.epochs if config.train.max_steps is None else _epochs(prepared, plan),
        "planned_tokens": plan.num_tokens,
        "computed_tokens": plan.computed_tokens,
        "shared_prefixes": plan.sharing.reason,
        "packs": plan.num_packs,
        "pack_tokens": plan.slot_tokens,
        "fill": plan.fill,
        "shares": _shares(prepared, plan, lengths, supervised),
        "histograms": {"document_tokens": _histogram(lengths), "supervised_tokens": _histogram(supervised)},
    }


def _epochs(prepared: Prepared, plan: RunPlan) -> float:
    """Return how many epochs a run of `train.max_steps` steps has, to the document."""
    done = sum(
        len(step.documents) for step, epoch in zip(plan.steps, plan.epochs, strict=True) if epoch == plan.epochs[-1]
    )
    return plan.epochs[-1] + done / len(prepared.mixture.epoch(plan.epochs[-1]))


def _shares(prepared: Prepared, plan: RunPlan, lengths: Int64s, supervised: Int64s) -> list[dict[str, Any]]:
    """Return what each source really gives to the run's steps, beside what was asked of it."""
    drawn = np.fromiter((i for step in plan.steps for i in step.documents), dtype=np.int64)
    times_seen = np.bincount(drawn, minlength=len(lengths))
    total = max(1, int((times_seen * supervised).sum()))
    shares = []
    start = 0
    for source in prepared.mixture.sources:
        own = slice(start, start + source.num_documents)
        start += source.num_documents
        trained = int((times_seen[own] * supervised[own]).sum())
        shares.append(
            {
                "source": source.name,
                "asked": source.share,
                "realised": trained / total,
                "documents": int(times_seen[own].sum()),
                "tokens": int((times_seen[own] * lengths[own]).sum()),
                "supervised_tokens": trained,
            }
        )
    return shares


def picture_masks(prepared: Prepared) -> dict[str, Any]:
    """Return the content of `masks.json`: the first documents, the longest and the least supervised, token by token."""
    documents, pieces = prepared.documents, Pieces(prepared.tokenizer)
    chosen: dict[int, str] = {}
    if documents:
        lengths = lengths_of(documents)
        share = supervised_of(documents) / lengths
        reasons = [(0, "first"), (min(1, len(lengths) - 1), "second")]
        for index, why in [*reasons, (int(lengths.argmax()), "longest"), (int(share.argmin()), "least supervised")]:
            chosen.setdefault(index, why)
    return {"documents": [_picture(documents[i], why, pieces) for i, why in chosen.items()]}


def _picture(document: Rendered, why: str, pieces: Pieces) -> dict[str, Any]:
    shown = slice(0, SHOWN_TOKENS)
    columns = (document.weights[shown], document.message[shown], document.part[shown])
    return {
        "where": document.where,
        "source": document.source,
        "why": why,
        "num_tokens": len(document),
        "supervised_tokens": document.supervised_tokens,
        "tokens": [
            [piece.text, float(weight), int(message), _role(document, int(message)), Part(part).name.lower()]
            for piece, weight, message, part in zip(pieces.of(document.ids[shown]), *columns, strict=True)
        ],
    }


def _role(document: Rendered, message: int) -> str:
    return document.roles[message] if 0 <= message < len(document.roles) else ""


def _histogram(values: Int64s) -> dict[str, list[int]]:
    top = int(values.max(initial=1))
    width = max(1, math.ceil((top + 1) / HISTOGRAM_BINS))
    edges = list(range(0, width * (math.ceil((top + 1) / width) + 1), width))
    counts, _ = np.histogram(values, bins=edges)
    return {"edges": edges, "counts": [int(count) for count in counts]}
