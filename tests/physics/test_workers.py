"""Processes that do independent jobs: results, errors, deaths."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from sbi_flows.physics.pta.workers import run_here, run_jobs


def work(job, stage):
    stage("at it")
    if job == "bad":
        raise ValueError("this job is bad")
    if job == "odd":
        raise KeyError("unforeseen")
    if job == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "sleeps":
        time.sleep(60)
    return job.upper(), os.getpid(), torch.get_num_threads()


def collect(run, jobs, *more):
    outcomes, stages = {}, []
    run(work, jobs, *more, lambda job, text: stages.append((job, text)), lambda o: outcomes.update({o.job: o}))
    return outcomes, stages


def test_results_errors_and_deaths_come_back_and_the_rest_goes_on():
    outcomes, stages = collect(run_jobs, ["a", "bad", "dies", "odd", "b"], 2)
    assert sorted(outcomes) == ["a", "b", "bad", "dies", "odd"]
    assert outcomes["a"].result[0] == "A"
    assert outcomes["b"].result[1] != os.getpid()
    assert outcomes["b"].result[2] == 1
    assert outcomes["bad"].error == "this job is bad"
    assert "KeyError in work (test_workers.py" in outcomes["odd"].error
    assert "exit code -9" in outcomes["dies"].error
    assert ("a", "at it") in stages


class KilledWhileStarting:
    """Kills the process that unpickles it: at its start, with its job unread."""

    def __reduce__(self):
        return _kill_myself, (os.getpid(),)


def _kill_myself(parent):
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return work


def test_a_process_killed_while_it_starts_is_told_of_by_its_exit_code():
    """Its connection is reset, with the job unread in it, rather than ended."""
    outcomes = {}
    run_jobs(KilledWhileStarting(), ["a", "b", "c"], 2, lambda job, text: None, lambda o: outcomes.update({o.job: o}))
    assert sorted(outcomes) == ["a", "b", "c"]
    assert all("exit code -9" in outcome.error for outcome in outcomes.values())


def test_in_this_process():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        outcomes, _ = collect(run_here, ["a", "bad"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert outcomes["a"].result == ("A", os.getpid(), 1)
    assert outcomes["bad"].error == "this job is bad"


def test_ctrl_c_ends_the_processes_and_passes_on():
    finished = {}

    def outcome(o):
        finished[o.job] = o
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        run_jobs(work, ["sleeps", "a"], 2, lambda job, text: None, outcome)
    assert list(finished) == ["a"]
    assert time.perf_counter() - began < 40


def hold_a_semaphore(job, stage):
    import multiprocessing

    with multiprocessing.get_context("spawn").RLock():  # what a progress bar makes
        stage("holding")
        time.sleep(60)


INTERRUPTED = """
import os, signal
from tests.physics.test_workers import hold_a_semaphore
from sbi_flows.physics.pta.workers import run_jobs

if __name__ == "__main__":
    try:
        run_jobs(hold_a_semaphore, ["a"], 1, lambda job, text: os.kill(os.getpid(), signal.SIGINT), print)
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_ctrl_c_leaks_no_semaphore(tmp_path):
    (tmp_path / "script.py").write_text(INTERRUPTED)
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, tmp_path / "script.py"], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    assert (run.stdout, run.stderr) == ("interrupted\n", "")
