"""`tutelage demo`: the whole path on what ships with the package."""

from __future__ import annotations


def run() -> None:
    """Fine-tune the small model that ships into an assistant, and ask it the same questions before and after.

    tutelage demo
    """
    raise NotImplementedError
