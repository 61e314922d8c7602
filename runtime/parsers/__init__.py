"""How models write their reasoning and their calls of tools. A file here is a way to write; its name is its own."""
