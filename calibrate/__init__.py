"""Run a model over a text and keep what its matrices are multiplied with."""
