"""Memory of a device: how its want is told by the libraries of all engines, and how much a run may ask of it."""

OUT_OF_MEMORY = "OutOfMemoryError"
"""Name of torch's error, by which want of memory is told whoever has met it; a smaller batch may then pass."""

SAID = (
    "out of memory",  # CUDA and HIP themselves
    "alloc_failed",  # cuBLAS, cuDNN: CUBLAS_STATUS_ALLOC_FAILED
    "allocate memory",  # torch on a CPU: DefaultCPUAllocator: can't allocate memory; and the system: Cannot …
    "not enough memory",  # the same on Windows
    "bad_alloc",  # C++, out of OpenVINO and ONNX Runtime
    "bad alloc",  # the same as they, or Microsoft's library, put it
    "failed to allocate",  # the arenas of ONNX Runtime
)
"""What messages hold, in lower case, of errors that have no class of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a forward pass has failed for want of memory, on a device or on the host."""
    if isinstance(error, MemoryError) or type(error).__name__ == OUT_OF_MEMORY:
        return True
    said = str(error).lower()
    return any(sign in said for sign in SAID)


def fault_of(error: BaseException) -> str:
    """Return the name under which an error of a forward pass is told: of its class, or of the want of memory."""
    return OUT_OF_MEMORY if is_out_of_memory(error) else type(error).__name__
