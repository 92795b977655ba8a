"""Several processes that act as one run: who am I, sums over all of us, and agreement on what we are about to do.

Everything here is a no-op in a single process, so that callers are written once. Under `torchrun` the process group is gloo on
CPU and NCCL on CUDA. Gradients are *summed* over ranks: the loss is already divided by the weight of the whole step, which each
rank knows from the plan, so there is nothing to average.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from tutelage.errors import TrainingError

LONGEST_WAIT = timedelta(hours=1)  # for a rank that prepares documents for its machine, or hashes a large checkpoint
LOST_RANK = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # what gloo says
BUCKET_BYTES = 32 * 2**20  # one all-reduce for many small gradients; larger buckets only cost memory


def rank() -> int:
    """Return the number of this process among all, 0 without `torchrun`."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this process is the one that writes files and prints."""
    return rank() == 0


def launched_processes() -> int:
    """Return how many processes `torchrun` says it started (1 without it), before any process group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return the number of this process on its machine: which of its GPUs to use."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the process group that `torchrun` announced, and leave it at the end; nothing in a single process.

    Raises:
        TrainingError: the environment announces several processes but lacks the address to meet at; or one of the others has ended.
    """
    if launched_processes() == 1 or dist.is_initialized():
        yield
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise TrainingError(
            f"WORLD_SIZE is {launched_processes()} but {', '.join(missing)} is not set",
            mend="start with `torchrun --nproc-per-node N -m tutelage train ...`",
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield
    except RuntimeError as error:
        if not _tells_of_a_lost_rank(error):
            raise
        raise TrainingError(
            "another process of this run has ended", mend="look at what that one said last; the same command goes on"
        ) from error
    finally:
        gc.collect()  # what a sharded model leaves behind in cycles holds threads of the group, and aborts the process if they outlive it
        dist.destroy_process_group()


def _tells_of_a_lost_rank(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(said in str(error) for said in LOST_RANK)


def device_of_sums() -> torch.device:
    """Return the device on which the process group adds: the current GPU under NCCL, else the CPU."""
    on_gpu = dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def one_of_machine_first() -> Iterator[None]:
    """Let one process of each machine run the block before the others, who then find in a cache what it left there."""
    if dist.is_initialized() and local_rank() != 0:
        dist.barrier()
    yield
    if dist.is_initialized() and local_rank() == 0:
        dist.barrier()


@contextmanager
def in_turn() -> Iterator[None]:
    """Let the processes of each machine run the block one after another; it must not wait for other ranks by itself."""
    if not dist.is_initialized():
        yield
        return
    turns = torch.tensor(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), device=device_of_sums())
    dist.all_reduce(turns, op=dist.ReduceOp.MAX)
    for turn in range(int(turns)):
        if turn == local_rank():
            yield
        dist.barrier()


def sum_across_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Add `tensor` over all ranks in place and return it."""
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def any_rank(flag: bool, device: torch.device | None = None) -> bool:
    """Return whether `flag` is true on at least one rank."""
    if not dist.is_initialized():
        return flag
    return bool(sum_across_ranks(torch.tensor(float(flag), device=device)).item() > 0)


def all_agree(value: int, device: torch.device | None = None) -> bool:
    """Return whether every rank holds the same 62-bit `value`, such as a fingerprint of its plan."""
    if not dist.is_initialized():
        return True
    lowest = torch.tensor([value, -value], dtype=torch.int64, device=device)
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    return int(lowest[0].item()) == -int(lowest[1].item())


def value_of_main(value: int, device: torch.device | None = None) -> int:
    """Return the main rank's `value` on every rank, such as the time at which the run began."""
    return int(sum_across_ranks(torch.tensor(value if is_main() else 0, dtype=torch.int64, device=device)).item())


def text_of_main(text: str) -> str:
    """Return the main rank's `text` on every rank, such as the name of a folder that all are to write to."""
    if not dist.is_initialized():
        return text
    encoded, device = text.encode(), device_of_sums()
    size = value_of_main(len(encoded), device)
    sent = list(encoded) if is_main() else [0] * size
    return bytes(sum_across_ranks(torch.tensor(sent, dtype=torch.int64, device=device)).tolist()).decode()


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add the gradients of all ranks, in buckets; a rank without a gradient for a parameter contributes zero.

    Every rank must hold the same parameters in the same order. A parameter that got a gradient nowhere stays without one, so
    that the optimiser leaves it alone just as it does in a single process.
    """
    if not dist.is_initialized():
        return
    parameters = list(parameters)
    device = parameters[0].device
    touched = sum_across_ranks(torch.tensor([float(p.grad is not None) for p in parameters], device=device)).tolist()
    bucket: list[torch.Tensor] = []
    size = 0
    for parameter, ranks_with_gradient in zip(parameters, touched, strict=True):
        if not ranks_with_gradient:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (size >= BUCKET_BYTES or bucket[0].dtype != parameter.grad.dtype):
            _sum_bucket(bucket)
            bucket, size = [], 0
        bucket.append(parameter.grad)
        size += parameter.grad.numel() * parameter.grad.element_size()
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(gradients: list[torch.Tensor]) -> None:
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat, op=dist.ReduceOp.SUM)
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()
