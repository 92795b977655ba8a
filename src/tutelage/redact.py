"""Secrets kept out of every text that is shown or stored. Below all rooms, so that errors can use it too.

A secret is known by its shape (an access token of a known service, a private key, credentials in a URL or header), by the name
it is given (`password=...`), or because an environment variable with a secret's name holds it.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from urllib.parse import quote

_MASK = "***"


@dataclass(frozen=True)
class _Shape:
    """What one kind of secret looks like; group 1, where the pattern has one, is the secret within the match."""

    name: str
    pattern: re.Pattern[str]


def _shape(name: str, pattern: str) -> _Shape:
    return _Shape(name, re.compile(pattern))


# Long enough to be no word, and with a digit: `sk-learn-preprocessing` is a name, `sk-proj-4f...` a key. Runs are bounded, so that
# no text, however it was made, takes longer than its length asks for.
_WITH_DIGIT = r"(?=[\w.~+/-]{0,100}\d)"

_SCHEME = r"(?i)\b[a-z][a-z0-9+.-]{1,20}:/{1,2}"  # a path that was made of a URL has one slash left

# Shapes that nothing else has: a configuration that holds one is refused.
_CERTAIN = (
    _shape(
        "a private key",
        r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----(?s:.)*?(?:-----END [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----|\Z)",
    ),
    _shape("a Hugging Face token", r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}"),
    _shape("an OpenAI or Anthropic key", rf"\bsk-{_WITH_DIGIT}[A-Za-z0-9_-]{{16,}}"),
    _shape("a GitHub token", r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})"),
    _shape("a GitLab token", rf"\bgl(?:pat|dt|rt|ptt|cbt)-{_WITH_DIGIT}[A-Za-z0-9_.-]{{20,}}"),
    _shape("an AWS access key", r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    _shape("a Google key", r"\bAIza[A-Za-z0-9_-]{35}|\bya29\.[A-Za-z0-9_-]{20,}|\bGOCSPX-[A-Za-z0-9_-]{20,}"),
    _shape("a Slack token", rf"\bx(?:ox[abeoprs]|app)-{_WITH_DIGIT}[A-Za-z0-9-]{{10,}}"),
    _shape("a Slack webhook", r"(?<=hooks\.slack\.com/)(?:services|workflows)/[A-Za-z0-9/_-]{20,}"),
    _shape("a Stripe key", r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    _shape("an npm or PyPI token", rf"\bnpm_[A-Za-z0-9]{{30,}}|\bpypi-{_WITH_DIGIT}[A-Za-z0-9_-]{{30,}}"),
    _shape("a Groq, xAI, Replicate or Perplexity key", rf"\b(?:gsk_|xai-|r8_|pplx-){_WITH_DIGIT}[A-Za-z0-9]{{20,}}"),
    _shape("a JSON Web Token", r"\beyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"),
    _shape("a bearer token", rf"(?i)\bbearer +{_WITH_DIGIT}([\w.~+/-]{{16,}}=*)"),
    _shape("credentials in a URL", rf"{_SCHEME}([^\s/@?#'\"]{{0,500}}:[^\s/@?#'\"]{{1,500}})@"),
)

# Shapes that ordinary text may have: hidden where text is shown or stored, and no reason to refuse anything.
_LIKELY = (
    _shape("a user in a URL", rf"{_SCHEME}([^\s/@?#'\"]{{1,500}})@"),
    _shape(
        "a header",
        r"(?i)\bauthorization['\"]?\s{0,9}[:=]\s{0,9}['\"]?(?:(?:basic|bearer|token)\s{1,9})?([^\s'\",;]{8,})",
    ),
    _shape("a password of a netrc file", r"(?i)\blogin\s{1,9}\S{1,500}\s{1,9}password\s{1,9}(\S+)"),
    _shape(
        "a named secret",
        r"(?i)(?<![a-z0-9])(?:api[_-]?keys?|secret(?:[_-](?:access[_-])?key)?|password|passwd|pwd|passphrase|client[_-]secret|"
        r"(?:access|auth|api|bearer|refresh|session|security)[_-]?token|account[_-]?key|x-amz-signature)"
        r"['\"]?\s{0,9}(?:=|:(?!//))\s{0,9}['\"]?([^\s'\",;&]{6,})",
    ),
)

_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|_PAT)(_?\d+)?$", re.IGNORECASE)
# Names that nothing but a secret has, and values that are no path: where one stands in a configuration, it is no accident.
_CERTAIN_NAME = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|(API|ACCESS|ACCOUNT|AUTH|PRIVATE|SERVICE)_?KEY)(_?\d+)?$", re.IGNORECASE
)
_PATH = re.compile(r"\.{0,2}[/\\~]|[A-Za-z]:\\")
_SHORTEST_SECRET = 8  # shorter values are words that occur by chance
_SHORTEST_CERTAIN = 16


def redact(text: str) -> str:
    """Return `text` with access tokens, keys, passwords, URL credentials and the values of secret environment variables hidden.

    Example:
        >>> redact("GET https://me:pw@host/x with sk-abcdefghijklmnopqrst1")
        'GET https://***@host/x with ***'
    """
    for value in _secret_values():
        text = text.replace(value, _MASK)
    for shape in (*_CERTAIN, *_LIKELY):
        text = shape.pattern.sub(_hidden, text)
    return text


def secret_in(text: str) -> str | None:
    """Return what kind of secret stands in `text`, such as `a GitHub token`; None when nothing in it is certainly one.

    Example:
        >>> secret_in("https://me:pw@host/x"), secret_in("use_cls_token")
        ('credentials in a URL', None)
    """
    for name, value in _named_values().items():
        if _is_certain(name, value) and value in text:
            return f"the value of the environment variable {name}"
    return next((shape.name for shape in _CERTAIN if shape.pattern.search(text)), None)


def _hidden(match: re.Match[str]) -> str:
    if match.re.groups == 0:
        return _MASK
    start, end = (place - match.start() for place in match.span(1))
    return match[0][:start] + _MASK + match[0][end:]


def _named_values() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _SECRET_NAME.search(name)}


def _is_certain(name: str, value: str) -> bool:
    """Whether the environment variable `name` holds a secret, and no path or word."""
    return len(value) >= _SHORTEST_CERTAIN and bool(_CERTAIN_NAME.search(name)) and not _PATH.match(value)


def _secret_values() -> list[str]:
    """Return how values of secret environment variables may be written, longest first so that none hides a part of another."""
    named = _named_values()
    values = [value for value in named.values() if len(value) >= _SHORTEST_SECRET]
    # Where a secret was typed in the wrong place it may have been taken apart, as a path or as `key=value`.
    parts = [part for name, value in named.items() if _is_certain(name, value) for part in re.split("[/=]", value)]
    values += [part for part in parts if len(part) >= _SHORTEST_CERTAIN]
    written = {
        form for value in values for form in (value, quote(value, safe=""), repr(value)[1:-1], json.dumps(value)[1:-1])
    }
    return sorted(written, key=len, reverse=True)
