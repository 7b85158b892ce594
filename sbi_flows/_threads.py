"""One torch thread for small work: a flow's layers on a few hundred rows take microseconds, less than threads need to find each other.

On a machine that other jobs use as well it is much worse: OpenMP threads wait for each other by spinning, and a thread that the
system has put aside keeps the others waiting at every layer. A fit of 5000 rows took 0.9 s with one thread and 23 s with two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")

# Multiply-adds (rows times weights) below which one thread does it. A step is repeated a thousand times, so only steps of a few
# milliseconds (the default batches of the default flows) are held; a call that evaluates rows is held where it lasts 0.1 s at most.
STEP = 2**27
CALL = 2**30


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread; afterwards on as many as before. Torch keeps the number by Python thread, so two that overlap are no trouble."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_for(multiply_adds: int, enough: int = STEP) -> AbstractContextManager[None]:
    """One thread for work smaller than ``enough``, torch's own number for more.

    The rule looks at the work's size only, never at the machine's load: the number of threads decides the order of sums, and the
    same seed must give the same bits.
    """
    return one_thread() if multiply_adds < enough else nullcontext()


def each_on_a_thread(function: Callable[[Piece], Result], pieces: Sequence[Piece], multiply_adds: int) -> list[Result]:
    """``function`` of every piece, without gradients: as many pieces at a time as torch has threads, each on one of them.

    Pieces that fit the cache are too small for several threads to share. So a piece's bits do not depend on the number of threads
    either. Pieces of ``CALL`` or more ``multiply_adds`` go one after another, each on all threads.
    """

    def alone(piece: Piece) -> Result:
        with one_thread(), torch.no_grad():
            return function(piece)

    if multiply_adds >= CALL:
        return [function(piece) for piece in pieces]
    workers = min(torch.get_num_threads(), len(pieces))
    if workers < 2:
        return [alone(piece) for piece in pieces]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(alone, pieces))
