"""The same over gRPC."""
