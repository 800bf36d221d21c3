"""Bytes in and out: source files, Parts, the Journal and Snapshots. Knows no model."""
