"""What the head and its loss cost, from hidden states to the gradients of hidden states and head.

    python -m benchmarks.head [--threads 2] [--rounds 5] [--device cuda]

Three ways to the same numbers, checked to agree before anything is timed: logits of every token, as a model makes them by
itself; logits of the supervised tokens, all at once; and a chunk of them at a time with the gradient in the same pass. The
ways take turns within a round, and the ratio of each round is taken before the median. Peak is the memory that the way adds
while it runs, as the sum of its live tensors, gradients included; hidden states and weights are there before.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.packing import table
from tutelage.model.cross_entropy import Head, LogitMap, cross_entropy, linear_cross_entropy

# T tokens, S supervised tokens, H hidden size, V vocabulary

TOKENS = 2000
SUPERVISED = (1300, 330)
SHAPES = ((288, 32_000), (768, 49_152))


@dataclass(frozen=True, eq=False)
class Case:
    """Hidden states [T, H] and a head [V, H], both leaves, with targets [S] at positions [S] of the T tokens."""

    hidden: Tensor
    weight: Tensor
    supervised: Tensor
    targets: Tensor

    @property
    def loss_weights(self) -> Tensor:
        """One for each supervised token [S]."""
        return torch.ones(len(self.targets), device=self.hidden.device)


def random_case(T: int, S: int, H: int, V: int, device: str) -> Case:
    """Draw a case whose logits have a spread of about 2, as those of a trained model."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, H, generator=random)
    weight = torch.randn(V, H, generator=random) * (2 / H**0.5)
    supervised = torch.randperm(T, generator=random)[:S].sort().values
    targets = torch.randint(V, (S,), generator=random)
    return Case(
        hidden.to(device).requires_grad_(),
        weight.to(device).requires_grad_(),
        supervised.to(device),
        targets.to(device),
    )


def logits_of_all_tokens(case: Case) -> Tensor:
    """Return the loss sum as a model's own forward pass makes it: unsupervised tokens are ignored after the fact."""
    targets_T = torch.full((len(case.hidden),), -100, device=case.hidden.device)
    targets_T[case.supervised] = case.targets
    return nn.functional.cross_entropy(case.hidden @ case.weight.t(), targets_T, reduction="sum")


def logits_of_supervised_tokens(case: Case) -> Tensor:
    """Return the loss sum through the logits of all supervised tokens, as for heads that are no plain linear layer."""
    loss_S, _ = cross_entropy(case.hidden[case.supervised] @ case.weight.t(), case.targets)
    return (loss_S * case.loss_weights).sum()


def chunks(case: Case) -> Tensor:
    """Return the loss sum through the logits of a chunk at a time."""
    head = Head(case.weight, None, LogitMap())
    return linear_cross_entropy(case.hidden[case.supervised], head, case.targets, case.loss_weights)[0]


WAYS: dict[str, Callable[[Case], Tensor]] = {
    "logits of all tokens": logits_of_all_tokens,
    "logits of supervised tokens": logits_of_supervised_tokens,
    "a chunk of logits at a time": chunks,
}
REFERENCE = "logits of supervised tokens"


def outcome(way: Callable[[Case], Tensor], case: Case) -> list[Tensor]:
    """Run forward and backward; return the loss and the gradients of hidden states and head."""
    case.hidden.grad = case.weight.grad = None
    loss = way(case)
    loss.backward()  # type: ignore[no-untyped-call]
    assert case.hidden.grad is not None
    assert case.weight.grad is not None
    return [loss.detach(), case.hidden.grad, case.weight.grad]


def seconds(way: Callable[[Case], Tensor], case: Case) -> float:
    """Time one forward and backward pass."""
    started = time.perf_counter()
    outcome(way, case)
    if case.hidden.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_bytes(way: Callable[[Case], Tensor], case: Case) -> int:
    """Return the most bytes that were allocated at a time in one forward and backward pass."""
    case.hidden.grad = case.weight.grad = None
    if case.hidden.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        way(case).backward()  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        way(case).backward()  # type: ignore[no-untyped-call]
    live = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


def check(case: Case) -> None:
    """Require that all ways give the same loss and gradients, to fp32 rounding."""
    expected = outcome(WAYS[REFERENCE], case)
    for way in WAYS.values():
        for one, other in zip(outcome(way, case), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def measure(case: Case, rounds: int) -> list[list[str]]:
    """Return a row for each way: its milliseconds, its time relative to the reference, and its peak in MB."""
    check(case)
    timings = [{name: seconds(way, case) for name, way in WAYS.items()} for _ in range(rounds)]
    rows = []
    for name, way in WAYS.items():
        ratios = [each[name] / each[REFERENCE] for each in timings]
        rows.append(
            [
                name,
                f"{1000 * statistics.median(each[name] for each in timings):,.0f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{peak_bytes(way, case) / 1e6:,.0f}",
            ]
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    rows = []
    for H, V in SHAPES:
        for S in SUPERVISED:
            make = partial(random_case, TOKENS, S, H, V)
            shape = f"{H} x {V:,}, {S:,} of {TOKENS:,}"
            rows += [[shape, *row] for row in measure(make(words.device), words.rounds)]
    print(f"fp32, {words.threads} thread(s), {words.device}; forward and backward of head and loss\n")
    print(table(["head, supervised tokens", "logits", "ms", "time relative to supervised (range)", "peak, MB"], rows))


if __name__ == "__main__":
    main()
