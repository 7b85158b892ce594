"""Independent jobs in a few processes: each job's progress and result come back, one that dies takes no other with it."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

# What a connection raises whose other end died: the second where it died with a job unread, the third where a job was being sent.
_GONE = (EOFError, ConnectionResetError, BrokenPipeError)
_GRACE = 10.0  # seconds a process has to clean up when it is told to end

Job = TypeVar("Job")
Stage = Callable[[str], None]


@dataclass(frozen=True)
class Outcome(Generic[Job]):
    """What became of a job: its result, or an error in one line."""

    job: Job
    result: Any = None
    error: str | None = None


def usable_cores() -> int:
    """Cores this process may run on, which a batch system may have made fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    function: Callable[[Job, Stage], Any],
    jobs: Sequence[Job],
    n_jobs: int,
    on_stage: Callable[[Job, str], None],
    on_outcome: Callable[[Outcome[Job]], None],
) -> None:
    """Run ``function(job, stage)`` for every job, ``n_jobs`` at a time, each in a process with one thread.

    Parameters
    ----------
    function : callable
        Importable by name; it may call ``stage(text)`` to say where it is.
    jobs : sequence
        Picklable, begun in this order.
    n_jobs : int
    on_stage, on_outcome : callable
        Called in this process as messages arrive.

    Notes
    -----
    On ``KeyboardInterrupt`` the processes are ended and the exception passes on; outcomes already reported stand. The processes
    themselves ignore Ctrl-C, which a terminal sends to all of them. Scripts must guard their start by
    ``if __name__ == "__main__":``, because processes are spawned, not forked: a fork of a threaded torch may hang.
    """
    waiting = list(jobs)
    context = get_context("spawn")
    running: dict[Connection, tuple[SpawnProcess, Job]] = {}

    def start_process() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(function, theirs), daemon=True)
        process.start()
        theirs.close()
        give(ours, process)

    def give(connection: Connection, process: SpawnProcess) -> None:
        """The next job, or the end."""
        if waiting:
            running[connection] = (process, waiting.pop(0))
            with suppress(*_GONE):  # its death is told of when its answer is read
                connection.send(running[connection][1])
            return
        running.pop(connection, None)
        with suppress(*_GONE):
            connection.send(None)
        process.join()

    try:
        for _ in range(min(n_jobs, len(waiting))):
            start_process()
        while running:
            for connection in cast(list[Connection], wait(list(running))):
                process, job = running[connection]
                try:
                    kind, content = connection.recv()
                except _GONE:
                    running.pop(connection)
                    process.join()
                    died = f"its process ended with exit code {process.exitcode} (killed, perhaps for memory)"
                    on_outcome(Outcome(job, error=died))
                    if waiting:
                        start_process()
                    continue
                if kind == "stage":
                    on_stage(job, content)
                    continue
                on_outcome(Outcome(job, result=content) if kind == "result" else Outcome(job, error=content))
                give(connection, process)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join(_GRACE)
            process.kill()
            process.join()


def run_here(
    function: Callable[[Job, Stage], Any],
    jobs: Sequence[Job],
    on_stage: Callable[[Job, str], None],
    on_outcome: Callable[[Outcome[Job]], None],
) -> None:
    """The same in this process, one job after another, on one thread as well."""
    with _one_thread():
        for job in jobs:
            on_outcome(_attempt(function, job, partial(on_stage, job)))


def _attempt(function, job, stage: Stage) -> Outcome:
    try:
        return Outcome(job, result=function(job, stage))
    except Exception as error:  # noqa: BLE001  one model's failure is reported and must not stop the others
        if isinstance(error, ValueError | OSError):
            return Outcome(job, error=str(error))
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(job, error=f"{type(error).__name__} in {where.name} ({Path(where.filename).name}:{where.lineno}): {error}")


def _work(function, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # An ordinary exit runs the clean-up of semaphores and temporary files, which a signal's default would skip.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with _one_thread():
        while (job := connection.recv()) is not None:
            outcome = _attempt(function, job, lambda text: connection.send(("stage", text)))
            connection.send(("error", outcome.error) if outcome.error is not None else ("result", outcome.result))


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch and for the linear algebra of numpy and scipy: a model's arrays are too small for two."""
    from threadpoolctl import threadpool_limits

    from sbi_flows._threads import one_thread

    with one_thread(), threadpool_limits(1):
        yield
