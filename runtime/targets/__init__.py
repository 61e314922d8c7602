"""Targets: `sampan.runtime.open(path, target=…)` and `sampan doctor` find them by their file names."""
