"""Weights have the range that no sum of this CPU saturates with."""

import pytest

from drexperts.export.graph import openvino_precision
from drexperts.export.graph.openvino_precision import largest_factor


@pytest.mark.parametrize(
    ("capability", "largest"),
    [
        ("x86_64-amx", 127),
        ("x86_64-avx512-bf16", 127),
        ("x86_64-avx512-vnni", 127),
        ("x86_64-avx2-vnni", 127),
        ("x86_64-avx512", 63),
        ("x86_64-avx2", 63),
        ("aarch64", 63),
    ],
)
def test_only_cpus_with_vnni_have_the_whole_range(monkeypatch, capability, largest):
    monkeypatch.setattr(openvino_precision, "cpu_capability", lambda: capability)
    assert largest_factor() == largest
