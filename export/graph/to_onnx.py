"""A trained model to one ONNX file for every backend.

The differential pooling is a single node, `drexperts::DifferentialPooling`, with a function body
of standard operators: ONNX Runtime and TensorRT for RTX run the body, TensorRT can map the node to
a kernel by its attributes.
"""

import copy
from collections.abc import Collection
from typing import Any

import onnx
import onnx.parser
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass
from torch import Tensor, nn

from drexperts.export.graph.fold import inference_model
from drexperts.model.config import DISTORTIONS
from drexperts.model.dr_experts import DRExperts
from drexperts.model.experts import SemanticPooling

OPSET = 20  # the first with Gelu, after LayerNormalization in 17
DOMAIN, OP = "drexperts", "DifferentialPooling"


class PixelModel(nn.Module):
    """The interface of the graph: raw pixels in, the named outputs out."""

    def __init__(self, model: DRExperts, maps: bool) -> None:
        super().__init__()
        self.model, self.maps = model, maps

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """uint8 RGB [B, 3, H, W] to score [B], weights [B, 10] and, on request, maps."""
        prediction = self.model(pixels.float())
        return tuple(prediction) if self.maps else tuple(prediction[:2])


class PoolingNode(nn.Module):
    """`SemanticPooling` that is exported as one `DifferentialPooling` node."""

    def __init__(self, pooling: SemanticPooling) -> None:
        super().__init__()
        self.norm, self.iterated, self.rows = pooling.norm, pooling.iterated, pooling.rows

    def forward(
        self, tokens: Tensor, query: Tensor, logits: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, _, width = tokens.shape
        pooled, maps = torch.onnx.ops.symbolic_multi_out(
            f"{DOMAIN}::{OP}",
            (tokens, query, logits, alpha, self.norm.weight, self.norm.bias),
            attrs={
                "epsilon": self.norm.eps,
                "iterated": int(self.iterated),
                "plugin_namespace": DOMAIN,
                "plugin_version": "1",
                "aot": 1,
            },
            dtypes=(query.dtype, query.dtype),
            shapes=((batch, len(DISTORTIONS), width), logits.shape),
            version=1,
        )
        return pooled, maps


def onnx_from_model(
    model: DRExperts,
    maps: bool = False,
    precision: str = "fp32",
    max_batch: int = 64,
    islands: Collection[str] = (),
) -> onnx.ModelProto:
    """Fold a model and write it as ONNX.

    Args:
        model: in float32.
        maps: add the output `maps`, [B, 10, grid, grid].
        precision: of the transformer blocks, "fp32", "fp16" or "bf16", with the casts written in
            the graph. ONNX Runtime has no bfloat16 on the CPU: that one is for engines.
        max_batch: the largest batch of the dynamic dimension, at least 2; the runtime keeps to the
            manifest's own limit.
        islands: blocks that stay in float32; see `inference_model`.

    Returns:
        A checked model with input `pixels`, uint8 [batch, 3, H, W].
    """
    return onnx_from_folded(inference_model(model, precision, islands), maps, max_batch)


def onnx_from_folded(
    folded_model: DRExperts, maps: bool = False, max_batch: int = 64, *, shared: bool = True
) -> onnx.ModelProto:
    """`onnx_from_model` for a model that `inference_model` folded.

    Args:
        shared: store equal weights once; otherwise each layer reads the weight of its own name.
    """
    folded: Any = copy.deepcopy(folded_model)
    folded.saliency.pooling = PoolingNode(folded.saliency.pooling)
    size = folded.config.encoder.image_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    program = torch.onnx.export(
        PixelModel(folded, maps).eval(),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["pixels"],
        output_names=["score", "weights", "maps"][: 3 if maps else 2],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=max(2, max_batch))},),
        verbose=False,
    )
    assert program is not None
    if shared:  # the exporter stores a weight that two operations read transposed once for each
        DeduplicateInitializersPass(size_limit=2**30)(program.model)
    # The exporter's notes hold the paths of the machine that exported.
    ClearMetadataAndDocStringPass()(program.model)
    proto: onnx.ModelProto = program.model_proto
    add_pooling_function(proto, folded.config.semantic_norm == "iterated")
    onnx.checker.check_model(proto, full_check=True)
    return proto


def add_pooling_function(proto: onnx.ModelProto, iterated: bool) -> None:
    """Append the body of `DifferentialPooling` in standard operators."""
    opset = next(o.version for o in proto.opset_import if o.domain == "")
    proto.functions.append(onnx.parser.parse_function(pooling_function(opset, iterated)))
    if all(o.domain != DOMAIN for o in proto.opset_import):
        proto.opset_import.add(domain=DOMAIN, version=1)


def pooling_function(opset: int, iterated: bool) -> str:
    """The function body in ONNX's text form; the formula is in `kernels.differential_pooling`."""
    body = _iterated_body(len(DISTORTIONS)) if iterated else _SINGLE
    return f"""<domain: "{DOMAIN}", opset_import: ["" : {opset}]>
{OP} <epsilon, iterated, plugin_namespace, plugin_version, aot>
(tokens, query, logits, alpha, weight, bias) => (pooled, maps) {{
  y0 = CastLike (tokens, query)
  distortion = Softmax <axis = -1> (logits)
  column = Constant <value_ints = [-1, 1]> ()
  scale = Reshape (alpha, column)
  turned = Transpose <perm = [0, 2, 1]> (query)
{body}
}}"""


_LAYER_NORM = "LayerNormalization <axis = -1, epsilon: float = @epsilon>"

# The query is transposed, not the tokens, which are by far the larger.
_SINGLE = f"""  y = {_LAYER_NORM} (y0, weight, bias)
  columns = MatMul (y, turned)
  rows = Transpose <perm = [0, 2, 1]> (columns)
  semantic = Softmax <axis = -1> (rows)
  scaled = Mul (scale, semantic)
  maps = Sub (distortion, scaled)
  pooled = MatMul (maps, y)"""


def _iterated_body(experts: int) -> str:
    """Expert i reads the tokens normalised i + 1 times."""
    names = [str(i) for i in range(1, experts + 1)]

    def listed(prefix: str) -> str:
        return ", ".join(prefix + name for name in names)

    split = f"Split <axis = {{}}, num_outputs = {experts}>"
    return "\n".join(
        [
            f"  {listed('q')} = {split.format(2)} (turned)",
            *(f"  y{i + 1} = {_LAYER_NORM} (y{i}, weight, bias)" for i in range(experts)),
            *(f"  c{n} = MatMul (y{n}, q{n})" for n in names),
            f"  columns = Concat <axis = 2> ({listed('c')})",
            "  rows = Transpose <perm = [0, 2, 1]> (columns)",
            "  semantic = Softmax <axis = -1> (rows)",
            "  scaled = Mul (scale, semantic)",
            "  maps = Sub (distortion, scaled)",
            f"  {listed('m')} = {split.format(1)} (maps)",
            *(f"  u{n} = MatMul (m{n}, y{n})" for n in names),
            f"  pooled = Concat <axis = 1> ({listed('u')})",
        ]
    )
