"""Fake secrets of many kinds, put together as the file is read: no scanner is to find them in it.

`SHAPED` are known by their shape alone; `NAMED` by the name under which the environment, a header or a file holds them.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping


def _letters(name: str, count: int) -> str:
    """Return letters and digits that stand in no other secret; the first few are of both kinds."""
    digest = hashlib.sha512(name.encode()).digest() * 2
    return "aB3" + "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in digest)[: count - 3]


_ALPHABET = string.ascii_letters + string.digits
_KEY_LINES = "\n".join(_letters(f"line {number}", 64) for number in range(4))

SHAPED: Mapping[str, str] = {
    "Hugging Face": "hf" + "_" + _letters("hf", 34),
    "Hugging Face organisation": "api_org" + "_" + _letters("hf organisation", 34),
    "OpenAI": "sk" + "-" + _letters("openai", 48),
    "OpenAI project": "sk" + "-proj-" + _letters("openai project", 48),
    "Anthropic": "sk" + "-ant-api03-" + _letters("anthropic", 90) + "-AA",
    "GitHub": "ghp" + "_" + _letters("github", 36),
    "GitHub fine-grained": "github" + "_pat_" + _letters("github 1", 22) + "_" + _letters("github 2", 59),
    "GitLab": "glpat" + "-" + _letters("gitlab", 20),
    "AWS access key": "AKIA" + _letters("aws", 16).upper(),
    "Google": "AI" + "za" + _letters("google", 35),
    "Google OAuth": "ya29" + "." + _letters("google oauth", 60),
    "Slack": "xox" + "b-" + "204857103948-593028471056-" + _letters("slack", 24),
    "Slack webhook": "https://hooks.slack.com/" + "services/T02X8Q1ZR/B07N4VKPY/" + _letters("webhook", 24),
    "Stripe": "sk" + "_live_" + _letters("stripe", 24),
    "npm": "npm" + "_" + _letters("npm", 36),
    "PyPI": "pypi" + "-AgEIcHlwaS5vcmc" + _letters("pypi", 100),
    "JSON Web Token": "eyJ" + _letters("head", 33) + ".eyJ" + _letters("body", 60) + "." + _letters("signature", 43),
    "URL with a password": "https://robot:" + _letters("url", 16) + "@hub.example.org/data.jsonl",
    "private key": f"-----BEGIN RSA PRIVATE {'KEY'}-----\n{_KEY_LINES}\n-----END RSA PRIVATE {'KEY'}-----",
}
NAMED: Mapping[str, str] = {
    "AWS_SECRET_ACCESS_KEY": "wJal/" + _letters("aws secret", 35),
    "WANDB_API_KEY": hashlib.sha1(b"wandb", usedforsecurity=False).hexdigest(),
    "DB_PASSWORD": "Tr0ub4dor-and-3-staples!",
    "AZURE_ACCOUNT_KEY": _letters("azure", 84) + "x/8==",
    "MODEL_SERVER_TOKEN": _letters("server", 36),
}

# Ways in which others write a secret into their errors, answers and files; § stands for it.
AROUND: Mapping[str, str] = {
    "a header": "401 Client Error, request headers: {'Authorization': 'Bearer §', 'Accept': '*/*'}",
    "an answer of a server": '{"error": {"code": 401, "message": "invalid key", "api_key": "§"}}',
    "a URL": "404 for url: https://robot:§@hub.example.org/api/models/x?revision=main",
    "a query": "403 for url: https://bucket.example.org/x?X-Amz-Signature=§&expires=60",
    "a netrc file": "bad line 3 of /home/me/.netrc: machine hub.example.org login robot password §",
    "a settings file": "cannot parse ~/.aws/credentials: aws_secret_access_key = §",
    "an assignment": "call failed: connect(host='db', password='§', retries=3)",
}


def pieces(secret: str) -> set[str]:
    """Return parts of a secret of which none may be found: the beginning, middle and end of each line that is secret."""
    told = [line for line in secret.split("\n") if "-----" not in line]
    if secret.startswith("https://"):
        user, _, rest = secret.removeprefix("https://").rpartition("@")
        told = [user.partition(":")[2] or rest.rpartition("/")[2]]
    size = 12
    # The first letters of a known kind of token are no secret: they say which kind it is.
    starts = [
        (line, start)
        for line in told
        for start in (min(12, len(line) - size), (len(line) - size) // 2, len(line) - size)
    ]
    return {line[start : start + size] for line, start in starts}
