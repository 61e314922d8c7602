"""One drift metric per file; numpy only, so that a device can use them. `_scores` holds what they are made of."""
