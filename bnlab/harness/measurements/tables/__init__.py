"""The tables that are measured on trained networks, one a file of its name."""
