"""Readers of the structures inside files, which several formats share or one is long enough for."""
