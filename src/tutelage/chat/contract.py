"""The render contract: what must hold between template, tokenizer and masks before a run may start.

It is checked on the first conversations of the data, and on small synthetic ones of the same shapes in which every
control string of the vocabulary is typed by the user. Failures name row, turn and token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.chat import clauses
from tutelage.chat.clauses import Sample
from tutelage.chat.probes import shapes_of, synthetic
from tutelage.chat.render import Renderer
from tutelage.config.schema import ControlStrings
from tutelage.data.conversation import Conversation
from tutelage.errors import TemplateError, TutelageError


@dataclass(frozen=True)
class Check:
    """One clause of the contract: whether it holds, and in `detail` the figures, or the row, turn and token at fault."""

    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True)
class ContractReport:
    """Every clause that was checked."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether all clauses hold."""
        return all(check.passed for check in self.checks)

    def raise_if_broken(self) -> None:
        """Raise TemplateError naming every clause that does not hold."""
        broken = [f"{check.name}: {check.detail}" for check in self.checks if not check.passed]
        if broken:
            raise TemplateError(
                "the chat template breaks the render contract\n  " + "\n  ".join(broken),
                mend="use a template that keeps it (model.template=chatml, llama3, plain or a .jinja file)",
            )

    def to_json(self) -> list[dict[str, Any]]:
        """Return the checks as plain objects."""
        return [{"name": check.name, "passed": check.passed, "detail": check.detail} for check in self.checks]


_Clause = Callable[[Renderer, Sequence[Sample]], Iterator[str]]


def check_contract(renderer: Renderer, conversations: Sequence[Conversation]) -> ContractReport:
    """Check every clause on `conversations` and on synthetic ones of the same shapes.

    Raises: TemplateError when there is no template at all.
    """
    renderer.dialect_for()
    shapes = shapes_of(conversations)
    samples, refused = _rendered(renderer, conversations, [synthetic(shape) for shape in shapes])
    checks = [_renders(conversations, samples, refused)]
    if not samples:
        return ContractReport(tuple(checks))
    documents = f"{len(samples)} documents"
    table: tuple[tuple[str, _Clause, str], ...] = (
        ("ids equal apply_chat_template", clauses.wrong_ids, documents),
        ("the generation prompt precedes each turn", clauses.wrong_prompts, _turns(samples)),
        ("a stop token ends each turn and is trained", clauses.wrong_stops, _stops(renderer, samples)),
        ("one BOS at most", clauses.doubled_bos, documents),
        ("only the assistants' words are trained", clauses.wrong_masks, _trained(samples)),
        ("{% generation %} agrees", clauses.wrong_generation, _generation(samples)),
    )
    for name, find_faults, detail in table:
        faults = list(find_faults(renderer, samples))
        checks.append(Check(name, not faults, _summary(faults) or detail))
    live = list(clauses.live_controls(renderer, shapes))
    refuses = renderer.options.control_strings is ControlStrings.REFUSE
    fate = "refused" if refuses else "text"
    detail = f"{len(renderer.tokenizer.control_ids)} control strings typed by a user: {fate}"
    checks.append(Check("control strings are inert", not live, _summary(live) or detail))
    checks.append(Check("each turn stands in the text of its own moment", True, _history(samples)))
    return ContractReport(tuple(checks))


def _rendered(
    renderer: Renderer, conversations: Sequence[Conversation], made: Sequence[Conversation]
) -> tuple[list[Sample], dict[str, str]]:
    """Render everything; return the documents, and why each real row that was refused was."""
    samples: list[Sample] = []
    refused: dict[str, str] = {}
    for number, record in enumerate((*conversations, *made)):
        is_made = number >= len(conversations)
        try:
            samples += [Sample(record, document, is_made) for document in renderer.inspect(record)]
        except TutelageError as error:
            if not is_made:
                refused[str(record.origin or record.id)] = error.problem
    return samples, refused


def _renders(conversations: Sequence[Conversation], samples: Sequence[Sample], refused: Mapping[str, str]) -> Check:
    name = "the template renders the conversations"
    if not refused:
        return Check(name, bool(samples), f"{len(conversations)} of {len(conversations)}")
    where, reason = next(iter(refused.items()))
    detail = f"{len(refused)} of {len(conversations)} refused, the first ({where}): {reason}"
    return Check(name, len(refused) < len(conversations), detail)


def _summary(faults: Sequence[str]) -> str:
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return faults[0] + more if faults else ""


def _turns(samples: Sequence[Sample]) -> str:
    count = sum(len(sample.document.draft.turns) for sample in samples)
    merged = clauses.merged_turns(samples)
    note = f", {merged} of them begin inside a token that also holds the end of the prompt" if merged else ""
    return f"{count} turns{note}"


def _stops(renderer: Renderer, samples: Sequence[Sample]) -> str:
    found = {turn.stop_id for sample in samples for turn in sample.document.draft.turns} - {None}
    parts = []
    for number in sorted(number for number in found if number is not None):
        known = number in renderer.tokenizer.eos_ids
        note = "" if known else ", to be added to the saved generation configuration"
        parts.append(f"{renderer.tokenizer.decode([number])!r} (id {number}{note})")
    return ", ".join(parts)


def _trained(samples: Sequence[Sample]) -> str:
    trained = sum(sample.document.rendered.supervised_tokens for sample in samples)
    total = sum(len(sample.document.rendered) for sample in samples)
    return f"{trained:,} of {total:,} tokens"


def _generation(samples: Sequence[Sample]) -> str:
    marked = sum(bool(sample.document.draft.render.generation) for sample in samples)
    return f"compared in {marked} documents" if marked else "the template has no such marks"


def _history(samples: Sequence[Sample]) -> str:
    split = {sample.record.id for sample in samples if sample.document.rendered.stage}
    count = len({sample.record.id for sample in samples})
    if not split:
        return "the template leaves earlier messages as they were"
    return f"the template rewrites earlier messages: {len(split)} of {count} conversations become one document per turn"
