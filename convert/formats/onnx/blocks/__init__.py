"""One file per kind of block, named as its class in the Architecture, each exporting `write`."""
