"""Published figures redrawn beside ours: a module for each paper, and beside it a YAML file with what it prints."""
