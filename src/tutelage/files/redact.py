"""Hide secrets in text that is about to be shown or stored."""

from __future__ import annotations

import os
import re

_MASK = "***"
_PATTERNS = (
    re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{16,}"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}"),
    re.compile(r"(?i)(?<=\bbearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"(?<=://)[^\s/@]+@"),  # user or user:password before the host of a URL
)
_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$", re.IGNORECASE)
_SHORTEST_SECRET = 8  # shorter values are words that occur by chance


def redact(text: str) -> str:
    """Return `text` with access tokens, URL credentials and the values of secret environment variables hidden.

    Example:
        >>> redact("GET https://me:pw@host/x with sk-abcdefghijklmnopqrst")
        'GET https://***@host/x with ***'
    """
    for value in _secret_values():
        text = text.replace(value, _MASK)
    for pattern in _PATTERNS:
        text = pattern.sub(lambda match: _MASK + "@" if match.group().endswith("@") else _MASK, text)
    return text


def _secret_values() -> list[str]:
    """Return values of environment variables with a secret's name, longest first so that none hides a part of another."""
    values = {
        value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET
    }
    return sorted(values, key=len, reverse=True)
