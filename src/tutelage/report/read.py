"""Read the files of a run into the records of this room.

A run may be going on, may have stopped at any point, or may come from another version: whatever is absent or has another
shape becomes None or empty and is named in `Run.problems`; the rest is read all the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tutelage.errors import RunDirError
from tutelage.files import jsonl
from tutelage.files.rundir import RunDir
from tutelage.report.records import (
    AnswerPair,
    Changed,
    Check,
    Choice,
    Contrasted,
    Count,
    Effect,
    Evaluation,
    Finding,
    HeldOutSums,
    Histogram,
    KindScore,
    LossScore,
    MaskDocument,
    MaskToken,
    Plan,
    Probed,
    Run,
    Sample,
    ScoredAnswer,
    Scores,
    Share,
    SourceLedger,
    Step,
    TokenShift,
    divide,
)

T = TypeVar("T")


def read_run(folder: str | Path) -> Run:
    """Read every file of the run in `folder`.

    Raises: RunDirError when `folder` is not a run directory.
    """
    place = RunDir.open(folder)
    problems: list[str] = []

    def read(path: Path, reader: Callable[[Path], T], empty: T) -> T:
        if not path.exists():
            return empty
        try:
            return reader(path)
        except (
            OSError,
            ValueError,
            TypeError,
            AttributeError,
            KeyError,
            IndexError,
            yaml.YAMLError,
            RunDirError,
        ) as error:
            problems.append(
                f"{path.name} could not be read ({type(error).__name__}: {error}); its part of the page is empty"
            )
            return empty

    status: dict[str, Any] = read(place.status_file, _json_object, {})
    return Run(
        folder=Path(folder),
        status=_text_or_none(status.get("status")),
        started=_text_or_none(status.get("started")),
        ended=_text_or_none(status.get("ended")),
        result=status.get("result"),
        config=read(place.config, _yaml_object, {}),
        origins=read(place.origins, _json_object, {}),
        environment=read(place.environment, _json_object, {}),
        plan=read(place.plan, _read_plan, Plan()),
        ledger=read(place.ledger, _read_ledger, ()),
        steps=read(place.metrics, _read_steps, ()),
        evaluations=read(place.evals, _read_evaluations, ()),
        samples=read(place.samples, _read_samples, ()),
        masks=read(place.masks, _read_masks, ()),
        checks=read(place.receipt, _read_checks, ()),
        scores=read(place.path / "scores.json", _read_scores, None),
        effect=read(place.evaluation, _read_effect, None),
        problems=tuple(problems),
    )


def _read_steps(path: Path) -> tuple[Step, ...]:
    rows = {
        int(row["step"]): row for row in jsonl.read(path)
    }  # a resumed run may have written a step twice: the last counts
    return tuple(_step(rows[number]) for number in sorted(rows))


def _step(row: Mapping[str, Any]) -> Step:
    fields = ("epoch", "loss", "loss_sum", "weight_sum", "tokens", "supervised_tokens", "documents", "packs", "fill")
    values = {
        name: _number(row.get(name)) for name in (*fields, "seconds", "learning_rate", "grad_norm", "replay_weight")
    }
    if values["loss"] is None:
        values["loss"] = divide(values["loss_sum"], values["weight_sum"])
    return Step(
        step=int(row["step"]), per_source=_sums(row.get("per_source")), per_slice=_sums(row.get("per_slice")), **values
    )


def _sums(value: Any) -> dict[str, tuple[float | None, float | None]]:
    return {str(name): (_number(sums[0]), _number(sums[1])) for name, sums in _mapping(value).items()}


def _read_evaluations(path: Path) -> tuple[Evaluation, ...]:
    rows = {int(row["step"]): row for row in jsonl.read(path)}
    return tuple(_evaluation(rows[number]) for number in sorted(rows))


def _evaluation(row: Mapping[str, Any]) -> Evaluation:
    loss, perplexity, seconds = (_number(row.get(key)) for key in ("loss", "perplexity", "seconds"))
    per_source, per_slice = (_held_out_sums(row.get(key)) for key in ("per_source", "per_slice"))
    probed = _probed(_mapping(row.get("probed")))
    return Evaluation(int(row["step"]), loss, perplexity, seconds, per_source, per_slice, probed)


def _probed(row: Mapping[str, Any]) -> Probed:
    habits = {
        str(name): (_number(habit.get("share")), _number(habit.get("data")))
        for name, habit in _mapping(row.get("habits")).items()
    }
    return Probed(_number(row.get("text_loss")), habits, divide(_number(row.get("right")), _number(row.get("points"))))


def _held_out_sums(value: Any) -> dict[str, HeldOutSums]:
    keys = ("loss_sum", "weight_sum", "correct", "tokens")
    return {str(name): HeldOutSums(*(_number(sums.get(key)) for key in keys)) for name, sums in _mapping(value).items()}


def _read_samples(path: Path) -> tuple[Sample, ...]:
    return tuple(
        Sample(
            int(row["step"]),
            tuple((_text(m.get("role")), _text(m.get("content"))) for m in row["prompt"]),
            _text(row.get("answer")),
            _flag(row.get("stopped")),
            _number(row.get("num_tokens")),
        )
        for row in jsonl.read(path)
    )


def _read_checks(path: Path) -> tuple[Check, ...]:
    return tuple(
        Check(_text(c.get("law")), _text(c.get("name")), _flag(c.get("passed")), _mapping(c.get("figures")), _text(c.get("detail")))
        for c in _json_object(path)["checks"]
    )  # fmt: skip


def _read_masks(path: Path) -> tuple[MaskDocument, ...]:
    return tuple(
        MaskDocument(
            _text(d.get("where")),
            _text(d.get("source")),
            _text(d.get("why")),
            _number(d.get("num_tokens")),
            _number(d.get("supervised_tokens")),
            tuple(
                MaskToken(_text(p), float(w), int(m), _text(role), _text(part)) for p, w, m, role, part in d["tokens"]
            ),
        )
        for d in _json_object(path)["documents"]
    )


def _read_ledger(path: Path) -> tuple[SourceLedger, ...]:
    return tuple(_source_ledger(str(name), source) for name, source in _json_object(path)["sources"].items())


def _source_ledger(name: str, row: Mapping[str, Any]) -> SourceLedger:
    stages = _mapping(row.get("tokens"))
    return SourceLedger(
        name,
        _text(row.get("taken_as")),
        _number(row.get("rows")),
        _number(row.get("kept")),
        {str(reason): float(n) for reason, n in _mapping(row.get("dropped")).items()},
        {str(stage): (_number(t.get("tokens")), _number(t.get("supervised"))) for stage, t in stages.items()},
        {str(file): _text(digest) for file, digest in _mapping(row.get("files")).items()},
    )


def _read_plan(path: Path) -> Plan:
    row = _json_object(path)
    plain = ("documents", "held_out_documents", "tokens", "supervised_tokens", "packs", "fill", "steps", "epochs")
    of_model = ("parameters", "trainable_parameters", "memory_predicted_bytes")
    values = {name: _number(row.get(name)) for name in (*plain, *of_model)}
    histograms = {
        str(name): Histogram(tuple(map(float, bins["edges"])), tuple(map(float, bins["counts"])))
        for name, bins in _mapping(row.get("histograms")).items()
    }
    memory = {str(name): _number(size) for name, size in _mapping(row.get("memory_bytes")).items()}
    return Plan(
        **values,
        layout=_choice(row.get("layout")),
        attention=_choice(row.get("attention")),
        shared_prefixes=_text_or_none(row.get("shared_prefixes")),
        memory_bytes=memory or None,
        histograms=histograms or None,
        shares=tuple(_share(share) for share in row.get("shares") or ()),
    )


def _share(row: Mapping[str, Any]) -> Share:
    numbers = (_number(row.get(key)) for key in ("asked", "realised", "documents", "tokens", "supervised_tokens"))
    return Share(_text(row.get("source")), *numbers)


def _choice(value: Any) -> Choice | None:
    if isinstance(value, Mapping):
        return Choice(_text(value.get("name")), _text(value.get("reason")))
    return Choice(_text(value), "") if value is not None else None


def _read_scores(path: Path) -> Scores | None:
    row = _json_object(path)
    kinds = tuple(
        KindScore(_text(k.get("name")), _count(k.get("base")), _count(k.get("tuned"))) for k in row.get("kinds") or ()
    )
    losses = tuple(
        LossScore(_text(entry.get("name")), _mean_loss(entry.get("base")), _mean_loss(entry.get("tuned")))
        for entry in row.get("losses") or ()
    )
    answers = tuple(
        ScoredAnswer(
            _text(a.get("kind")),
            _text(a.get("question")),
            _text(a.get("expected")),
            _text_or_none(a.get("base")),
            _text_or_none(a.get("tuned")),
            _flag(a.get("base_correct")),
            _flag(a.get("tuned_correct")),
        )
        for a in row.get("answers") or ()
    )
    return Scores(_text(row.get("title")), _text(row.get("command")), kinds, losses, answers)


def _read_effect(path: Path) -> Effect:
    row = _json_object(path)
    shift = row.get("token_shift")
    return Effect(
        base=_text(row.get("base")),
        tuned=_text(row.get("tuned")),
        findings=tuple(_finding(finding) for finding in row.get("findings") or ()),
        figures=tuple(_changed(measure) for measure in row.get("measures") or ()),
        contrasts=tuple(_contrasted(contrast) for contrast in row.get("contrasts") or ()),
        shift=_token_shift(shift) if isinstance(shift, Mapping) else None,
        answers=tuple(_answer_pair(answer) for answer in row.get("answers") or ()),
    )


def _finding(row: Mapping[str, Any]) -> Finding:
    title, detail, mend = (_text(row.get(key)) for key in ("title", "detail", "mend"))
    return Finding(title, detail, mend, _number(row.get("size")), tuple(map(_text, row.get("rows") or ())))


def _changed(row: Mapping[str, Any]) -> Changed:
    texts: Any = {key: _text(row.get(key)) for key in ("key", "title", "unit", "better", "direction")}
    numbers: Any = {key: _number(row.get(key)) for key in ("base", "tuned", "low", "high", "items", "data")}
    return Changed(**texts, **numbers)


def _contrasted(row: Mapping[str, Any]) -> Contrasted:
    texts: Any = {key: _text(row.get(key)) for key in ("title", "unit", "direction")}
    numbers: Any = {key: _number(row.get(key)) for key in ("held_out", "trained", "low", "high")}
    return Contrasted(**texts, **numbers)


def _token_shift(row: Mapping[str, Any]) -> TokenShift:
    unshifted, marginal, shifted = (_number(row.get(key)) for key in ("unshifted", "marginal", "shifted"))
    return TokenShift(unshifted, marginal, shifted, tuple(_number(kl) for kl in row.get("by_position") or ()))


def _answer_pair(row: Mapping[str, Any]) -> AnswerPair:
    prompt = "\n".join(_text(message.get("content")) for message in row.get("prompt") or ())
    return AnswerPair(prompt, *(_text(row.get(key)) for key in ("where", "data", "base", "tuned")))


def _count(value: Any) -> Count | None:
    if not isinstance(value, Mapping) or value.get("correct") is None or not value.get("total"):
        return None
    return Count(int(value["correct"]), int(value["total"]))


def _mean_loss(value: Any) -> float | None:
    return (
        divide(_number(value.get("loss_sum")), _number(value.get("weight_sum"))) if isinstance(value, Mapping) else None
    )


def _json_object(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise TypeError(f"a JSON object was expected, not {type(value).__name__}")
    return value


def _yaml_object(path: Path) -> dict[str, Any]:
    value = yaml.safe_load(path.read_bytes())
    if not isinstance(value, dict):
        raise TypeError(f"a mapping was expected, not {type(value).__name__}")
    return value


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
