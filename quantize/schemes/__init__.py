"""One file per scheme; the file's name is what the user types after --quant."""
