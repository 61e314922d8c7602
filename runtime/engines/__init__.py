"""One file per engine, each exporting `claims(path)` and `open(path, options)`."""
