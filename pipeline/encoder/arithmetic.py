"""Which number types a device has instructions for."""

import os
from pathlib import Path

import torch

CPU_FLAGS = {
    "bfloat16": ("avx512_bf16", "amx_bf16"),
    "float16": ("avx512_fp16", "amx_fp16"),
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp"),
}
"""What /proc/cpuinfo says of a CPU that has instructions for the matrix products of a number type."""


def is_native(compute: str, place: str) -> bool:
    """Whether the device has instructions for this number type.

    Args:
        compute: float32 | bfloat16 | float16 | int8.
        place: cpu | cuda.
    """
    if compute == "float32":
        return True
    if place == "cuda":
        return compute == "float16" or torch.cuda.is_bf16_supported(including_emulation=False)
    flags = _cpu_flags()
    has_flag = not flags or any(flag in flags for flag in CPU_FLAGS[compute])
    if compute == "int8":
        return has_flag
    mkldnn = torch.ops.mkldnn
    supported = mkldnn._is_mkldnn_bf16_supported if compute == "bfloat16" else mkldnn._is_mkldnn_fp16_supported
    return bool(supported()) and (has_flag or "aarch64" in os.uname().machine)


def _cpu_flags() -> str:
    return Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
