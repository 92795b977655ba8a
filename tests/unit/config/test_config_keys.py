"""Every key of the schema, misspelt and misplaced: each is refused, with the key that was meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tutelage.config import problems
from tutelage.config.load import known_keys, load_config
from tutelage.errors import ConfigError

KEYS = known_keys()
SECTIONS = sorted({key.rpartition(".")[0] for key in KEYS})
ANY_VALUE = "1"


def slips(word: str) -> Iterator[str]:
    """Yield every word one slip of the finger away: a letter left out, twice, exchanged for another, or swapped with the next."""
    for at, letter in enumerate(word):
        yield word[:at] + word[at + 1 :]
        yield word[:at] + letter + word[at:]
        yield word[:at] + ("q" if letter != "q" else "w") + word[at + 1 :]
        if at + 1 < len(word) and letter != word[at + 1]:
            yield word[:at] + word[at + 1] + letter + word[at + 2 :]


def names_of(section: str) -> set[str]:
    """Return the keys that stand in a section, sections in it included."""
    prefix = f"{section}." if section else ""
    return {key.removeprefix(prefix).split(".")[0] for key in KEYS if key.startswith(prefix)}


def written(key: str) -> str:
    """Return a key as one writes it: an item of a list has a number."""
    return key.replace(".N", ".0")


def refused(key: str) -> str:
    """Return the mend that is offered for an unknown key; empty when it was not refused as one."""
    try:
        load_config(None, [f"{key}={ANY_VALUE}"])
    except ConfigError as error:
        return error.mend if f"unknown key `{key}`" in error.problem else ""
    return ""


def misspelt() -> list[tuple[str, str]]:
    """Return (what was typed, what was meant) for every key and every section of the schema."""
    pairs = []
    for meant in sorted(
        {*KEYS, *(".".join(key.split(".")[:depth]) for key in KEYS for depth in range(1, key.count(".") + 1))}
    ):
        section, _, name = meant.rpartition(".")
        if name == "N":
            continue
        for word in sorted(set(slips(name)) - names_of(section) - {""}):
            pairs.append((written(f"{section}.{word}" if section else word), written(meant)))
    return pairs


def misplaced() -> list[tuple[str, set[str]]]:
    """Return (what was typed, all that could be meant) for every key in every section that does not have it."""
    pairs = []
    for key in KEYS:
        name = key.rpartition(".")[2]
        meant = {written(other) for other in KEYS if other.rpartition(".")[2] == name}
        for section in ("", *SECTIONS):
            if name not in names_of(section) and section.rpartition(".")[2] != name:
                pairs.append((written(f"{section}.{name}" if section else name), meant))
    return pairs


def faults_of_misspelt() -> list[tuple[str, str, str]]:
    found = ((typed, meant, refused(typed)) for typed, meant in misspelt())
    return [(typed, meant, mend) for typed, meant, mend in found if f"`{meant}`" not in written(mend)]


def test_every_misspelt_key_is_refused_with_the_one_that_was_meant(figure: Callable[[str, str], None]) -> None:
    assert faults_of_misspelt() == []
    count = len(misspelt())
    figure(
        "configuration keys misspelt: tried, refused with the right key", f"{count:,}, {count:,} (of {len(KEYS)} keys)"
    )


def test_every_misplaced_key_is_refused_with_where_it_belongs(figure: Callable[[str, str], None]) -> None:
    found = [(typed, meant, refused(typed)) for typed, meant in misplaced()]
    assert [
        (typed, mend) for typed, meant, mend in found if not any(f"`{key}`" in written(mend) for key in meant)
    ] == []
    figure("configuration keys misplaced: tried, refused with the right place", f"{len(found):,}, {len(found):,}")


def test_suggestions_that_are_left_to_chance_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: without the comparison letter by letter, short keys are mistaken for others."""
    monkeypatch.setattr(problems, "_one_edit_apart", lambda word, other: False)
    assert faults_of_misspelt()


@pytest.mark.parametrize("key", [key for key in KEYS if "template_variables" not in key])
def test_every_key_refuses_a_value_of_another_kind(key: str) -> None:
    """A section in place of a value is wrong for every key; the error names the key and the value."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"{written(key)}={{nested: {{deeper: 1}}}}"])
    assert written(key) in caught.value.problem
