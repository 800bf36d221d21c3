"""Work done by threads that are never far ahead of whoever takes its results."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
R = TypeVar("R")


def in_order(function: Callable[[A], R], arguments: Iterable[A], threads: int) -> Iterator[R]:
    """Yield the result of each argument, in their order; at most twice as many as there are threads wait to be taken.

    `ThreadPoolExecutor.map` would take all arguments and keep all results, however slow their consumer is.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        for argument in arguments:
            waiting.append(pool.submit(function, argument))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def merged(function: Callable[[A], Iterable[R]], arguments: Iterable[A], threads: int) -> Generator[R, None, None]:
    """Yield what `function` yields for all arguments, in any order; some results wait to be taken, never more.

    An error of the function is raised here. Closing the generator ends the threads.
    """
    results: queue.Queue[tuple[R] | BaseException | None] = queue.Queue(2 * threads)
    todo: queue.SimpleQueue[A] = queue.SimpleQueue()
    for argument in arguments:
        todo.put(argument)
    closed = threading.Event()

    def work() -> None:
        end: BaseException | None = None
        try:
            while (argument := _next(todo)) and not closed.is_set():
                for result in function(argument[0]):
                    results.put((result,))
                    if closed.is_set():
                        break
        except BaseException as error:  # noqa: BLE001  it is raised again in the thread that takes the results
            end = error
        results.put(end)

    for number in range(threads):
        threading.Thread(target=work, name=f"merged-{number}", daemon=True).start()
    working = threads
    try:
        while working:
            result = results.get()
            if isinstance(result, tuple):
                yield result[0]
                continue
            working -= 1
            if result is not None:
                raise result
    finally:
        closed.set()
        while working:
            working -= not isinstance(results.get(), tuple)


def _next(todo: "queue.SimpleQueue[A]") -> tuple[A] | None:
    try:
        return (todo.get_nowait(),)
    except queue.Empty:
        return None
