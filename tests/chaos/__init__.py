"""Faults on purpose: a proxy that lies, processes that are killed, and the proof that no row cares."""
