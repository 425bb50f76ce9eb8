"""Identities of the distortion-saliency module and the weighting, in float64."""

import importlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drexperts.model.backbones import Prior
from drexperts.model.config import PRESETS, DRExpertsConfig
from drexperts.model.experts import (
    EXPERTS,
    AbsorbedQuery,
    DistortionSaliency,
    ExpertLinear,
    ExpertWeighting,
    bilinear_matrix,
    token_spread,
)

TOLERANCE = 1e-10
SWITCHES = {
    "distortion_source": ("tokens", "pooled"),
    "distortion_keys": ("embedding", "hidden"),
    "projections": ("per_expert", "shared"),
    "semantic_norm": ("single", "iterated"),
}
MIXES = [
    dict(zip(SWITCHES, values, strict=True)) for values in itertools.product(*SWITCHES.values())
]


def randomised(module: nn.Module, seed: int = 0) -> Any:
    """The module in float64 with every parameter away from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.add_(0.4 * noise)
    return module


def inputs(config: DRExpertsConfig, batch: int = 2) -> tuple[Tensor, Prior, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def leaf(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    tokens = leaf(batch, 1 + config.encoder.grid**2, config.encoder.width)
    coarse, controller = config.controller.grid**2, config.controller
    prior = Prior(
        leaf(batch, 1 + coarse, controller.embedding), leaf(batch, coarse, controller.width)
    )
    return tokens, prior, leaf(EXPERTS, controller.embedding)


def values_and_gradients(
    form: Callable[..., Any], module: nn.Module, given: tuple[Tensor, Prior, Tensor]
) -> dict[str, Tensor]:
    """Outputs at the CLS row, and the gradients of every input and parameter of a mixed sum."""
    features, maps = form(*given)
    generator = torch.Generator().manual_seed(2)
    mix = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in (features, maps)]
    total = (features.sin() * mix[0]).sum() + (maps * mix[1]).sum()
    leaves: dict[str, Tensor] = {f"parameter {n}": p for n, p in module.named_parameters()}
    tokens, prior, prompts = given
    leaves |= {"tokens": tokens, "embedding": prior.embedding, "prompts": prompts}
    leaves |= {} if prior.hidden is None else {"hidden": prior.hidden}
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    # The gradient of a parameter that a form does not read, such as a key bias, is zero.
    gradients = {
        f"gradient of {name}": torch.zeros_like(leaf) if g is None else g
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }
    return {"features": features.detach(), "maps": maps.detach()} | gradients


def assert_forms_agree(config: DRExpertsConfig) -> None:
    module: DistortionSaliency = randomised(DistortionSaliency(config))
    given = inputs(config)
    reduced = values_and_gradients(module, module, given)
    literal = values_and_gradients(partial(dense_cls_row, module, None), module, given)
    torch.testing.assert_close(reduced, literal, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("switches", MIXES, ids=lambda mix: "-".join(mix.values()))
def test_cls_row_equals_the_literal_form_for_every_mix_of_switches(switches, tiny):
    assert_forms_agree(tiny(**switches))


def dense_cls_row(module: DistortionSaliency, backend: str | None, *given: Any) -> Any:
    features, maps = module.forward_dense(*given, backend=backend)
    return features[:, :, 0], maps


def form_of(module: DistortionSaliency, form: str, backend: str) -> Callable[..., Any]:
    module.pooling.backend = backend
    return module if form == "forward" else partial(dense_cls_row, module, backend)


@pytest.mark.parametrize(
    ("form", "preset"),
    [
        ("forward", "paper"),
        pytest.param("forward", "official", marks=pytest.mark.slow),
        ("forward_dense", "paper"),
        pytest.param("forward_dense", "official", marks=pytest.mark.slow),
    ],
)
def test_the_kernels_serve_the_module(form, preset, tiny):
    """Values and gradients are at most twice as far from float64 as plain PyTorch in float32."""
    config = tiny(preset)
    if form == "forward_dense":  # its kernels take multiples of 64
        config = replace(config, encoder=replace(config.encoder, width=64))
    torch.manual_seed(0)
    module: DistortionSaliency = randomised(DistortionSaliency(config))
    given = inputs(config, batch=1 if form == "forward_dense" else 2)
    exact = values_and_gradients(form_of(module, form, "reference"), module, given)
    module = module.float()
    tokens, prior, prompts = given
    leaves = [
        x.detach().float().requires_grad_() for x in (tokens, *prior, prompts) if x is not None
    ]
    single = (leaves[0], Prior(leaves[1], leaves[2]), leaves[3])
    errors = {}
    for backend in ("reference", "triton"):
        found = values_and_gradients(form_of(module, form, backend), module, single)
        errors[backend] = {
            name: (found[name] - expected).norm() for name, expected in exact.items()
        }
    # The gradient of a key bias is zero: what remains are roundings of the largest terms.
    largest = max(expected.norm() for expected in exact.values())
    for name, plain in errors["reference"].items():
        size = exact[name].norm()
        allowed = 1e-5 * largest if size < 1e-9 * largest else 2 * plain + 2e-6 * size
        assert errors["triton"][name] <= allowed, name


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("order", ["semantic_first", "distortion_first"])
@pytest.mark.parametrize("alpha", ["per_expert", "shared"])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_remaining_switches(norm, order, alpha, scale, tiny):
    config = tiny(product_norm=norm, value_order=order, alpha=alpha, attention_scale=scale)
    assert_forms_agree(config)
    module = DistortionSaliency(config)
    assert len(module.alpha) == (EXPERTS if alpha == "per_expert" else 1)
    assert module.distortion.scale == (scale or config.encoder.width**-0.5)


def test_value_order_is_the_order_of_the_columns(tiny):
    first = randomised(DistortionSaliency(tiny(value_order="semantic_first")))
    second = DistortionSaliency(tiny(value_order="distortion_first")).double()
    second.load_state_dict(first.state_dict())
    semantic, distortion = first.value.weight.detach().chunk(2, dim=-1)
    second.value.weight.data = torch.cat((distortion, semantic), dim=-1)
    given = inputs(tiny())
    torch.testing.assert_close(first(*given), second(*given))


def test_semantic_norm_changes_the_result(tiny):
    single = randomised(DistortionSaliency(tiny(semantic_norm="single")))
    iterated = DistortionSaliency(tiny(semantic_norm="iterated")).double()
    iterated.load_state_dict(single.state_dict())
    one, many = single(*inputs(tiny()))[0], iterated(*inputs(tiny()))[0]
    torch.testing.assert_close(one[:, 0], many[:, 0])  # the first expert sees the same
    assert (one[:, 9] - many[:, 9]).abs().max() > 1e-2


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_rows_of_the_maps_sum_to_one_minus_alpha(preset, tiny):
    module = randomised(DistortionSaliency(tiny(preset)))
    maps = module(*inputs(tiny(preset)))[1]
    expected = (1 - module.alpha).expand(EXPERTS).expand(len(maps), -1)
    torch.testing.assert_close(maps.sum(-1), expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_whole_maps_give_the_dense_features(preset, tiny):
    """The dense form's maps, which its operation does not return, are those it pools by."""
    module: DistortionSaliency = randomised(DistortionSaliency(tiny(preset)))
    tokens, prior, prompts = given = inputs(tiny(preset))
    features, whole = module.forward_dense(*given, whole_maps=True)
    assert whole.shape == (2, EXPERTS, tokens.shape[1], tokens.shape[1])
    torch.testing.assert_close(whole[:, :, 0], module(*given)[1])
    products = module.features.products(prior.embedding, prompts)
    semantic = module.pooling.rows(tokens)
    for i in range(EXPERTS):
        rows = semantic[:, i % semantic.shape[1]]
        values = module._dense_expert(i, rows, prior, products)[-1]
        torch.testing.assert_close(features[:, i], whole[:, i] @ values)


@pytest.mark.slow
def test_the_exported_literal_form_has_no_operation_of_ours(tiny, monkeypatch):
    """Also where the device would choose the kernel, as a GPU does."""

    class Literal(nn.Module):
        def __init__(self, saliency: DistortionSaliency) -> None:
            super().__init__()
            self.saliency = saliency

        def forward(self, tokens: Tensor, embedding: Tensor, prompts: Tensor) -> Any:
            return self.saliency.forward_dense(tokens, Prior(embedding, None), prompts)

    operation = importlib.import_module("drexperts.kernels.differential_attention")
    monkeypatch.setattr(operation, "choose", lambda backend, *_: backend or "triton")
    module = Literal(randomised(DistortionSaliency(tiny()))).eval()
    (tokens, prior, prompts), batch = inputs(tiny(), 3), torch.export.Dim("batch", min=1, max=8)
    given = tokens.detach(), prior.embedding.detach(), prompts.detach()
    program = torch.export.export(module, given, dynamic_shapes=({0: batch}, {0: batch}, None))
    assert not [n for n in program.graph.nodes if "drexperts" in str(n.target)]
    one = given[0][:1], given[1][:1], given[2]
    expected = module.saliency.forward_dense(one[0], Prior(one[1], None), one[2], backend="sdpa")
    torch.testing.assert_close(program.module()(*one), expected)


@pytest.mark.parametrize(("source", "target"), [(7, 24), (7, 14), (3, 4), (7, 7), (2, 5)])
def test_spread_is_bilinear_interpolation(source, target):
    grid = torch.randn(1, 5, source, source, dtype=torch.float64)
    expected = F.interpolate(grid, (target, target), mode="bilinear", align_corners=False)
    spread = token_spread(source, target)
    got = spread[1:, 1:] @ grid[0].flatten(1).T
    torch.testing.assert_close(got, expected[0].flatten(1).T)
    torch.testing.assert_close(spread.sum(1), torch.ones(1 + target**2, dtype=torch.float64))
    assert spread[0, 0] == 1
    assert bilinear_matrix(source, target).shape == (target, source)


@pytest.mark.parametrize("experts", [1, EXPERTS])
def test_absorbed_query_is_the_query_times_the_key(experts):
    query, key = ExpertLinear(experts, 6, 4), ExpertLinear(experts, 5, 4)
    module = AbsorbedQuery(query, key, 0.7).double()
    x = torch.randn(2, EXPERTS, 6, dtype=torch.float64)
    keys = torch.randn(2, 9, 5, dtype=torch.float64)
    for i in range(EXPERTS):
        literal = (0.7 * query.of(i, x[:, i, None]) @ key.of(i, keys).mT)[:, 0]
        absorbed = (module(x)[:, i, None] @ keys.mT)[:, 0]
        # They differ by the key bias, which adds one number to the whole row.
        difference = literal - absorbed
        torch.testing.assert_close(difference, difference[:, :1].expand_as(difference))


@pytest.mark.parametrize("features", ["distortion", "refined"])
def test_weighting_reads_the_feature_group_as_documented(features, tiny):
    module = randomised(ExpertWeighting(tiny(group_features=features)))
    given = torch.randn(2, EXPERTS, 32, dtype=torch.float64)
    cls = torch.randn(2, 1, 32, dtype=torch.float64)
    group = (1 - module.lambda_) * module.ffn(module.norm(given))
    own = given if features == "distortion" else group
    bridge = cls - group if features == "distortion" else group - cls
    expected = module.generator(torch.cat((own, cls.expand_as(own), bridge), -1))[..., 0]
    torch.testing.assert_close(module(given, cls), expected)


def test_weight_generator_has_the_released_widths(tiny):
    linears = [m for m in ExpertWeighting(tiny()).generator if isinstance(m, nn.Linear)]
    shapes = [(m.in_features, m.out_features) for m in linears]
    assert shapes == [(96, 384), (384, 32), (32, 16), (16, 1)]
