"""DR.Experts in production: training, exact reduction, export, and a torch-free runtime.

This module stays free of imports that take time: `import drexperts.runtime` executes it.
"""

import os
import sys

__version__ = "0.1.0"

# ONNX Runtime's telemetry starts when it is imported, by us or by a library that we use. A value
# that is there is the application's choice; `drexperts.runtime.onnx_library` says what if it is
# too late.
if "onnxruntime" not in sys.modules:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
