"""Ray clusters: of this machine, or one that is there; jobs that are submitted to one."""
