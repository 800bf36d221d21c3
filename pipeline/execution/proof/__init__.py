"""The proof at the end of a run: every row of the source accounted for, no id twice, no deletion unseen."""
