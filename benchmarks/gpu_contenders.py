"""What is timed of the whole model: its forms, and the ways in which PyTorch runs each.

    dense      every row of ten experts, as the paper writes it
    reduced    the CLS row alone, which is all that reaches the score
    folded     the reduced form as bundles ship it, folded into its weights

All take uint8 pixels [B, 3, H, W] on the device and give score [B], weights [B, 10] and maps. Of 16
bits are: all of `dense`, as fast as a plain model gets; the encoders of `reduced`, as under the
model's autocast; and the blocks of `folded`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from drexperts.benchmarks.kernel_timing import Gpu
from drexperts.export.graph.fold import inference_model
from drexperts.model.backbones import IMAGENET_MEAN, IMAGENET_STD, Prior
from drexperts.model.dr_experts import DRExperts

Results = tuple[Tensor, ...]
Program = Callable[[Tensor], Results]

EAGER, COMPILED, PACKAGED = "eager", "compiled", "AOTInductor"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LARGEST = 64  # batch of a package
DENSE, REDUCED, FOLDED = "dense", "reduced", "folded"


@dataclass(frozen=True)
class Contender:
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


# The first that runs is what the others are divided by; the last are the first to be left out.
PLAN = (
    Contender(REDUCED, COMPILED, graph=True),
    Contender(REDUCED, COMPILED),
    Contender(REDUCED, EAGER, graph=True),
    Contender(REDUCED, EAGER),
    Contender(DENSE, EAGER),
    Contender(DENSE, COMPILED),
    Contender(DENSE, COMPILED, graph=True),
    Contender(FOLDED, EAGER),
    Contender(REDUCED, PACKAGED),
    Contender(FOLDED, COMPILED, graph=True),
)


class Normalised(nn.Module):
    """`backbone.normalised`, with its constants in device memory.

    One made during a capture would be a copy from the host, which is refused.
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
    """A module in float32 between tensors of another type: not every resize knows 16 bits."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images.float()).to(images)


class Dense(nn.Module):
    """The dense form, on pixels, in one type but for the controller's resize."""

    def __init__(self, model: DRExperts, dtype: torch.dtype) -> None:
        super().__init__()
        self.normalised, self.model = Normalised(), copy.deepcopy(model).to(dtype)
        self.model.controller_input = InFloat32(copy.deepcopy(model.controller_input))

    def forward(self, pixels: Tensor) -> Results:
        images = self.normalised(pixels).to(self.model.score.weight)
        return tuple(self.model.forward_dense(images))


class Reduced(nn.Module):
    """The reduced form, on pixels; the encoders in a type of theirs, as the model's autocast is."""

    def __init__(self, model: DRExperts, dtype: torch.dtype) -> None:
        super().__init__()
        self.normalised, self.model, self.dtype = Normalised(), copy.deepcopy(model), dtype
        self.model.encoder.to(dtype)
        self.model.controller.to(dtype)

    def encoded(self, pixels: Tensor) -> tuple[Tensor, Prior]:
        """What both encoders say: all that the head reads."""
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
    """What follows the encoders in the reduced form, on what they said of some pixels."""

    def __init__(self, whole: Reduced, pixels: Tensor) -> None:
        super().__init__()
        self.model = whole.model
        self.tokens, self.prior = whole.encoded(pixels)

    def forward(self, _: Tensor) -> Results:
        return tuple(self.model._predict(self.tokens, self.prior))


def forms(model: DRExperts, precision: str, device: torch.device) -> dict[str, nn.Module]:
    """Every form of a float32 model, in a precision on a device."""
    made = {
        DENSE: Dense(model, DTYPES[precision]),
        REDUCED: Reduced(model, DTYPES[precision]),
        FOLDED: Folded(model, precision),
    }
    return {name: form.requires_grad_(False).eval().to(device) for name, form in made.items()}


class Programs:
    """Programs of forms, each made once; whoever fails once fails again without being made.

    Args:
        folder: for packages, which serve all batches and survive `forget`.
    """

    def __init__(self, forms: dict[str, nn.Module], folder: Path) -> None:
        self.forms, self.folder = forms, folder
        self._made: dict[tuple[str, str], Program | Exception] = {}

    def has(self, contender: Contender) -> bool:
        """Whether it needs no making any more, or was found not to be makable."""
        return contender.maker == EAGER or (contender.form, contender.maker) in self._made

    def program(self, contender: Contender, pixels: Tensor) -> Program:
        """What runs the contender's form on pixels like these, after a first call."""
        key = contender.form, contender.maker
        if key not in self._made:
            try:
                self._made[key] = self._make(contender, pixels)
            except Exception as error:
                self._made[key] = error
        made = self._made[key]
        if isinstance(made, Exception):
            raise made.with_traceback(None)
        return made

    def _make(self, contender: Contender, pixels: Tensor) -> Program:
        form = self.forms[contender.form]
        program: Program = form
        if contender.maker == COMPILED:
            # A whole graph of fixed shapes, or an error: no part may run as eager code.
            program = torch.compile(form, fullgraph=True, dynamic=False)
        elif contender.maker == PACKAGED:
            program = package(form, pixels, self.folder / f"{contender.form}.pt2")
        program(pixels)
        return program

    def forget(self) -> None:
        """Drop what was compiled: the compiler stops at a few shapes of one function."""
        torch.compiler.reset()
        kept = {key: made for key, made in self._made.items() if key[1] == PACKAGED}
        self._made = kept


def package(form: nn.Module, pixels: Tensor, path: Path) -> Program:
    """An AOTInductor package for every batch to `LARGEST`, written and loaded."""
    batch = torch.export.Dim("batch", min=1, max=LARGEST)
    # Two: an example of one would fix the batch at one.
    example = pixels[:1].expand(2, -1, -1, -1).contiguous()
    exported = torch.export.export(form, (example,), dynamic_shapes=({0: batch},))
    written = torch._inductor.aoti_compile_and_package(exported, package_path=str(path))
    return torch._inductor.aoti_load_package(written)


class Captured:
    """A program in a CUDA graph, on a buffer of its own that the pixels are copied into.

    The results are the graph's: the next call overwrites them.
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
