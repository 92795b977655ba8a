"""NEFTune noise: a document's own, whatever it is laid out with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tiny import tiny_model
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Layout
from tutelage.data.order import hash64
from tutelage.model.attention import NAME, register_attention
from tutelage.model.head import supervised_losses
from tutelage.model.noise import _mix, embedding_noise, noisy_embeddings
from tutelage.pack.batch import Batch, make_batches

HIDDEN = 32
STRENGTH = {"alpha": 5.0, "seed": 3, "step": 7}


def document(length: int, number: int) -> Rendered:
    ids = np.random.default_rng(number).integers(3, 384, length).astype(np.int32)
    return Rendered(
        ids=ids,
        weights=np.ones(length, dtype=np.float32),
        message=np.zeros(length, dtype=np.int32),
        part=np.ones(length, dtype=np.int8),
        roles=("assistant",),
        record_id=f"record-{number}",
        source="test",
        where=f"test:{number}",
    )


DOCUMENTS = [document(length, number) for number, length in enumerate((9, 31, 1, 16))]


def embedded(batch: Batch, *, train: bool = True) -> torch.Tensor:
    """Return what the noise adds to the embeddings of a batch, as rows [B, T, H]."""
    model = tiny_model("llama").train(train)
    seen: list[torch.Tensor] = []
    with noisy_embeddings(model, batch, **STRENGTH):
        model.get_input_embeddings().register_forward_hook(lambda _, __, output: seen.append(output))
        output = model.get_input_embeddings()(batch.input_ids)
    plain = torch.nn.functional.embedding(batch.input_ids, model.get_input_embeddings().weight)
    assert torch.equal(seen[0], output)
    return (output - plain).detach()


def alone(number: int) -> torch.Tensor:
    (batch,) = make_batches([DOCUMENTS[number]], Layout.SINGLE, 64)
    return embedded(batch)[0]


@pytest.mark.parametrize("numbers", [(0, 1, 2, 3), (3, 1, 0, 2)])
@pytest.mark.parametrize("layout", [Layout.PACKED, Layout.PADDED])
def test_a_document_has_the_same_noise_alone_packed_and_padded_in_any_order(
    layout: Layout, numbers: tuple[int, ...]
) -> None:
    documents = [DOCUMENTS[number] for number in numbers]
    for batch in make_batches(documents, layout, 64):
        noise_BTH = embedded(batch)
        start = 0
        for row, key in enumerate(batch.document_keys.tolist()):
            number = next(
                n for n in numbers if make_batches([DOCUMENTS[n]], Layout.SINGLE, 64)[0].document_keys.item() == key
            )
            length = len(DOCUMENTS[number])
            if layout is Layout.PACKED:
                own = noise_BTH[0, start : start + length]
                start += length
            else:
                own = noise_BTH[row, :length]
                assert not bool(noise_BTH[row, length:].any())
            assert torch.equal(own, alone(number))


def test_noise_is_uniform_in_the_range_of_the_documents_own_length() -> None:
    keys = torch.tensor([11, -12, 2**62])
    lengths = (400, 100, 1000)
    noise_NH = embedding_noise(keys, lengths, HIDDEN + 1, **STRENGTH)  # an odd number of channels
    for length, part in zip(lengths, noise_NH.split(lengths), strict=True):
        bound = STRENGTH["alpha"] / (length * (HIDDEN + 1)) ** 0.5
        scaled = (part / bound).flatten().double()
        assert scaled.abs().max() <= 1
        sigma = (1 / 3 / scaled.numel()) ** 0.5  # standard deviation of the mean of uniform(-1, 1)
        assert abs(float(scaled.mean())) < 5 * sigma
        counts = torch.histc(scaled.float(), bins=10, min=-1, max=1)
        expected = scaled.numel() / 10
        assert float(((counts - expected) ** 2 / expected).sum()) < 30  # chi squared, 9 degrees of freedom


def test_neighbouring_positions_channels_steps_seeds_and_documents_are_not_correlated() -> None:
    def one(key: int = 5, **changes: int) -> torch.Tensor:
        return embedding_noise(torch.tensor([key]), (500,), 64, **{**STRENGTH, **changes}).double()

    noise = one()
    pairs = {
        "position": (noise[1:], noise[:-1]),
        "channel": (noise[:, 1:], noise[:, :-1]),
        "step": (noise, one(step=8)),
        "seed": (noise, one(seed=4)),
        "document": (noise, one(6)),
    }
    for name, (first, second) in pairs.items():
        correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
        assert abs(float(correlation)) < 0.03, name


def test_there_is_no_noise_in_evaluation_nor_at_strength_zero() -> None:
    (batch,) = make_batches(DOCUMENTS, Layout.PACKED, 64)
    assert not bool(embedded(batch, train=False).any())
    model = tiny_model("llama").train()
    hooks = model.get_input_embeddings()._forward_hooks
    with noisy_embeddings(model, batch, alpha=0.0, seed=0, step=0):
        assert not hooks
    with noisy_embeddings(model, batch, **STRENGTH):
        assert len(hooks) == 1
    assert not hooks  # and none is left behind


def test_a_noisy_step_has_the_same_loss_packed_padded_and_one_by_one() -> None:
    register_attention()
    model = tiny_model("llama", dtype=torch.float64, attn_implementation=NAME).train()

    def loss_of(batches: list[Batch]) -> float:
        total = 0.0
        for batch in batches:
            with noisy_embeddings(model, batch, **STRENGTH), torch.no_grad():
                total += float(supervised_losses(model, batch).weighted_sum)
        return total

    single = loss_of(make_batches(DOCUMENTS, Layout.SINGLE, 64))
    with_noise = [loss_of(make_batches(DOCUMENTS, layout, 256)) for layout in (Layout.PACKED, Layout.PADDED)]
    assert with_noise == pytest.approx([single, single], rel=1e-10)
    model.eval()
    assert loss_of(make_batches(DOCUMENTS, Layout.PACKED, 256)) != pytest.approx(single, rel=1e-4)


def test_the_tensor_hash_is_the_scalar_hash() -> None:
    for value in (0, 1, -1, 2**63 - 1, -(2**63), 123456789):
        expected = hash64(value)  # mixes the count, then count ^ value
        inner = 1 ^ (value & (2**64 - 1))
        signed = inner - 2**64 if inner >= 2**63 else inner
        assert int(_mix(torch.tensor(signed))) & (2**64 - 1) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_noise_is_the_same_bits_on_a_gpu() -> None:
    keys = torch.tensor([11, -12])
    here = embedding_noise(keys, (40, 7), HIDDEN, **STRENGTH)
    there = embedding_noise(keys.cuda(), (40, 7), HIDDEN, **STRENGTH)
    assert torch.equal(here, there.cpu())
