"""The variants of the whole model that are timed: its forms, and the ways PyTorch runs each.

    dense      every row of ten experts, as the paper writes it
    reduced    the CLS row alone, which is all that reaches the score
    folded     the reduced form as bundles ship it, folded into its weights

All take uint8 pixels [B, 3, H, W] on the device and give score [B], weights [B, 10] and maps. In 16
bits `dense` computes everything, the fastest a plain model can be; `reduced` computes its encoders,
as under the model's autocast; and `folded` computes its transformer blocks.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drexperts.benchmarks.operations.timing import Gpu
from drexperts.benchmarks.receipt_types.model_receipt import DENSE, FOLDED, REDUCED
from drexperts.export.graph.fold import inference_model
from drexperts.model.backbones import IMAGENET_MEAN, IMAGENET_STD, Prior
from drexperts.model.dr_experts import DRExperts

Results = tuple[Tensor, ...]
Program = Callable[[Tensor], Results]

EAGER, COMPILED, PACKAGED = "eager", "compiled", "AOTInductor"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LARGEST = 64  # batch of a package


@dataclass(frozen=True)
class Variant:
    """A form, what makes a program of it, and whether that is captured in a CUDA graph."""

    form: str
    maker: str
    graph: bool = False

    @property
    def name(self) -> str:
        return f"{self.form}, {self.maker}" + ", graph" * self.graph

    @property
    def any_batch(self) -> bool:
        """Whether one program takes every batch size."""
        return not self.graph and self.maker != COMPILED


# The others are divided by the first that runs; too little time leaves out the last ones.
VARIANTS = (
    Variant(REDUCED, COMPILED, graph=True),
    Variant(REDUCED, COMPILED),
    Variant(REDUCED, EAGER, graph=True),
    Variant(REDUCED, EAGER),
    Variant(DENSE, EAGER),
    Variant(DENSE, COMPILED),
    Variant(DENSE, COMPILED, graph=True),
    Variant(FOLDED, EAGER),
    Variant(REDUCED, PACKAGED),
    Variant(FOLDED, COMPILED, graph=True),
)


class Normalised(nn.Module):
    """`backbones.normalised`, with its constants in device memory.

    Constants made during a capture would be copied from the host, which CUDA refuses.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.float() / 255 - self.mean) / self.deviation


class InFloat32(nn.Module):
    """A module in float32 between tensors of another type: not every resize supports 16 bits."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images.float()).to(images)


class Dense(nn.Module):
    """The dense form, on pixels, in one type except for the controller's resize."""

    def __init__(self, model: DRExperts, dtype: torch.dtype) -> None:
        super().__init__()
        self.normalised, self.model = Normalised(), copy.deepcopy(model).to(dtype)
        wrapped: Any = InFloat32(copy.deepcopy(model.controller_input))
        self.model.controller_input = wrapped

    def forward(self, pixels: Tensor) -> Results:
        images = self.normalised(pixels).to(self.model.score.weight)
        return tuple(self.model.forward_dense(images))


class Reduced(nn.Module):
    """The reduced form, on pixels; the encoders have their own type, as under autocast."""

    def __init__(self, model: DRExperts, dtype: torch.dtype) -> None:
        super().__init__()
        self.normalised, self.model, self.dtype = Normalised(), copy.deepcopy(model), dtype
        self.model.encoder.to(dtype)
        self.model.controller.to(dtype)

    def encoded(self, pixels: Tensor) -> tuple[Tensor, Prior]:
        """The outputs of both encoders, which are all that the head reads."""
        images = self.normalised(pixels)
        small = self.model.controller_input(images)
        prior = self.model.controller(small.to(self.dtype))
        return self.model.encoder(images.to(self.dtype)), prior.to(images)

    def forward(self, pixels: Tensor) -> Results:
        return tuple(self.model._predict(*self.encoded(pixels)))


class Folded(nn.Module):
    """The folded form, on pixels."""

    def __init__(self, model: DRExperts, precision: str) -> None:
        super().__init__()
        self.model = inference_model(model, precision)

    def forward(self, pixels: Tensor) -> Results:
        return tuple(self.model(pixels.float()))


class Head(nn.Module):
    """What follows the encoders in the reduced form, on their outputs for some pixels."""

    def __init__(self, whole: Reduced, pixels: Tensor) -> None:
        super().__init__()
        self.model = whole.model
        self.tokens, self.prior = whole.encoded(pixels)

    def forward(self, _: Tensor) -> Results:
        return tuple(self.model._predict(self.tokens, self.prior))


@dataclass(frozen=True)
class Forms:
    """Every form of a model, in one precision on one device."""

    dense: Dense
    reduced: Reduced
    folded: Folded

    @classmethod
    def of(cls, model: DRExperts, precision: str, device: torch.device) -> "Forms":
        """The forms of a float32 model, which stays as it is."""
        dtype = DTYPES[precision]
        made = cls(Dense(model, dtype), Reduced(model, dtype), Folded(model, precision))
        for form in (made.dense, made.reduced, made.folded):
            form.requires_grad_(False).eval().to(device)
        return made

    def named(self) -> dict[str, nn.Module]:
        """The forms by the names that variants have for them."""
        return {DENSE: self.dense, REDUCED: self.reduced, FOLDED: self.folded}


class Programs:
    """The programs of forms, each made once. What could not be made is not tried again.

    folder: for packages, which serve all batch sizes and survive `forget`
    """

    def __init__(self, forms: dict[str, nn.Module], folder: Path) -> None:
        self.forms, self.folder = forms, folder
        self._made: dict[tuple[str, str], Program | Exception] = {}

    def has(self, variant: Variant) -> bool:
        """Whether the variant's program was made already, or could not be, or needs no making."""
        return variant.maker == EAGER or (variant.form, variant.maker) in self._made

    def program(self, variant: Variant, pixels: Tensor) -> Program:
        """What runs the variant's form on pixels like these, after a first call."""
        key = variant.form, variant.maker
        if key not in self._made:
            try:
                self._made[key] = self._make(variant, pixels)
            except Exception as error:
                self._made[key] = error
        made = self._made[key]
        if isinstance(made, Exception):
            raise made.with_traceback(None)
        return made

    def _make(self, variant: Variant, pixels: Tensor) -> Program:
        form = self.forms[variant.form]
        program: Program = form
        if variant.maker == COMPILED:
            # One graph of fixed shapes or an error, so that no part runs as eager code.
            program = torch.compile(form, fullgraph=True, dynamic=False)
        elif variant.maker == PACKAGED:
            program = package(form, pixels, self.folder / f"{variant.form}.pt2")
        program(pixels)
        return program

    def forget(self) -> None:
        """Drop what was compiled: the compiler stops at a few shapes of one function."""
        torch.compiler.reset()
        self._made = {key: made for key, made in self._made.items() if key[1] == PACKAGED}


def package(form: nn.Module, pixels: Tensor, path: Path) -> Program:
    """An AOTInductor package for every batch up to `LARGEST`, written and loaded."""
    batch = torch.export.Dim("batch", min=1, max=LARGEST)
    # Of two images, because an example of one would fix the batch at one.
    example = pixels[:1].expand(2, -1, -1, -1).contiguous()
    exported = torch.export.export(form, (example,), dynamic_shapes=({0: batch},))
    written = torch._inductor.aoti_compile_and_package(exported, package_path=str(path))
    return torch._inductor.aoti_load_package(written)


class Captured:
    """A program in a CUDA graph, which copies the pixels into a buffer of its own.

    The results belong to the graph: the next call overwrites them.
    """

    def __init__(self, program: Program, pixels: Tensor, gpu: Gpu) -> None:
        self._program, self._pixels = program, pixels.clone()
        self._results: Results = ()
        self._replay = gpu.captured(self._step, copies=1)

    def _step(self) -> list[Tensor | None]:
        self._results = self._program(self._pixels)
        return list(self._results)

    def __call__(self, pixels: Tensor) -> Results:
        self._pixels.copy_(pixels)
        self._replay()
        return self._results
