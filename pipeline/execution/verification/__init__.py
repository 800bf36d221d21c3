"""A published Snapshot is checked against its files, its source and its model."""
