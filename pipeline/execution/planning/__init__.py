"""What a run has to do: Shards, what is there already, rounds, witnesses of the source."""
