"""A benchmark of tools that say why a network with batch norm evaluates badly. See benchmarks/README.md."""
