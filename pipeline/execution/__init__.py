"""Plan, run and report; the only room with Ray."""
