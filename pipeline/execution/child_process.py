"""How a process that a driver has started ends: with its driver, and by its own exit."""

import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn


def end_with_driver(clear_up: Callable[[], object] | None = None) -> None:
    """From now on end this process when stdin closes, as it does when the driver dies.

    Args:
        clear_up: called before, since a driver that has died could not do it.
    """
    threading.Thread(target=_wait_for_driver, args=(clear_up,), daemon=True).start()


def _wait_for_driver(clear_up: Callable[[], object] | None) -> None:
    sys.stdin.buffer.read()
    if clear_up:
        clear_up()
    os._exit(0)


def run_and_exit(main: Callable[[], object]) -> NoReturn:
    """Call `main` and exit, with 1 if it raises.

    Python's own end would wait for what other threads hold, the lock of stdin among it, and abort over it.
    """
    try:
        main()
    except BaseException:  # noqa: BLE001  the edge of the process
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
