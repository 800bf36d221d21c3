"""From strings to batches of token ids, on CPUs."""
