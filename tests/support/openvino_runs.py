"""A graph run by OpenVINO, as the runtime runs it."""

from collections.abc import Sequence

import numpy as np
import onnx

from drexperts.runtime.openvino_session import OpenvinoSession


def openvino_session(proto: onnx.ModelProto) -> OpenvinoSession:
    """A session on a graph that is in no file."""
    return OpenvinoSession("graph.onnx", max_batch=64, content=proto.SerializeToString())


def run_openvino(proto: onnx.ModelProto, pixels: np.ndarray) -> Sequence[np.ndarray]:
    """The outputs of a graph, in its order."""
    return list(openvino_session(proto).run(pixels).values())
