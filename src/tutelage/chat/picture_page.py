"""The mask picture as one HTML page: self-contained, nothing loaded from anywhere, readable in light and dark.

The documents are embedded as JSON and drawn by a small script when they are opened. Text from data reaches the page
only as JSON and is set as text, so that no row can put markup or a script into it; the page's own policy allows no
other script and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from tutelage.chat.picture import View, runs
from tutelage.chat.rendered import Part
from tutelage.files.encode import encode_json


def picture_page(
    views: Sequence[View], *, title: str, facts: Mapping[str, str], num_documents: int | None = None
) -> str:
    """Return the page. `facts` stand at its head (model, template, file); `num_documents` is how many there are in all."""
    style, script = _asset("picture.css"), _asset("picture.js")
    data = {
        "parts": [part.name.lower().replace("_", " ") for part in Part],
        "total": len(views) if num_documents is None else num_documents,
        "documents": [_document(one) for one in views],
    }
    policy = f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    head = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="kicker">tutelage · loss mask</p>
<h1>{escape(title)}</h1>
<dl id="facts">{head}</dl>
</header>
<div id="tools"></div>
<main id="documents"><noscript>This page draws its pictures with a script of its own; please allow it.</noscript></main>
<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="data">{_embedded(data)}</script>
<script>{script}</script>
</body>
</html>
"""


def _document(one: View) -> dict[str, Any]:
    """Return what the script draws: the pieces, and runs of (length, value) for what seldom changes."""
    document = one.document
    return {
        "where": document.where,
        "source": document.source,
        "id": document.record_id,
        "stage": document.stage,
        "why": one.why,
        "supervised": document.supervised_tokens,
        "typed": one.typed_controls,
        "roles": list(document.roles),
        "pieces": [piece.text for piece in one.pieces],
        "ids": document.ids.tolist(),
        "control": [index for index, piece in enumerate(one.pieces) if piece.control],
        "partial": [index for index, piece in enumerate(one.pieces) if piece.partial],
        "weight": _lengths(document.weights),
        "message": _lengths(document.message),
        "part": _lengths(document.part),
    }


def _lengths(values: np.ndarray[Any, Any]) -> list[list[float]]:
    return [[end - start, values[start].item()] for start, end in runs(values)]


def _embedded(data: Any) -> str:
    """Return JSON that cannot end the script element it stands in."""
    return encode_json(data).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _asset(name: str) -> str:
    return (files("tutelage.chat") / "assets" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
