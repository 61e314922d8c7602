"""One file per model family, each exporting FAMILY: data, derived with `replace`, never by subclass."""
