"""Who takes Blocks through the stages: Ray, or for little work a process beside the driver."""
