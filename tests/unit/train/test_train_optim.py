from __future__ import annotations

import itertools
import sys

import pytest
import torch

from tiny import tiny_model
from tutelage.config.schema import Optimiser, Schedule, TrainConfig
from tutelage.errors import ConfigError
from tutelage.train import optim
from tutelage.train.optim import build_optimiser, clip_gradients, learning_rate, parameter_groups


def rates(num_steps: int, **settings: object) -> list[float]:
    config = TrainConfig.model_validate({"learning_rate": 1.0, **settings})
    return [learning_rate(step, num_steps, config) for step in range(1, num_steps + 1)]


def test_the_rate_rises_to_the_peak_and_never_starts_at_zero() -> None:
    warm = rates(100, warmup_fraction=0.1)[:10]
    assert warm == pytest.approx([step / 10 for step in range(1, 11)])


@pytest.mark.parametrize("schedule", [Schedule.COSINE, Schedule.LINEAR])
def test_the_last_step_is_at_the_final_fraction(schedule: Schedule) -> None:
    course = rates(50, schedule=schedule, final_fraction=0.1, warmup_fraction=0.1)
    assert course[-1] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in itertools.pairwise(course[5:]))


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert rates(100, schedule="cosine", warmup_fraction=0.0, final_fraction=0.2)[49] == pytest.approx(0.6)


def test_a_constant_rate_stays() -> None:
    assert rates(10, schedule="constant", warmup_fraction=0.0) == [1.0] * 10


def test_a_run_of_one_step_learns() -> None:
    assert rates(1, warmup_fraction=0.03) == [1.0]


def test_only_matrices_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    matrices, vectors = parameter_groups(model, 0.1)
    assert matrices["weight_decay"] == 0.1 and vectors["weight_decay"] == 0.0
    assert [p.ndim for p in matrices["params"]] == [2]  # type: ignore[attr-defined]
    assert [p.ndim for p in vectors["params"]] == [1, 1, 1]  # type: ignore[attr-defined]


def test_frozen_parameters_are_left_out() -> None:
    model = torch.nn.Linear(3, 3)
    model.weight.requires_grad_(False)
    (group,) = parameter_groups(model, 0.1)
    assert group["params"] == [model.bias]


def test_one_update_is_that_of_the_paper() -> None:
    """AdamW with bias correction: after one step each weight moves by lr * g / (|g| + eps), less the decay."""
    model = torch.nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    model.weight.grad = torch.tensor([[0.5, -2.0]])
    optimiser = build_optimiser(model, TrainConfig(learning_rate=0.01, weight_decay=0.1))
    optimiser.step()
    expected = before * (1 - 0.01 * 0.1) - 0.01 * torch.tensor([[1.0, -1.0]])
    torch.testing.assert_close(model.weight.detach(), expected)


def test_clipping_keeps_the_direction_and_reports_the_norm_before() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([parameter], 1.0).item() == pytest.approx(5.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]), rtol=1e-5, atol=0)


def test_zero_turns_clipping_off() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([parameter], 0.0).item() == pytest.approx(5.0)
    assert parameter.grad.tolist() == [3.0, 4.0]


def test_the_8bit_optimiser_says_what_to_install_and_that_it_is_not_for_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = TrainConfig(optimiser="adamw_8bit"), torch.nn.Linear(2, 2)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match="needs bitsandbytes") as error:
        build_optimiser(model, config)
    assert error.value.mend == 'pip install "tutelage[low-memory]"'
    monkeypatch.setattr(optim, "is_sharded", lambda _: True)
    with pytest.raises(ConfigError, match="sharded") as error:
        build_optimiser(model, config)


def steps_of(optimiser: Optimiser, count: int) -> tuple[torch.nn.Module, torch.optim.Optimizer, list[float]]:
    """Take steps with a model whose embedding and matrices are large enough for 8-bit moments."""
    model = tiny_model("llama", hidden_size=64, intermediate_size=128)
    made = build_optimiser(model, TrainConfig(learning_rate=3e-3, optimiser=optimiser))
    ids = torch.arange(3, 67)[None]
    losses = []
    for _ in range(count):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        made.step()
        made.zero_grad()
        losses.append(loss.item())
    return model, made, losses


def test_the_8bit_optimiser_learns_as_the_other_and_has_the_moments_that_are_counted() -> None:
    pytest.importorskip("bitsandbytes", reason="an extra")
    _, _, exact = steps_of(Optimiser.ADAMW, 12)
    model, made, losses = steps_of(Optimiser.ADAMW_8BIT, 12)
    assert losses[-1] < 0.7 * losses[0]
    assert losses == pytest.approx(exact, rel=0.05)
    assert losses != exact
    embedding = made.state[model.get_input_embeddings().weight]
    matrix = made.state[model.model.layers[0].mlp.up_proj.weight]
    assert (embedding["state1"].dtype, matrix["state1"].dtype) == (torch.float32, torch.uint8)
    kept = [v for state in made.state.values() for name, v in state.items() if name not in ("step", "qmap1", "qmap2")]
    counted = optim.empty_8bit_moments(model)
    assert sum(t.nbytes for t in counted) == sum(t.nbytes for t in kept)


def test_the_paged_optimiser_is_refused_where_there_is_no_gpu() -> None:
    with pytest.raises(ConfigError, match="the weights are on cpu") as error:
        build_optimiser(torch.nn.Linear(2, 2), TrainConfig(optimiser="paged_adamw_8bit"))
    assert error.value.mend == "train.optimiser=adamw_8bit"


class PagedStandIn:
    """The parts of bitsandbytes' paged optimiser that a checkpoint meets: memory of its own for large moments."""

    is_paged = True

    def __init__(self) -> None:
        self.name2qmap: dict[str, torch.Tensor] = {}
        self.given: list[torch.Tensor] = []

    def fill_qmap(self) -> None:
        self.name2qmap = {"dynamic": torch.linspace(-1, 1, 256), "udynamic": torch.linspace(0, 1, 256)}

    def get_state_buffer(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        self.given.append(torch.zeros_like(parameter, dtype=dtype))
        return self.given[-1]


def test_moments_of_either_form_are_put_where_the_paged_one_keeps_them() -> None:
    parameter, stand_in = torch.zeros(4, 4096), PagedStandIn()
    random = torch.Generator().manual_seed(0)
    kept = {
        name: torch.randint(256, parameter.shape, dtype=torch.uint8, generator=random) for name in ("state1", "state2")
    }
    kept |= {name: torch.rand(64, generator=random) for name in ("absmax1", "absmax2")}
    state = optim.state_8bit(stand_in, parameter, {**kept, "step": torch.tensor(7)})
    assert state["step"] == 7
    assert all(state[name] is given for name, given in zip(("state1", "state2"), stand_in.given, strict=True))
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())
    assert torch.equal(state["qmap2"], stand_in.name2qmap["udynamic"])


def test_paged_moments_take_no_memory_of_the_gpu_but_their_scales_do() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(400, 400), torch.nn.Linear(100, 100))
    paged, whole = (optim.empty_8bit_moments(model, paged=paged) for paged in (True, False))
    assert sum(t.nbytes for t in whole) - sum(t.nbytes for t in paged) == 2 * 400 * 400
