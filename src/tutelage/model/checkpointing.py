"""Which activations a decoder layer keeps for its backward pass: all, those that are dear to compute again, or its input alone.

The input may wait in the host's memory, out of the way of a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from tutelage.config.schema import Checkpointing

PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm"})


def set_checkpointing(model: Any, kind: Checkpointing) -> None:
    """Let every decoder layer of a transformers model, or of a peft model around one, keep what `kind` says.

    Recomputation repeats the layer as it was: the attention mask is an argument of the layer, dropout draws from the random state
    that its forward pass began with, and noise is added to the embeddings, outside any layer. So no gradient changes.
    """
    # Newer versions of transformers rename what it called gradient checkpointing.
    prefix = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if kind is Checkpointing.NONE:
        getattr(model, f"{prefix}_checkpointing_disable")()
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if kind is Checkpointing.SELECTIVE:
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    getattr(model, f"{prefix}_checkpointing_enable")(options)
    # transformers lets the embeddings' output require a gradient, for re-entrant checkpoints, which frozen embeddings would
    # cut off; this kind needs none, and below the first adapter nothing should take part in the backward pass.
    model.disable_input_require_grads()
    if kind is Checkpointing.OFFLOAD:
        for layer in model.modules():
            if "_gradient_checkpointing_func" in vars(layer):
                layer._gradient_checkpointing_func = functools.partial(_offloaded, layer._gradient_checkpointing_func)


def _offloaded(checkpoint: Callable[..., Any], layer: Callable[..., Any], *inputs: Any) -> Any:
    """Run a checkpointed layer whose inputs go to pinned host memory, and come back when the backward pass asks for them.

    The checkpoint keeps its inputs as any operation does, so that hooks on what is kept see these and nothing else: inside the layer
    the checkpoint's own hooks are in force. On a CPU nothing is copied.
    """
    pinned = all(tensor.is_cuda and not isinstance(tensor, FakeTensor) for tensor in inputs)
    with torch.autograd.graph.save_on_cpu(pin_memory=pinned):
        return checkpoint(layer, *inputs)


def _policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep the outputs of matrix products and of attention kernels; norms, activations and sums are cheap to repeat.

    A product into a tensor that is there already, as in the fused LoRA layers, is repeated: its output goes on changing.
    """
    is_mutable = isinstance(operator, torch._ops.OpOverload) and operator._schema.is_mutable
    name = operator.overloadpacket.__name__ if isinstance(operator, torch._ops.OpOverload) else ""
    keep = name in PRODUCTS or "attention" in name or "attn" in name
    return CheckpointPolicy.MUST_SAVE if keep and not is_mutable else CheckpointPolicy.PREFER_RECOMPUTE
