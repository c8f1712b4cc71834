"""Signals taken as wishes, to be granted between two steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["on_signal"]


@contextmanager
def on_signal(number: signal.Signals, note: Callable[[], None]) -> Iterator[None]:
    """Call `note` inside the block instead of what a signal does, unless it is ignored; only the main thread hears."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(number) is signal.SIG_IGN:
        yield
        return

    def heard(_number: int, _frame: FrameType | None) -> None:
        note()

    before = signal.signal(number, heard)
    try:
        yield
    finally:
        signal.signal(number, before)
