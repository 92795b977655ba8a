"""A build that asks a server: the process that the kill tests kill.

    python asker.py PORT FOLDER REQUESTS CAP_IN_BILLIONTHS

It prints nothing; what it did stands in the journal. Exit code 75 means that the money is gone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tutelage.data.conversation import Message, Role
from tutelage.generate.api import ApiSampler, Server
from tutelage.generate.journal import CapReachedError, Journal
from tutelage.generate.sampler import Sampling

DOLLARS_IN, DOLLARS_OUT = 1.0, 2.0


def sampler_of(port: int) -> ApiSampler:
    """Return what asks the server at `port`."""
    url = f"http://127.0.0.1:{port}/v1"
    server = Server(
        url,
        "tiny",
        most_at_once=16,
        timeout_seconds=0.4,
        patience_seconds=30,
        dollars_in=DOLLARS_IN,
        dollars_out=DOLLARS_OUT,
    )
    return ApiSampler(server, Sampling(max_new_tokens=20, temperature=1.0))


def main(port: str, folder: str, count: str, cap: str) -> int:
    """Ask everything; return the exit code."""
    sampler = sampler_of(int(port))
    requests = [
        sampler.request([Message(Role.USER, f"question {number}")], seed=number) for number in range(int(count))
    ]
    try:
        with Journal(Path(folder) / "journal.sqlite", sampler, cap=int(cap)) as journal:
            journal.ask(requests)
    except CapReachedError:
        return 75
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
