"""Slices of supervised tokens: which turn, and what of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tiny import tiny_model
from tutelage.chat.rendered import Part, Rendered
from tutelage.config.schema import Layout
from tutelage.model.attention import NAME, register_attention
from tutelage.model.head import supervised_losses
from tutelage.pack.batch import make_batches, pack_batch
from tutelage.pack.slices import NUM_CELLS, SLICES, cells_of
from tutelage.train.objective import TokenSums

register_attention()
H, C, R, T, S = Part.HEADER, Part.CONTENT, Part.REASONING, Part.TOOL_CALL, Part.STOP


def conversation(turns: list[tuple[str, str]], *, seed: int = 0) -> Rendered:
    """Return a document with two tokens of header for each message, and a token for each letter of its parts.

    `turns` are (role, parts), with c, r, t, s for content, reasoning, tool call, stop; those of the assistant carry loss.
    """
    part, message, weights = [], [], []
    for number, (role, letters) in enumerate(turns):
        part += [H, H, *({"c": C, "r": R, "t": T, "s": S}[letter] for letter in letters)]
        message += [number] * (2 + len(letters))
        weights += [0.0, 0.0, *([1.0 if role == "assistant" else 0.0] * len(letters))]
    count = len(part)
    return Rendered(
        ids=np.random.default_rng(seed).integers(3, 60, count).astype(np.int32),
        weights=np.array(weights, dtype=np.float32),
        message=np.array(message, dtype=np.int32),
        part=np.array(part, dtype=np.int8),
        roles=tuple(role for role, _ in turns),
        record_id=f"conversation-{seed}",
        source="chats",
        where="here",
    )


LONG = conversation(
    [
        ("system", "cc"),
        ("user", "ccc"),
        ("assistant", "rrccs"),
        ("user", "c"),
        ("assistant", "tts"),
        ("tool", "cc"),
        ("assistant", "cs"),
        ("user", "c"),
        ("assistant", "cs"),
        ("user", "c"),
        ("assistant", "ccs"),
    ]
)


def supervised(document: Rendered) -> np.ndarray:
    return np.flatnonzero(document.weights[1:]) + 1


def counts(cells: np.ndarray) -> dict[str, int]:
    found = {name: int(np.isin(cells, own).sum()) for name, own in SLICES.items()}
    return {name: number for name, number in found.items() if number}


def test_tokens_are_counted_by_turn_and_by_what_they_are() -> None:
    assert counts(cells_of(LONG, supervised(LONG))) == {
        "turn 1": 5,
        "turn 2": 3,
        "turn 3": 2,
        "turn 4 and later": 5,  # two turns
        "first token": 5,
        "answer": 6,
        "reasoning": 2,
        "tool call": 2,
        "stop token": 5,
    }


def test_the_first_token_is_the_first_that_carries_loss() -> None:
    weights = LONG.weights.copy()
    weights[LONG.part == R] = 0
    silent = replace(LONG, weights=weights)
    cells = cells_of(silent, supervised(silent))
    firsts = supervised(silent)[np.isin(cells, SLICES["first token"])]
    assert silent.part[firsts].tolist() == [C, T, C, C, C] and "reasoning" not in counts(cells)


def test_turns_share_no_cell_and_neither_do_parts() -> None:
    turns = [cell for name, cells in SLICES.items() if name.startswith("turn") for cell in cells]
    parts = [cell for name in ("answer", "reasoning", "tool call", "stop token") for cell in SLICES[name]]
    assert len(set(turns)) == len(turns) == NUM_CELLS - 1
    assert len(set(parts)) == len(parts)


def test_plain_text_is_in_no_slice() -> None:
    text = replace(LONG, roles=(), message=np.full(len(LONG), -1, dtype=np.int32))
    assert counts(cells_of(text, supervised(text))) == {}


@pytest.mark.parametrize("layout", [Layout.PACKED, Layout.PADDED, Layout.SINGLE])
def test_sums_of_slices_are_those_of_each_token_taken_by_itself(layout: Layout) -> None:
    documents = [
        LONG,
        conversation([("user", "cc"), ("assistant", "cccs")], seed=1),
        conversation([("user", "c"), ("assistant", "s"), ("user", "c"), ("assistant", "rcs")], seed=2),
    ]
    model = tiny_model("llama_tied", dtype=torch.float64).eval()
    model.set_attn_implementation(NAME)
    expected: dict[str, list[float]] = {}
    for document in documents:
        turn, last = 0, -1
        ids = torch.from_numpy(document.ids).long()
        with torch.no_grad():
            log_p = model(input_ids=ids[None]).logits[0].log_softmax(dim=-1)
        for place in supervised(document):
            is_first, last = document.message[place] != last, document.message[place]
            turn += is_first
            part = {C: "answer", R: "reasoning", T: "tool call", S: "stop token"}[Part(document.part[place])]
            own = [f"turn {turn}" if turn < 4 else "turn 4 and later", part, *(["first token"] if is_first else [])]
            for name in own:
                sums = expected.setdefault(name, [0.0, 0.0])
                sums[0] -= log_p[place - 1, ids[place]].item()
                sums[1] += 1
    sums = TokenSums(("chats",), torch.device("cpu"))
    with torch.no_grad():
        for batch in make_batches(documents, layout, 64):
            sums.add(supervised_losses(model, batch), batch)
    found = sums.over_all_ranks().by_slice
    assert {name: one.tokens for name, one in found.items()} == {name: one[1] for name, one in expected.items()}
    for name, (loss_sum, weight_sum) in expected.items():
        assert found[name].loss_sum == pytest.approx(loss_sum, rel=1e-9), name
        assert found[name].weight_sum == weight_sum


def test_branches_of_a_tree_have_the_cells_of_documents_apart() -> None:
    one = conversation([("user", "ccccc"), ("assistant", "ccs")], seed=3)
    ids = one.ids.copy()
    ids[-2] += 1
    other = replace(one, ids=ids, record_id="other")
    together, apart = pack_batch([one, other], [0, 9]), pack_batch([one, other])
    assert together.num_tokens < apart.num_tokens
    assert together.supervised_cell.tolist() == apart.supervised_cell.tolist()
