"""The page: one file that reaches nothing, in which text of a data set stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

from run_folder import add_scores, make_run

from tutelage.report.page import run_page, write_comparison, write_report
from tutelage.report.read import read_run

ATTACK = "</script></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u202e\ud800"


class Outline(HTMLParser):
    """Collects tags, attributes and their balance."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "col"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def hostile_run(folder: Path) -> Path:
    """Make a run in which every text is an attack."""
    make_run(folder, num_steps=20)
    add_scores(folder)
    for path in folder.iterdir():
        if path.name in ("run.json", "config.yaml"):
            continue
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        path.write_text("".join(json.dumps(poison(json.loads(line))) + "\n" for line in lines))
    (folder / "config.yaml").write_text(
        json.dumps({"model": {"path": ATTACK.replace("\ud800", "")}, "data": {"<b>": ATTACK.replace("\ud800", "")}})
    )
    return folder


def poison(value: object) -> object:
    """Put the attack into every string and every key that is not of the format itself."""
    if isinstance(value, dict):
        data_keys = {"dolly", "replay", "too long", "rendered", "document_tokens", "weights", "tolerance", "torch"}
        return {f"{key}{ATTACK}" if key in data_keys else key: poison(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poison(item) for item in value]
    return f"{value}{ATTACK}" if isinstance(value, str) else value


def test_hostile_text_stays_text_everywhere(tmp_path: Path) -> None:
    folder = hostile_run(tmp_path / "x")
    pages = [write_report(folder), write_comparison([folder, make_run(tmp_path / "y")], tmp_path / "both.html")]
    for path in pages:
        page = path.read_text(encoding="utf-8")
        outline = Outline(page)
        assert outline.open == []
        assert [tag for tag, _ in outline.tags].count("script") == 1
        assert "img" not in {tag for tag, _ in outline.tags}
        assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]
        assert "&lt;script&gt;alert(1)" in page
        assert "\u202e" not in page
    assert read_run(folder).problems == ()


def test_the_policy_allows_the_one_style_and_the_one_script_and_no_network(run_folder: Path) -> None:
    page = run_page(read_run(run_folder))
    policy = next(a["content"] for tag, a in Outline(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        inside = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert inside is not None
        digest = base64.b64encode(hashlib.sha256(inside[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_nothing_is_loaded_from_anywhere(run_folder: Path) -> None:
    outline = Outline(run_page(read_run(run_folder)))
    loading = [
        (tag, name, value)
        for tag, attributes in outline.tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "action", "data", "style")
    ]
    assert all(
        tag == "a" and name == "href" and value is not None and value.startswith("#") for tag, name, value in loading
    )
    targets = {attributes["id"] for _, attributes in outline.tags if "id" in attributes}
    assert {value[1:] for _, _, value in loading if value} <= targets


def test_every_plot_says_in_words_what_it_shows(run_folder: Path) -> None:
    plots = [a for tag, a in Outline(run_page(read_run(run_folder))).tags if tag == "svg"]
    assert len(plots) >= 10
    assert all(a["role"] == "img" and a["aria-label"] for a in plots)
    assert any("Loss. training, smoothed: from" in (a["aria-label"] or "") for a in plots)


def test_the_top_says_what_was_trained_and_what_came_of_it(run_folder: Path) -> None:
    page = run_page(read_run(run_folder))
    assert "HuggingFaceTB/SmolLM2-135M, tuned with LoRA of rank 16" in page
    assert "2.93 → 1.54" in page
    assert "3 of 4 passed" in page
    assert "287 of 13,987" in page
    assert "The capital of France is Paris." in page
    assert "The lowest held-out loss, 1.509, was at step 32" in page


def test_the_plan_says_what_shared_prefixes_saved(run_folder: Path) -> None:
    assert "2.8x fewer tokens, 885,754 computed of 2,480,112 trained on" in run_page(read_run(run_folder))


def test_a_run_without_evaluations_and_samples_has_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "bare", num_steps=3, held_out=False)
    (folder / "samples.jsonl").unlink()
    page = run_page(read_run(folder))
    assert "No held-out data was evaluated" in page
    assert "No answers were sampled" in page


def test_rows_that_do_not_add_up_are_called_out(run_folder: Path) -> None:
    ledger = json.loads((run_folder / "ledger.json").read_text())
    assert "do not add up" not in run_page(read_run(run_folder))
    ledger["sources"]["dolly"]["kept"] -= 1
    (run_folder / "ledger.json").write_text(json.dumps(ledger))
    assert "Rows do not add up in dolly." in run_page(read_run(run_folder))


def test_scores_have_intervals_and_a_missing_side_says_so(run_folder: Path) -> None:
    add_scores(run_folder)
    page = run_page(read_run(run_folder))
    assert "80.0 % (72.0 to 86.2), 96/120" in page
    assert "+1.05 %" in page
    stories = page[page.index("<td>stories</td>") :][:120]
    assert "<td>not measured</td><td>87.5 %" in stories


def test_masks_show_line_breaks_once_and_mark_weights(run_folder: Path) -> None:
    page = run_page(read_run(run_folder))
    assert "⏎\n</span>" in page
    assert "⏎⏎" not in page
    assert '<span class="some" title="12: assistant, reasoning, weight 0.5">&lt;think&gt;</span>' in page
    assert '<span class="stop" title="16: assistant, stop, weight 1">&lt;|im_end|&gt;</span>' in page


def test_runs_are_compared_by_what_differs(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a" / "same"), make_run(tmp_path / "b" / "same", learning_rate=1e-3)]
    page = write_comparison(runs, tmp_path / "both.html").read_text()
    differences = page[page.index('id="differences"') : page.index('id="curves"')]
    assert "train.learning_rate" in differences
    assert "model.path" not in differences
    assert "a/same" in page and "b/same" in page


def test_runs_with_equal_settings_are_said_to_be_equal(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    assert "The runs have the same settings." in write_comparison(runs, tmp_path / "both.html").read_text()


def test_what_was_done_to_the_models_is_compared_where_it_was_measured(tmp_path: Path) -> None:
    one, other = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    measure = {"key": "forgetting.text", "title": "loss on text: text", "unit": "bits per byte", "better": "lower"}
    measure |= {"direction": "up", "base": 1.0, "tuned": 1.25, "low": 0.2, "high": 0.3, "items": 40}
    finding = {"title": "It forgot <text>", "detail": "x", "mend": "y", "size": 8.0, "rows": []}
    found = {"base": "base", "tuned": "tuned", "measures": [measure], "findings": [finding]}
    (one / "evaluation.json").write_text(json.dumps(found))
    page = write_comparison([one, other], tmp_path / "both.html").read_text()
    effect = page[page.index('id="effect"') :]
    assert "It forgot &lt;text&gt;" in effect and "not evaluated" in effect
    assert '<span class="bad">0.250 (0.200 to 0.300)</span>' in effect
    (one / "evaluation.json").unlink()
    assert 'id="effect"' not in write_comparison([one, other], tmp_path / "both.html").read_text()


def test_a_long_run_makes_a_page_of_bounded_size(tmp_path: Path) -> None:
    page = run_page(read_run(make_run(tmp_path / "long", num_steps=20_000)))
    assert len(page) < 1_000_000


def test_slices_have_their_curves_and_replay_has_one_where_the_gate_weighed_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    titles = [f"{side} loss per {what}" for side in ("Training", "Held-out") for what in ("turn", "part of an answer")]
    page = run_page(read_run(folder))
    assert all(title in page for title in (*titles, "Weight of replay"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = [{**line, "replay_weight": 1, "per_slice": {"turn 1": [1.0, 2.0]}} for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    (folder / "evals.jsonl").unlink()
    page = run_page(read_run(folder))
    assert not any(title in page for title in (*titles, "Weight of replay"))
