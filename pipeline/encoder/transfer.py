"""Copies between host and device that run beside the forward pass."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray


class Transfer:
    """Copies from and to pinned memory, each way on a stream of its own; neither host nor device waits for the other.

    On a CPU the same calls are made: torch's streams do nothing there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._streams: Any = torch.get_device_module(device)
        self._is_pinned = device.type == "cuda"
        self._upwards, self._downwards = self._streams.Stream(), self._streams.Stream()

    def to_device(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
        """Return arrays as tensors that the forward pass can use at once; the host goes on while they are copied."""
        tensors = {}
        with self._streams.stream(self._upwards):
            for name, array in arrays.items():
                host = torch.from_numpy(array)
                tensors[name] = (host.pin_memory() if self._is_pinned else host).to(self.device, non_blocking=True)
        here = self._streams.current_stream()
        here.wait_stream(self._upwards)
        self._keep(tensors.values(), here)
        return tensors

    def to_host(self, vectors_BD: torch.Tensor) -> Callable[[], NDArray[np.float32]]:
        """Begin to copy vectors, as soon as they are computed; return what waits until that is done."""
        host_BD = torch.empty(vectors_BD.shape, dtype=vectors_BD.dtype, pin_memory=self._is_pinned)
        self._downwards.wait_stream(self._streams.current_stream())
        with self._streams.stream(self._downwards):
            host_BD.copy_(vectors_BD, non_blocking=True)
            copied = self._streams.Event()
            copied.record(self._downwards)
        self._keep((vectors_BD,), self._downwards)

        def wait() -> NDArray[np.float32]:
            copied.synchronize()
            return cast("NDArray[np.float32]", host_BD.numpy())

        return wait

    def _keep(self, tensors: Any, stream: Any) -> None:
        """Let nobody else have the memory of tensors while a stream, not the one they were made on, uses them."""
        if self._is_pinned:
            for tensor in tensors:
                tensor.record_stream(stream)
