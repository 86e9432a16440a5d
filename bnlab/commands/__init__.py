"""The commands of `bnlab`, a module each: `add_parser` says how it is called, `run` does it and returns its status."""
