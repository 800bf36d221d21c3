"""A published Snapshot in the formats of others, each written by its own library."""
