"""One file per storage encoding, each exporting ENCODING: how a checkpoint stores numbers, decoded by rows."""
