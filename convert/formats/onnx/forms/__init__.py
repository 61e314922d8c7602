"""One file per form of graph."""
