"""An engine's threads are as many as this process may use, not as many as the machine has."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.openvino_engines import add_openvino_engine

from drexperts.runtime.cpus import available_cpus

COUNT = """
import os, sys
import numpy as np
if sys.argv[3] == "affinity":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
from drexperts.runtime import cpus
if sys.argv[3] == "quota":
    cpus.cpu_quotas = lambda *_: iter([0.5])
from drexperts import runtime
with runtime.load(sys.argv[1], engine=sys.argv[2]) as scorer:
    scorer.score(np.zeros((64, 64, 3), np.uint8))
    options = scorer.session.options
print(options.get("intra_op_num_threads") or options["INFERENCE_NUM_THREADS"])
"""

linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")


@linux
@pytest.mark.skipif(available_cpus() < 2, reason="needs two CPUs")
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
@pytest.mark.parametrize("limit", ["affinity", "quota"])
def test_a_limit_of_one_cpu_is_one_thread(
    backend: str, limit: str, toy_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(toy_bundle, tmp_path / "bundle")
    if backend == "openvino":
        pytest.importorskip("openvino")
        add_openvino_engine(bundle, "fp32")
    command = [sys.executable, "-P", "-c", COUNT, str(bundle), backend, limit]
    places = {"XDG_CACHE_HOME": str(tmp_path / "c"), "XDG_STATE_HOME": str(tmp_path / "s")}
    done = subprocess.run(
        command, env=os.environ | places, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
