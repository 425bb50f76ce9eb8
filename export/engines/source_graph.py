"""The graph that an engine of a bundle is built from."""

from pathlib import Path

import onnx

from drexperts.export.graph.attention_fusion import without_fused_attention
from drexperts.export.graph.to_onnx import onnx_from_model
from drexperts.model.checkpoint import Checkpoint
from drexperts.runtime.errors import BundleError, UserError
from drexperts.runtime.manifest import Engine, Manifest
from drexperts.runtime.onnx_file import check_self_contained
from drexperts.runtime.wording import remedy


def source_engine(bundle: Path, manifest: Manifest) -> Engine:
    """The bundle's ONNX engine, whose graph others are built from.

    Raises BundleError for a bundle without one, or whose file was changed.
    """
    source = next((engine for engine in manifest.engines if engine.backend == "onnx"), None)
    if source is None:
        raise BundleError(
            f"{str(bundle)!r} has no ONNX engine to build from: export it with `drx export`"
        )
    source.read(bundle / source.file)  # raises now what would end a build after minutes
    return source


def source_graph(bundle: Path, source: Engine) -> onnx.ModelProto:
    """The graph in the recorded bytes of the ONNX engine's file.

    Raises BundleError for a file that is missing, was changed, or has weights outside itself.
    """
    path = bundle / source.file
    content = source.read(path)
    check_self_contained(content, repr(str(path)))
    return onnx.load_from_string(content)


def engine_graph(
    bundle: Path,
    manifest: Manifest,
    precision: str,
    fused_attention: bool,
    checkpoint: Checkpoint | None,
) -> onnx.ModelProto:
    """The bundle's graph or, in another precision than its own, the checkpoint's.

    Args:
        precision: of the transformer blocks. Another precision than the bundle's is exported anew
            from the checkpoint, so that weights are rounded once.
        fused_attention: False changes the graph so that no builder fuses attention.

    Raises:
        BundleError: the bundle has no ONNX engine, or it was changed.
        UserError: another precision is asked for without a checkpoint.
    """
    source = source_engine(bundle, manifest)
    if precision == source.precision:
        proto = source_graph(bundle, source)
    elif checkpoint is not None:
        proto = onnx_from_model(checkpoint.model, "maps" in manifest.outputs, precision)
    else:
        raise UserError(
            f"the bundle's graph is {source.precision}: for one in {precision}, pass "
            f"{remedy('--checkpoint FILE', 'checkpoint=')}, the one it was exported from"
        )
    return proto if fused_attention else without_fused_attention(proto)
