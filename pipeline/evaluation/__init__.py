"""How good vectors are: mteb's scores of what a run has written, compared with a model card."""
