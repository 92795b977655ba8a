"""Attention that stays inside a document, for any model that takes its attention from transformers' public interface.

`register_attention()` adds one implementation, "tutelage", next to transformers' own "sdpa". Outside of
`document_attention(batch)` it is "sdpa" (plus soft-capping and attention sinks, which sdpa lacks). Inside, the model's own
mask construction returns a `DocumentMask` in place of a T x T tensor; the model hands it down to each layer like any mask, and
the attention function runs document by document, or branch by branch where documents share a prefix. Because the boundaries
travel as the mask, a layer that is computed again by gradient checkpointing sees the same ones.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tutelage.config.schema import Layout
from tutelage.errors import IsolationError
from tutelage.pack.batch import Batch
from tutelage.pack.tree import Tree

# B rows, T tokens, L tokens of one document, H query heads, K key heads, E channels of a head

NAME = "tutelage"

_batch: ContextVar[Batch | None] = ContextVar("tutelage_batch", default=None)


@dataclass(frozen=True)
class AttentionChoice:
    """Which attention implementation a model gets, and why."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class DocumentMask:
    """Where the documents of a packed stream [1, T] lie, and which keys a query may see inside its own document.

    `batch` has their boundaries, on the host and on the device. `local_size` is the attention window or chunk in tokens, None
    when all earlier tokens are seen. `rule` builds the boolean mask [1, 1, L, L] of a document (start, length) for those that
    causality alone does not describe.
    """

    batch: Batch
    local_size: int | None
    always_masked: bool
    rule: Callable[[int, int], Tensor | None]
    _built: dict[tuple[int, ...], Tensor | None] = field(default_factory=dict)

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse to be used as a tensor, by architectures that compute with the mask themselves."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise IsolationError(
            f"this architecture reads .{name} of its attention mask, so documents cannot be told apart through it",
            mend="set train.packing to padded, or model.attention to sdpa or eager",
        )

    def __getitem__(self, _: Any) -> NoReturn:
        self.__getattr__("shape")

    def __add__(self, _: Any) -> NoReturn:
        self.__getattr__("dtype")

    __radd__ = __add__

    @property
    def is_causal_only(self) -> bool:
        """Whether causality inside the document is the whole rule, for every document of the pack."""
        return self._is_causal(max(self.batch.lengths))

    def within(self, start: int, length: int) -> Tensor | None:
        """Return the mask [1, 1, L, L] of the document at `start`, or None where plain causality is the rule."""
        if self._is_causal(length):
            return None
        if (start, length) not in self._built:
            self._built[start, length] = self.rule(start, length)
        return self._built[start, length]

    def behind(self, before: int, lengths: Sequence[int], device: torch.device) -> Tensor | None:
        """Return the mask [L, before + L] of sibling segments, L tokens in all, whose path has `before` tokens before them.

        Each sees the path and itself, causally and within the window; None where plain causality is the whole rule.
        """
        if before == 0 and len(lengths) == 1 and self._is_causal(lengths[0]):
            return None
        key = (before, *lengths)
        mask = self._built.get(key)
        if mask is None:
            segment_L = torch.cat([torch.full((length,), number) for number, length in enumerate(lengths)])
            position_L = before + torch.cat([torch.arange(length) for length in lengths])
            segment_K = torch.cat([torch.full((before,), -1), segment_L])
            distance_LK = position_L[:, None] - torch.cat([torch.arange(before), position_L])
            mask = (distance_LK >= 0) & ((segment_K == -1) | (segment_K == segment_L[:, None]))
            if self.local_size is not None:
                mask &= distance_LK < self.local_size
            mask = self._built[key] = mask.to(device, non_blocking=True)
        return mask

    def is_window(self, window: int | None) -> bool:
        """Whether the rule is causality within a sliding `window`, or causality alone where there is none."""
        return not self.always_masked and self.local_size in (None, window)

    def _is_causal(self, length: int) -> bool:
        return not self.always_masked and (self.local_size is None or length <= self.local_size)


def register_attention() -> None:
    """Make "tutelage" known to transformers as an attention implementation; more than once does no harm."""
    AttentionInterface.register(NAME, document_attention_forward)
    AttentionMaskInterface.register(NAME, document_mask)


def choose_attention(config: Any, device: torch.device | str, requested: str = "auto") -> AttentionChoice:
    """Choose the attention implementation for a model configuration, and say why.

    This is only the first word: whether the model really keeps documents apart is for `probe_isolation` to say.
    """
    if requested != "auto":
        return AttentionChoice(requested, "asked for by model.attention")
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if architecture is not None and not hasattr(sys.modules[architecture.__module__], "ALL_ATTENTION_FUNCTIONS"):
        own = "sdpa" if architecture._supports_sdpa else "eager"
        return AttentionChoice(own, f"{architecture.__name__} does not take its attention from a public interface")
    if stateful := _stateful_layers(config):
        return AttentionChoice("sdpa", f"layers of type {', '.join(stateful)} carry state across a whole row")
    where = "torch's varlen kernel" if torch.device(device).type == "cuda" else "scaled dot product attention"
    return AttentionChoice(NAME, f"attention per document through {where}")


def _stateful_layers(config: Any) -> list[str]:
    """Return the declared layer types that are not attention: convolution, state space, linear attention."""
    kinds = getattr(config, "layer_types", None) or ()
    return sorted({kind for kind in kinds if "attention" not in kind or "linear" in kind})


@contextmanager
def document_attention(batch: Batch) -> Iterator[None]:
    """Tell the attention of any model run inside that `batch` is what it sees. Padded batches change nothing."""
    token = _batch.set(batch if batch.layout is not Layout.PADDED else None)
    try:
        yield
    finally:
        _batch.reset(token)


def forward_arguments(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Return the keyword arguments of a model's forward pass over a batch.

    Positions and mask go only to architectures that name them (state-space models have no positions); a cache of keys is never
    wanted, and every architecture takes that word, some without naming it.
    """
    known = inspect.signature(_architecture(model).forward).parameters
    optional = {"position_ids": batch.position_ids, "attention_mask": batch.attention_mask}
    named = {name: value for name, value in optional.items() if name in known}
    return {"input_ids": batch.input_ids, **named, "use_cache": False}


def unwrapped(model: nn.Module) -> Any:
    """Return the model inside wrappers that only pass calls on (`torch.compile`, DistributedDataParallel)."""
    inner: Any = model
    while (child := getattr(inner, "_orig_mod", getattr(inner, "module", None))) is not None:
        inner = child
    return inner


def _architecture(model: nn.Module) -> Any:
    """Return the transformers model itself, adapters taken off too."""
    inner = unwrapped(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def document_mask(batch_size: int, q_length: int, kv_length: int, **kwargs: Any) -> Tensor | DocumentMask | None:
    """Return the mask of one kind of layer: transformers calls this once per kind and forward pass."""
    batch = _batch.get()
    if batch is None or batch_size != 1 or not q_length == kv_length == batch.num_tokens:
        ordinary: Tensor | None = sdpa_mask(batch_size, q_length, kv_length, **kwargs)
        return ordinary

    def rule(start: int, length: int) -> Tensor | None:
        square = {
            **kwargs,
            "q_offset": start,
            "kv_offset": start,
            "allow_is_causal_skip": False,
            "attention_mask": None,
        }
        mask: Tensor | None = sdpa_mask(1, length, length, **square)
        return mask

    return DocumentMask(
        batch=batch,
        local_size=kwargs.get("local_size"),
        always_masked=bool(kwargs.get("use_vmap") or kwargs.get("allow_is_bidirectional_skip")),
        rule=rule,
    )


def document_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | DocumentMask | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend; the signature is that of transformers' attention functions.

    Shapes: query [B, H, T, E]; key, value [B, K, T, E]; s_aux [H], one attention sink logit a head; returns [B, T, H, E].
    """
    rules = Rules(scaling, dropout, softcap, s_aux, kwargs.get("sliding_window"))
    if not isinstance(attention_mask, DocumentMask):
        if rules.beyond_sdpa:
            return _attend_ordinary(query, key, value, attention_mask, rules).transpose(1, 2).contiguous(), None
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    if kwargs.get("position_bias") is not None or kwargs.get("is_causal") is False:
        raise IsolationError(
            "this architecture's attention is not causal or adds a bias to its scores, unknown to per-document attention",
            mend="set train.packing to padded, or model.attention to sdpa or eager",
        )
    if attention_mask.batch.tree is not None and not attention_mask.is_window(rules.window):
        # Whatever the lengths at hand: a probe of a small tree must speak for all.
        raise IsolationError(
            "this architecture's attention has rules beside causality and a sliding window, unknown in a tree of documents",
            mend="set train.shared_prefixes to false",
        )
    if _fits_varlen(query, value, attention_mask, rules):
        return _attend_varlen(query, key, value, attention_mask, rules), None
    return _attend_per_document(query, key, value, attention_mask, rules), None


@dataclass(frozen=True)
class Rules:
    """What a layer asks of its attention beside the mask; `sinks` [H] are logits that take weight and give nothing.

    `window` is the sliding window in tokens that the layer names itself.
    """

    scaling: float | None
    dropout: float
    softcap: float | None
    sinks: Tensor | None
    window: int | None = None

    @property
    def beyond_sdpa(self) -> bool:
        """Whether torch's scaled dot product attention cannot express it."""
        return self.softcap is not None or self.sinks is not None


def _attend_per_document(query: Tensor, key: Tensor, value: Tensor, mask: DocumentMask, rules: Rules) -> Tensor:
    """Attend inside each document on its own: work grows with the sum of squared lengths. Returns [1, T, H, E]."""
    if query.device.type == "cpu" and _compute_dtype(query) in (torch.float16, torch.bfloat16):
        # torch's CPU kernel takes several times longer in half precision than in fp32, in the backward pass most of all.
        with torch.autocast("cpu", enabled=False):
            exact = _attend_per_document(query.float(), key.float(), value.float(), mask, rules)
        return exact.to(value.dtype)
    if mask.batch.tree is not None:
        return _attend_along_paths(query, key, value, mask, mask.batch.tree, rules)
    # `split` and not slices: the gradient of one split is one concatenation, that of a slice is a whole tensor of zeros.
    parts = (torch.split(tensor, list(mask.batch.lengths), dim=2) for tensor in (query, key, value))
    pieces = []
    start = 0
    for q, k, v in zip(*parts, strict=True):
        pieces.append(_attend(q, k, v, mask.within(start, q.shape[2]), rules).transpose(1, 2))
        start += q.shape[2]
    return torch.cat(pieces, dim=1)


def _attend_along_paths(
    query: Tensor, key: Tensor, value: Tensor, mask: DocumentMask, tree: Tree, rules: Rules
) -> Tensor:
    """Attend in a tree: the queries of siblings see the keys of the path to them, then each its own. Returns [1, T, H, E]."""
    segments = tree.segments
    lengths = [segment.length for segment in segments]
    siblings = tree.siblings()
    queries = torch.split(query, [sum(lengths[number] for number in run) for run in siblings], dim=2)
    keys, values = (torch.split(x, lengths, dim=2) for x in (key, value))
    pieces = []
    for q, run in zip(queries, siblings, strict=True):
        seen = [*tree.path_to(run[0])[:-1], *run]
        k, v = keys[run[0]], values[run[0]]
        if len(seen) > 1:
            k, v = (torch.cat([parts[number] for number in seen], dim=2) for parts in (keys, values))
        allowed = mask.behind(segments[run[0]].position, [lengths[number] for number in run], q.device)
        pieces.append(_attend(q, k, v, allowed, rules).transpose(1, 2))
    return torch.cat(pieces, dim=1)


def _attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, rules: Rules) -> Tensor:
    """Attend with a boolean mask [B, 1, Lq, Lk], or causally when it is None. Returns [B, H, Lq, E]."""
    if rules.beyond_sdpa:
        return _attend_explicitly(query, key, value, allowed, rules)
    return nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=allowed,
        dropout_p=rules.dropout,
        is_causal=allowed is None,
        scale=rules.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _attend_ordinary(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rules: Rules) -> Tensor:
    """Attend as `sdpa` would, with soft-capping and sinks: no mask means causal, or everything for a single query."""
    Lq = query.shape[2]
    if mask is None and Lq > 1:
        key, value = key[:, :, :Lq], value[:, :, :Lq]
    elif mask is None:
        mask = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool, device=query.device)
    return _attend_explicitly(query, key, value, mask, rules)


def _attend_explicitly(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, rules: Rules) -> Tensor:
    """Attend by writing the scores out: softmax([softcap(q k^T), sinks]) v, the softmax in at least fp32.

    Source: soft-capping, Gemma 2 (arXiv 2408.00118, section 2); sinks, gpt-oss (arXiv 2508.10925) as in transformers.
    """
    B, H, Lq, E = query.shape
    K, Lk = key.shape[1], key.shape[2]
    grouped = query.reshape(B, K, (H // K) * Lq, E)
    scaling = E**-0.5 if rules.scaling is None else rules.scaling
    scores = (grouped @ key.transpose(2, 3)).reshape(B, H, Lq, Lk) * scaling
    if rules.softcap is not None:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if allowed is None:
        allowed = torch.ones(Lq, Lk, dtype=torch.bool, device=query.device).tril()
    if allowed.dtype == torch.bool:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    else:
        scores = scores + allowed
    if rules.sinks is not None:
        sinks = rules.sinks.to(scores.dtype).reshape(1, H, 1, 1).expand(B, H, Lq, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    probabilities = scores.softmax(dim=-1)[..., :Lk].to(value.dtype)
    probabilities = nn.functional.dropout(probabilities, rules.dropout)
    return (probabilities.reshape(B, K, (H // K) * Lq, Lk) @ value).reshape(B, H, Lq, -1)


def _fits_varlen(query: Tensor, value: Tensor, mask: DocumentMask, rules: Rules) -> bool:
    """Whether torch's variable-length kernel computes exactly this layer on this device."""
    simple = not rules.beyond_sdpa and rules.dropout == 0.0
    covered = mask.is_causal_only or mask.is_window(rules.window)
    shapes = query.shape[-1] == value.shape[-1] and query.shape[-1] <= 256 and query.shape[-1] % 8 == 0
    half = _compute_dtype(query) in (torch.float16, torch.bfloat16)
    return query.is_cuda and simple and covered and shapes and half and _varlen_kernel() is not None


def _attend_varlen(query: Tensor, key: Tensor, value: Tensor, mask: DocumentMask, rules: Rules) -> Tensor:
    """Attend through torch's FlashAttention kernel over cumulative lengths. Returns [1, T, H, E]."""
    kernel = _varlen_kernel()
    assert kernel is not None
    dtype = _compute_dtype(query)
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    batch = mask.batch
    window = (-1, 0) if mask.is_causal_only or mask.local_size is None else (mask.local_size - 1, 0)
    key_bounds = batch.cu_seqlens
    if batch.path_places is not None and batch.cu_pathlens is not None:
        # Fewer queries than keys: the kernel lets the last query see the last key, and so each its whole path.
        k, v = (nn.functional.embedding(batch.path_places, x.flatten(1)).view(-1, *x.shape[1:]) for x in (k, v))
        key_bounds = batch.cu_pathlens
    out: Tensor = kernel(
        q,
        k,
        v,
        batch.cu_seqlens,
        key_bounds,
        max(batch.stream_lengths),
        max(batch.lengths),
        scale=rules.scaling,
        window_size=window,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[None]


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    """Return the precision that autocast would give to attention; custom kernels are not cast by it."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


@functools.cache
def _varlen_kernel() -> Callable[..., Tensor] | None:
    """Return `torch.nn.attention.varlen.varlen_attn` where this torch has the options that are needed."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    kernel: Callable[..., Any] = varlen_attn
    return kernel if {"scale", "window_size", "enable_gqa"} <= set(inspect.signature(kernel).parameters) else None
