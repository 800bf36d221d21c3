"""Training a sentence-embedding model: one loss for six kinds of problem, the sets, the loop; knows no Ray."""
