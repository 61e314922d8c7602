"""One file per kind of tokenizer, each exporting TOKENIZER: which files it reads, and what a Tokenizer has of them."""
