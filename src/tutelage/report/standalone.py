"""A chart of the page as an SVG file of its own, for Markdown: title and legend drawn in, the colours of either scheme carried along."""

from __future__ import annotations

from importlib import resources
from xml.etree import ElementTree

from tutelage.report.charts import WIDTH
from tutelage.report.markup import Markup, h, join

_TITLE_HEIGHT, _KEY_HEIGHT, _PAD = 26, 18, 12
_STYLE = (
    "text.title { font-size: 15px; font-weight: 600; fill: var(--ink); } text.note, text.key { font-size: 12.5px; } "
    "rect.card { fill: var(--card); } rect.swatch { fill: var(--key); } :root { font-family: system-ui, sans-serif; }"
)


def standalone_svg(figure: Markup) -> str:
    """Return a figure of `tutelage.report.charts` as the content of an SVG file; one without values has no drawing."""
    found = ElementTree.fromstring(figure)
    caption, drawing = found.find("figcaption"), found.find("svg")
    assert caption is not None
    note = caption.findtext("small") or ""
    keys = [(item.get("class", ""), item.text or "") for item in found.iter("li")]
    top = _PAD + _TITLE_HEIGHT + _KEY_HEIGHT * (bool(note) + len(keys))
    height = float(drawing.get("viewBox", "").split()[3]) if drawing is not None else 0
    lines = [h("text", {"class": "title", "x": _PAD, "y": _PAD + 14}, caption.text or "")]
    if note:
        lines.append(h("text", {"class": "note", "x": _PAD, "y": _PAD + _TITLE_HEIGHT + 10}, note))
    for place, (colour, name) in enumerate(keys, start=bool(note)):
        y = _PAD + _TITLE_HEIGHT + _KEY_HEIGHT * place
        lines += [
            h("rect", {"class": f"swatch {colour}", "x": _PAD, "y": y + 4, "width": 14, "height": 4}),
            h("text", {"class": "key", "x": _PAD + 20, "y": y + 10}, name),
        ]
    inside = (
        "".join(ElementTree.tostring(child, encoding="unicode") for child in drawing) if drawing is not None else ""
    )
    size = {"width": WIDTH, "height": top + height}
    return h(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {top + height:g}", "role": "img", **size},
        h("title", None, caption.text or ""),
        h("style", None, Markup(f"{_palette()} {_STYLE}")),
        h("rect", {"class": "card", **size}),
        join(lines),
        h("g", {"transform": f"translate(0 {top})"}, Markup(inside)),
    )


def _palette() -> str:
    """Return what the page's style sheet says of colours and of drawings."""
    sheet = (resources.files("tutelage.report") / "assets" / "style.css").read_text(encoding="utf-8")
    variables = sheet[sheet.index(":root {") : sheet.index("}") + 1]
    rules = (line for line in sheet.splitlines() if line.startswith((".c0 ", ".c4 ", "svg .", "svg text")))
    return " ".join([variables.replace("\n", ""), *rules])
