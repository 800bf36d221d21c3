"""Feature tables are planned and written from a Snapshot."""
