"""What torch's allocator gives out while a training step is taken, for tests of predictions."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from tutelage.config.schema import Layout, Precision, TrainConfig
from tutelage.model.head import supervised_losses
from tutelage.pack.batch import Batch
from tutelage.train.objective import step_loss
from tutelage.train.optim import build_optimiser, clip_gradients
from tutelage.train.step import StepSettings

SETTINGS = StepSettings(
    layout=Layout.PACKED,
    micro_tokens=512,
    seed=0,
    precision=Precision.FP32,
    device=torch.device("cpu"),
    largest_grad_norm=1.0,
    neftune_alpha=0.0,
    sources=("rows",),
)


def measure_peak(model: torch.nn.Module, batches: list[Batch], settings: StepSettings, config: TrainConfig) -> int:
    """Take two steps, and return the most bytes that were given out at once during the second one."""
    optimiser = build_optimiser(model, config)

    def step() -> None:
        for batch in batches:
            with settings.autocast():
                losses = supervised_losses(model, batch)
            step_loss(losses, 1.0).backward()  # type: ignore[no-untyped-call]
            del losses
        clip_gradients([p for p in model.parameters() if p.requires_grad], settings.largest_grad_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    step()
    states = [value for state in optimiser.state.values() for value in state.values()]
    standing = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers(), *states))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    now = highest = 0
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return standing + highest
