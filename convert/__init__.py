"""Checkpoint → artifact: model families, storage encodings, output formats."""
