"""The fused LoRA layer: peft's function to the last digits, in fewer operations, and peft's own wherever it is another one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.lora import Linear as PeftLinear
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from tiny import tiny_folder, tiny_model
from tutelage.config.schema import LoraConfig, ModelConfig
from tutelage.model.adapters import add_lora, merge_adapter, trainable_parameters
from tutelage.model.load import load_model
from tutelage.model.lora_linear import fuse_lora_layers

IDS = torch.tensor([[5, 9, 200, 33, 7], [8, 3, 60, 61, 2]])


def lora_layer(*, bias: bool = False, dtype: torch.dtype = torch.float64, **settings: Any) -> PeftLinear:
    """A layer of peft's, 24 to 40 with rank 4, with random weights everywhere and the base frozen."""
    torch.manual_seed(0)
    config = PeftLoraConfig(r=4, lora_alpha=12, init_lora_weights=False, **settings)
    layer = PeftLinear(nn.Linear(24, 40, bias=bias), "default", config, r=4, lora_alpha=12)
    layer.base_layer.requires_grad_(False)
    return layer.to(dtype)


def fused(layer: PeftLinear) -> PeftLinear:
    twin = copy.deepcopy(layer)
    fuse_lora_layers(twin)
    return twin


class CountProducts(TorchDispatchMode):
    """Counts matrix products."""

    products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return func(*args, **(kwargs or {}))


def outcome(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and every gradient of a random linear function of it."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(y.dtype)
    (y * weights).sum().backward()
    gradients = {name: p.grad for name, p in layer.named_parameters() if p.requires_grad}
    return {"y": y.detach(), "x": x.grad, **gradients}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 5, 24), (0, 24)])
@pytest.mark.parametrize("rslora", [False, True])
def test_output_and_gradients_are_those_of_peft(bias: bool, shape: tuple[int, ...], rslora: bool) -> None:
    layer = lora_layer(bias=bias, use_rslora=rslora)
    x = torch.randn(*shape, dtype=torch.float64)
    want, got = outcome(layer, x), outcome(fused(layer), x)
    assert want.keys() == got.keys() >= {"y", "x", "lora_A.default.weight", "lora_B.default.weight"}
    for name, tensor in want.items():
        assert torch.allclose(got[name], tensor, rtol=1e-12, atol=1e-12), name


def test_the_gradients_are_those_of_finite_differences() -> None:
    layer = fused(lora_layer(bias=True))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight

    def run(x: Tensor, a_RI: Tensor, b_OR: Tensor) -> Tensor:
        values = {"lora_A.default.weight": a_RI, "lora_B.default.weight": b_OR}
        return torch.func.functional_call(layer, values, (x,))

    x = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, a.detach().requires_grad_(), b.detach().requires_grad_()))


def test_a_gradient_or_input_that_is_not_contiguous_makes_no_difference() -> None:
    layer = lora_layer()
    x = torch.randn(24, 6, 2, dtype=torch.float64).permute(2, 1, 0)
    twin = fused(layer)
    for each in (layer, twin):
        each(x).transpose(0, 1)[:, :1].expand(-1, 3, -1).sum().backward()
    for want, got in zip(layer.parameters(), twin.parameters(), strict=True):
        if want.requires_grad:
            assert torch.allclose(got.grad, want.grad, rtol=1e-12, atol=1e-12)


def test_under_autocast_it_is_bf16_and_no_further_from_the_truth_than_peft() -> None:
    layer = lora_layer(bias=True, dtype=torch.float32)
    x = torch.randn(64, 24)
    truth = outcome(layer.double(), x.double())
    layer = layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        want, got = outcome(layer, x), outcome(fused(layer), x)
    assert got["y"].dtype == torch.bfloat16
    for name, exact in truth.items():
        assert got[name].dtype == want[name].dtype
        error = (got[name].double() - exact).norm()
        assert error <= 1.2 * (want[name].double() - exact).norm(), name


def test_only_the_input_and_its_projection_are_kept_for_the_backward_pass() -> None:
    layer = fused(lora_layer())
    kept: list[Tensor] = []
    x = torch.randn(100, 24, dtype=torch.float64, requires_grad=True)
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = layer(x)
    weights = {parameter.data_ptr() for parameter in layer.parameters()}
    assert sorted(tuple(t.shape) for t in kept if t.data_ptr() not in weights) == [(100, 4), (100, 24)]
    assert {t.data_ptr() for t in kept if t.shape == x.shape} == {x.data_ptr()}  # the input itself, not a copy
    assert y.grad_fn is not None
    assert "LoraLinear" in y.grad_fn.name()


@pytest.mark.parametrize(("needed", "products"), [(True, 5), (False, 3)])
def test_the_backward_pass_makes_no_product_that_nobody_needs(needed: bool, products: int) -> None:
    layer = fused(lora_layer())
    y = layer(torch.randn(3, 24, dtype=torch.float64, requires_grad=needed))
    with CountProducts() as counted:
        y.sum().backward()
    assert counted.products == products


@pytest.mark.parametrize(
    "settings",
    [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}],
    ids=lambda settings: next(iter(settings)),
)
def test_layers_that_do_more_keep_the_forward_pass_of_peft(settings: dict[str, Any]) -> None:
    layer = lora_layer(bias=True, **settings)
    x = torch.randn(6, 24, dtype=torch.float64)
    torch.manual_seed(5)
    want = outcome(layer, x)
    torch.manual_seed(5)
    got = outcome(fused(layer), x)
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


def test_an_adapter_that_is_off_merged_or_not_alone_is_left_to_peft() -> None:
    layer = lora_layer()
    twin = fused(layer)
    x = torch.randn(6, 24, dtype=torch.float64)

    def both() -> None:
        want, got = layer(x), twin(x)
        assert torch.equal(got, want)
        assert got.grad_fn is None or "LoraLinear" not in got.grad_fn.name()

    for each in (layer, twin):
        each.enable_adapters(False)
    both()
    for each in (layer, twin):
        each.enable_adapters(True)
        each.merge()
    both()
    for each in (layer, twin):
        each.unmerge()
        torch.manual_seed(7)
        each.update_layer("second", 2, lora_alpha=2, config=PeftLoraConfig(r=2, init_lora_weights=False))
        each.double().set_adapter(["default", "second"])
    both()


def test_nothing_below_the_first_adapter_takes_part_in_the_backward_pass() -> None:
    model = add_lora(tiny_model("llama"), LoraConfig(rank=2)).train()
    seen: dict[str, Tensor] = {}
    decoder = model.get_base_model().model
    places = {"embedding": decoder.embed_tokens, "norm": decoder.layers[0].input_layernorm, "first": decoder.layers[0]}
    for place, module in places.items():
        module.register_forward_hook(lambda _module, _inputs, output, place=place: seen.update({place: output}))
    model(input_ids=IDS, labels=IDS).loss.backward()
    for place in ("embedding", "norm"):
        assert not seen[place].requires_grad
        assert seen[place].grad_fn is None
    assert seen["first"].requires_grad
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("family", ["llama_tied", "qwen2", "gemma2", "gpt_neox", "phi3"])
def test_whole_models_have_the_loss_and_gradients_of_peft(family: str) -> None:
    def run(*, of_peft: bool) -> dict[str, Tensor]:
        model = add_lora(tiny_model(family, dtype=torch.float64), LoraConfig(rank=2)).double()
        disturb(model)
        layers = [module for module in model.modules() if "forward" in vars(module)]
        assert layers
        if of_peft:
            for layer in layers:
                del layer.forward
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        return {"loss": loss.detach(), **{name: p.grad for name, p in trainable_parameters(model)}}

    want, got = run(of_peft=True), run(of_peft=False)
    for name, tensor in want.items():
        assert torch.allclose(got[name], tensor, rtol=1e-9, atol=1e-12 * float(tensor.abs().max())), name


def test_what_is_saved_loads_into_plain_peft_and_merges_to_the_same_model(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", "llama")
    model = add_lora(load_model(ModelConfig(path=str(base))).model, LoraConfig(rank=2))
    disturb(model)
    want = model(IDS).logits.detach()
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert all(name.endswith(("lora_A.weight", "lora_B.weight")) for name in names)
    again = load_model(ModelConfig(path=str(tmp_path / "adapter"))).model
    assert not any("forward" in vars(module) for module in again.modules())  # to answer, peft's own will do
    assert torch.allclose(again(IDS).logits, want, atol=1e-5)
    trained = load_model(ModelConfig(path=str(tmp_path / "adapter")), train_adapter=True).model
    assert torch.allclose(trained(IDS).logits, want, atol=1e-6)
    assert torch.allclose(merge_adapter(model)(IDS).logits, want, atol=1e-5)


def disturb(model: nn.Module) -> None:
    """Move every trainable weight, as training would."""
    generator = torch.Generator().manual_seed(1)
    for _, parameter in trainable_parameters(model):
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float32))
