"""Decoder layers compiled by torch, once for all of them: norms, rotations and activations fused around the matrix products.

Layers of one class share their code, so that the time it takes does not grow with the depth of the model, and the number of tokens is
a symbol in it, so that no pack is compiled anew. Attention per document stays outside of the graph: its loop depends on where the
documents lie. Evaluation and generation run the layers as they are.

Source: torch's regional compilation, https://docs.pytorch.org/tutorials/recipes/regional_compilation.html
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from tutelage.errors import ConfigError
from tutelage.model.attention import NAME, document_attention_forward
from tutelage.parallel.shard import decoder_layers

# Dropout draws what it draws without compilation.
HOW: dict[str, Any] = {"dynamic": True, "options": {"fallback_random": True}}


def compile_layers(model: nn.Module, device: torch.device) -> None:
    """Let every decoder layer of `model`, changed in place, run as compiled code while it is trained.

    The code is made when the first step needs it. Recomputation for the backward pass runs it too.

    Raises:
        ConfigError: torch cannot compile for `device` here.
    """
    _require_compiler(device)
    AttentionInterface.register(NAME, torch.compiler.disable(document_attention_forward))  # type: ignore[no-untyped-call]
    compiled: dict[type, type] = {}
    for layer in decoder_layers(model):
        kind = type(layer)
        if kind not in compiled:
            compiled[kind] = _compiled(kind)
        layer.__class__ = compiled[kind]


def _compiled(kind: type) -> type:
    """Return a subclass of a layer class whose training pass is compiled.

    transformers wraps the forward pass of layer classes, subclasses too, in what checkpoints it: that stays outside of the graph.
    """
    plain: Any = kind.forward  # type: ignore[attr-defined]
    fast = torch.compile(plain, **HOW)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (fast if self.training and torch.is_grad_enabled() else plain)(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _require_compiler(device: torch.device) -> None:
    """Compile a small function, so that what is missing is told before the first step.

    Raises:
        ConfigError: with what the compiler said.
    """
    try:
        _compile_something(device)
    except (RuntimeError, OSError, ImportError) as error:  # of torch and of what it starts
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"train.compile needs a compiler that torch can use for {device.type}, and it found none: {said.strip()}",
            mend="train.compile=false, or install g++ and the headers of this Python",
        ) from error


def _compile_something(device: torch.device) -> None:
    torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
