"""Published figures redrawn beside ours: a file for each paper, and functions of tables that no experiment has."""
