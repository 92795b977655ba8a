"""Loading torch and transformers a quarter faster: without a search for garbage that is not there."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import inside without the cyclic garbage collector, and keep it from what was imported ever after.

    Modules are millions of objects that stay: each full collection, while they load and while a run is planned, would visit them all.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
