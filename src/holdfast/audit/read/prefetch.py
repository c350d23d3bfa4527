"""Reads ahead in a second thread: Arrow and numpy both let go of the interpreter, so decoding and measuring overlap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T], ahead: int = 2) -> Iterator[T]:
    """The same items in the same order, at most `ahead` of them waiting; an error comes where the item would have.

    Closing the generator stops the reader after the item it is at.
    """
    waiting: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(ahead)
    stop = threading.Event()

    def put(last: bool, value: T | BaseException | None) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                waiting.put((last, value), timeout=0.1)
                return

    def work() -> None:
        try:
            for item in items:
                put(False, item)
                if stop.is_set():
                    return
            put(True, None)
        except BaseException as error:  # handed to the reader, who raises it
            put(True, error)

    thread = threading.Thread(target=work, name="holdfast-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            last, value = waiting.get()
            if not last:
                yield value  # pyright: ignore[reportReturnType]
            elif isinstance(value, BaseException):
                raise value
            else:
                return
    finally:
        stop.set()
        thread.join()
