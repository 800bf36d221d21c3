"""Samples and trials: what a run would cost, and which settings are fastest."""
