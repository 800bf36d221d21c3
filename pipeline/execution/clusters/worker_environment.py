"""What the processes of a local run find in their environment, unless it says otherwise already."""

WORKER_ENVIRONMENT = {
    # Workers keep the memory of one Block for the next instead of having every page zeroed again: a tenth of the wall
    # time of the data plane at 512 dimensions (2026-11, two interleaved pairs).
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MIMALLOC_PURGE_DELAY": "60000",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads cost 3x where stages share cores
}
