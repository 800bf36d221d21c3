"""The commit protocol under every interleaving: real drivers in one process, stopped before each store operation."""
