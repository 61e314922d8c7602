"""One file per output format, each exporting FORMAT; the file's name is what the user types after --to."""
