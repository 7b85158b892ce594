"""Small work runs on one torch thread, large work and user code on as many as torch was given, and afterwards all is as before."""

import threading

import numpy as np
import pytest
import torch

from sbi_flows import FlowDensity, evidence
from sbi_flows._threads import each_on_a_thread, one_thread, threads_for
from sbi_flows.flows import Flow, Together, nsf

X = np.random.default_rng(0).normal(size=(400, 2))


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("work", "threads"), [(10, 1), (2**40, 2)])
def test_the_size_of_the_work_decides(work, threads):
    with threads_for(work):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


def test_holds_nest_and_an_error_restores():
    with pytest.raises(KeyError), one_thread():
        with one_thread():
            pass
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2


def test_holds_of_two_python_threads_do_not_disturb_each_other():
    holding, leave, found = threading.Event(), threading.Event(), []

    def second():
        torch.set_num_threads(2)
        with one_thread():
            holding.set()
            leave.wait(10)
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=second)
    with one_thread():
        thread.start()
        assert holding.wait(10)
    assert torch.get_num_threads() == 2
    leave.set()
    thread.join()
    assert found == [2]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("work", "threads"), [(10, {1}), (2**40, {2})])
def test_small_pieces_go_side_by_side_on_one_torch_thread_each_and_large_ones_in_turn(work, threads):
    seen, together = set(), threading.Barrier(2)

    def piece(i):
        seen.add(torch.get_num_threads())
        if work == 10:
            together.wait(10)  # breaks unless two pieces are under way at once
            assert not torch.is_grad_enabled()
        return i**2

    assert each_on_a_thread(piece, range(6), work) == [0, 1, 4, 9, 16, 25]
    assert seen == threads and torch.get_num_threads() == 2


def test_an_error_in_a_piece_arrives():
    with pytest.raises(ZeroDivisionError):
        each_on_a_thread(lambda i: 1 / i, range(3), 1)


def test_the_number_of_threads_does_not_change_a_bit():
    flow = nsf(3, layers=2, hidden=(16,))
    x = torch.randn(10_000, 3)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with torch.no_grad():
            found.append((flow.log_prob(x), flow.sample(10_000, generator=torch.Generator().manual_seed(0))))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_a_small_fit_and_its_evaluation_use_one_thread(monkeypatch):
    seen = []

    def spied(method):
        def spy(*arguments, **more):
            seen.append(torch.get_num_threads())
            return method(*arguments, **more)

        return spy

    monkeypatch.setattr(Flow, "log_prob", spied(Flow.log_prob))
    monkeypatch.setattr(Flow, "sample", spied(Flow.sample))
    monkeypatch.setattr(Together, "log_prob", spied(Together.log_prob))
    model = FlowDensity(flow="realnvp", layers=2, max_epochs=1, random_state=0).fit(X)
    in_fit = len(seen)
    model.log_prob(X)
    model.sample(10, random_state=0)
    assert len(seen) == in_fit + 2 > 3
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2


def test_the_users_log_posterior_keeps_its_threads():
    seen = set()

    def log_posterior(x):
        seen.add(torch.get_num_threads())
        return -0.5 * (x**2).sum(axis=1)

    evidence(X, log_posterior, random_state=0)
    assert seen == {2}
    assert torch.get_num_threads() == 2
