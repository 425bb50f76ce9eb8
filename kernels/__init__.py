"""The attention operations of DR.Experts, one file per operation."""

from drexperts.kernels.differential_attention import differential_attention
from drexperts.kernels.differential_pooling import differential_pooling

__all__ = ["differential_attention", "differential_pooling"]
