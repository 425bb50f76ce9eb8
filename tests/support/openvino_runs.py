"""A graph run by OpenVINO, as the runtime runs it."""

import numpy as np
import onnx

from drexperts.runtime.openvino_session import OpenvinoSession


def run_openvino(proto: onnx.ModelProto, pixels: np.ndarray) -> list[np.ndarray]:
    """The outputs of a graph in its order."""
