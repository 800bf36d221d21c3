"""Whether somebody listens where a cluster should be, without the seconds that Ray's own modules take to import."""

import socket
import time

from pipeline.errors import PipelineError


def check_answers(
    address: str, patience_seconds: float = 10.0, named: str = "runtime.ray_address, or RAY_ADDRESS"
) -> None:
    """See that somebody listens at an address: Ray itself would wait for minutes, then end the process without a word.

    Args:
        address: as Ray takes it; what names no port is left to Ray.
        patience_seconds: a cluster may just be starting.
        named: where the address comes from, for the message.

    Raises:
        PipelineError: nobody does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdigit()):
        return
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=max(1.0, patience_seconds)).close()
        except (OSError, OverflowError) as error:
            if time.monotonic() >= deadline or isinstance(error, socket.gaierror | OverflowError):
                raise PipelineError(
                    f"nobody answers at {address} ({named}): {error}; start the cluster, or mend the address"
                ) from error
            time.sleep(0.5)
        else:
            return
