"""How busy `tutelage generate` keeps a server, and what batches of a model in this process save.

    python -m benchmarks.serving [--requests 2000] [--at-once 200] [--rounds 3]

The server, a process of its own, answers after 50 ms. It would be busy all the time if `--at-once` requests were with it from the first to
the last moment; what is printed is the share of that which came about, booking in the journal included. The model is the one that ships:
prompts of 8 to 40 tokens, answers of 32, one prompt at a time and 64.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from benchmarks.packing import table
from tutelage.chat.tokenizer import load_tokenizer
from tutelage.config.schema import ModelConfig
from tutelage.data.conversation import Message, Role
from tutelage.generate.api import ApiSampler, Server
from tutelage.generate.journal import Journal
from tutelage.generate.local import generate
from tutelage.generate.sampler import Sampling
from tutelage.model.load import load_model
from tutelage.model.locate import SHIPPED_FOLDER, SHIPPED_NAME

ANSWER_SECONDS = 0.05
BATCH_ROWS = 64
ANSWER_TOKENS = 32


def serve(port: Connection) -> None:
    """Answer every request after 50 ms, for ever; the number of the port is sent through `port`."""
    body = json.dumps({"model": "m", "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}).encode()
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            lines = head.decode().lower().splitlines()
            await reader.readexactly(
                next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
            )
            await asyncio.sleep(ANSWER_SECONDS)
            writer.write(answer)

    async def listen() -> None:
        server = await asyncio.start_server(one, "127.0.0.1", 0, backlog=1024)
        port.send(server.sockets[0].getsockname()[1])
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # clients hang up
        await server.serve_forever()

    asyncio.run(listen())


@contextmanager
def served() -> Iterator[str]:
    """Yield the address of a server."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}/v1"
    finally:
        process.kill()
        process.join()


def busy_share(url: str, *, requests: int, at_once: int) -> float:
    """Return the least time that the server needs over the time that it took."""
    sampler = ApiSampler(Server(url, "m", most_at_once=at_once), Sampling(max_new_tokens=8, temperature=1.0))
    asked = [sampler.request([Message(Role.USER, "Is it so?")], seed=seed) for seed in range(requests)]
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal", sampler) as journal:
        journal.plan(asked)
        began = time.perf_counter()
        journal.ask(asked)
        return requests * ANSWER_SECONDS / at_once / (time.perf_counter() - began)


def batched_gain(*, rounds: int) -> list[float]:
    """Return how many times as fast a batch is as its prompts one by one, for each round."""
    model = load_model(ModelConfig(path=SHIPPED_NAME), device=torch.device("cpu"), dtype=torch.float32).model
    tokenizer = load_tokenizer(SHIPPED_FOLDER)
    random = np.random.default_rng(0)
    prompts = [
        random.integers(10, 400, size=int(length)).tolist() for length in random.integers(8, 41, size=BATCH_ROWS)
    ]
    gains = []
    for _ in range(rounds):
        seconds = []
        for rows in (1, BATCH_ROWS):
            began = time.perf_counter()
            generate(model, tokenizer, prompts, stop_ids=[], max_new_tokens=ANSWER_TOKENS, batch_rows=rows)
            seconds.append(time.perf_counter() - began)
        gains.append(seconds[0] / seconds[1])
    return gains


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with served() as url:
        shares = [busy_share(url, requests=options.requests, at_once=options.at_once) for _ in range(options.rounds)]
    gains = batched_gain(rounds=options.rounds)
    rows = [
        [f"server of 50 ms, {options.at_once} at once: share of the time busy", *_spread(shares, "{:.0%}")],
        [f"model in this process, {BATCH_ROWS} prompts at a time: times as fast as one", *_spread(gains, "{:.1f}")],
    ]
    print(table(["figure", "median", "lowest", "highest"], rows))


def _spread(values: list[float], form: str) -> list[str]:
    return [form.format(value) for value in (statistics.median(values), min(values), max(values))]


if __name__ == "__main__":
    main()
