"""bitsandbytes, imported so that it fetches no kernel from the Hub: importing this module does it, where there is one to import.

On processors with bf16 products bitsandbytes loads compiled code from the Hub as it is imported, wherever the package `kernels` is
installed, and complains where it is not; peft imports it along. What comes from the Hub is never run here, so that module is not to be
found for as long as the import takes. Its own kernels do the same work.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NAME = "kernels"
_ABSENT = object()


@contextmanager
def _without_hub_kernels() -> Iterator[None]:
    kept = sys.modules.get(_NAME, _ABSENT)
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    sys.modules[_NAME] = None  # type: ignore[assignment]  # how Python spells: not to be imported
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if kept is _ABSENT:
            del sys.modules[_NAME]
        else:
            sys.modules[_NAME] = kept  # type: ignore[assignment]


if importlib.util.find_spec("bitsandbytes") is not None:
    with _without_hub_kernels():
        importlib.import_module("bitsandbytes")
