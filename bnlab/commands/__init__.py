"""The commands of `bnlab`, a module each: `parsers` says how they are called, `run` does it and returns its status."""
