"""What a run would do, without loading a weight: the plan and the memory estimate of `--dry-run`."""

from __future__ import annotations

from typing import Any

import torch

from tutelage.config.schema import Config, Layout, Method, Precision, Quantisation
from tutelage.model.adapters import add_lora
from tutelage.model.attention import choose_attention
from tutelage.model.load import build_from_config, read_config
from tutelage.model.locate import locate_model
from tutelage.model.lora_linear import narrow_frozen_matrices
from tutelage.model.quantise import num_values, pack_shapes
from tutelage.train.describe import describe_plan
from tutelage.train.environment import choose_device
from tutelage.train.fitting import fit_memory
from tutelage.train.plan import plan_run
from tutelage.train.precision import choose_precision
from tutelage.train.prepare import prepare
from tutelage.train.step import StepSettings
from tutelage.train.trainee import require_room
from tutelage.train.usage import free_bytes


def preview(config: Config) -> dict[str, Any]:
    """Return what `plan.json` of a run of `config` would hold, before the model has been asked about its layout."""
    prepared = prepare(config)
    plan = plan_run(prepared.documents, prepared.mixture, config)
    device = choose_device(config.train)
    architecture = read_config(locate_model(config.model.path, revision=config.model.revision, weights=False))
    arithmetic = choose_precision(config.train, device, architecture)
    attention = choose_attention(architecture, device, config.model.attention)
    with torch.device("meta"):
        model: torch.nn.Module = build_from_config(architecture, seed=config.train.seed, attention=attention.name)
        require_room(model, prepared.longest_tokens)
        if arithmetic.precision is Precision.BF16_PURE:
            model = model.to(torch.bfloat16)
        if config.model.quantisation is Quantisation.NF4:
            pack_shapes(model, torch.float32 if arithmetic.precision is Precision.FP32 else torch.bfloat16)
        if config.train.method is Method.LORA:
            model = add_lora(model, config.train.lora)
    if arithmetic.precision is Precision.BF16:
        narrow_frozen_matrices(model, torch.bfloat16)
    parameters = list(model.parameters())
    layout = Layout.PACKED if config.train.packing is Layout.AUTO else config.train.packing
    settings = StepSettings(
        layout=layout,
        micro_tokens=plan.slot_tokens,
        seed=config.train.seed,
        precision=arithmetic.precision,
        device=device,
        largest_grad_norm=config.train.clip_grad_norm,
        neftune_alpha=config.train.neftune_alpha,
        sources=prepared.sources,
    )
    fit = fit_memory(config, plan, prepared, model.train(), settings, free_bytes(device))
    return {
        **describe_plan(prepared, fit.plan, config),
        "layout": {"name": config.train.packing.value, "reason": "decided by a probe of the model when the run begins"},
        "attention": {"name": attention.name, "reason": attention.reason},
        "precision": {"name": arithmetic.precision.value, "reason": arithmetic.reason},
        "checkpointing": {"name": fit.checkpointing.value, "reason": fit.reason},
        "memory_bytes": fit.named_bytes,
        "memory_predicted_bytes": fit.predicted_bytes,
        "parameters": sum(num_values(p) for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
    }
