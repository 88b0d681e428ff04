"""The gate in front of a server that fails: shut after some failures, open again after a trial."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from pipeq.contract.errors import Blame
from pipeq_worker.stores.base import Fault, Source, StoreError
from pipeq_worker.stores.gate import FAILURES, MOST_PAUSE_S, PAUSE_S, SILENT_CALLS, SILENT_S, Gate, Gates


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def fails(gate: Gate, fault: Fault = Fault.PASSING, blame: Blame = Blame.TASK) -> StoreError:
    with pytest.raises(StoreError) as error, gate.call("s3://b/mine"):
        raise StoreError(fault, "s3://b/secret-name: the store cannot be reached", "Away", blame)
    return error.value


def refused(gate: Gate) -> StoreError:
    with pytest.raises(StoreError) as error, gate.call("s3://b/mine"):
        raise AssertionError("it went through")
    return error.value


def test_it_is_shut_after_some_failures_and_names_no_object_of_others() -> None:
    gate = Gate(Clock())
    for _ in range(FAILURES):
        assert "secret-name" in str(fails(gate))
    error = refused(gate)
    assert (error.fault, error.blame) == (Fault.PASSING, Blame.NOT_TRIED)
    why = "s3://b/...: the store cannot be reached"
    assert str(error) == f"s3://b/mine is not tried: its store has just failed for others, again and again ({why})"
    with pytest.raises(StoreError, match="is not tried"):
        gate.check("s3://b/mine")


def test_a_refusal_of_the_credentials_stays_the_workers_fault() -> None:
    gate = Gate(Clock())
    for _ in range(FAILURES):
        fails(gate, Fault.REFUSED, Blame.WORKER)
    error = refused(gate)
    assert (error.fault, error.blame) == (Fault.REFUSED, Blame.WORKER)


@pytest.mark.parametrize(
    ("fault", "blame"),
    [
        (Fault.MISSING, Blame.TASK),
        (Fault.REFUSED, Blame.EITHER),
        (Fault.REFUSED, Blame.TASK),
        (Fault.PERMANENT, Blame.TASK),
    ],
)
def test_a_server_that_says_no_is_there(fault: Fault, blame: Blame) -> None:
    gate = Gate(Clock())
    for _ in range(FAILURES - 1):
        fails(gate)
    fails(gate, fault, blame)
    for _ in range(FAILURES - 1):
        fails(gate)
    with gate.call("s3://b/mine"):
        pass


def test_one_trial_at_a_time_and_the_pause_doubles() -> None:
    clock = Clock()
    gate = Gate(clock)
    for _ in range(FAILURES):
        fails(gate)
    pause_s = PAUSE_S
    for _ in range(6):
        clock.now += pause_s - 0.01
        refused(gate)
        clock.now += 0.02
        trial = gate.call("s3://b/trial")
        trial.__enter__()
        # Nobody else goes through while it runs, however long that takes.
        clock.now += 100
        refused(gate)
        trial.__exit__(StoreError, StoreError(Fault.PASSING, "cannot be reached"), None)
        pause_s = min(2 * pause_s, MOST_PAUSE_S)
    clock.now += MOST_PAUSE_S + 0.01
    with gate.call("s3://b/trial"):
        pass
    for _ in range(FAILURES - 1):
        fails(gate)
    with gate.call("s3://b/mine"):
        pass


def test_calls_that_began_before_do_not_make_the_pause_longer() -> None:
    clock = Clock()
    gate = Gate(clock)
    with ExitStack() as stack:
        before = [gate.call("s3://b/before") for _ in range(20)]
        for one in before:
            one.__enter__()
        for one in before:
            error = StoreError(Fault.PASSING, "cannot be reached")
            assert one.__exit__(StoreError, error, None) in (False, None)
        stack.pop_all()
    clock.now += PAUSE_S + 0.01
    with gate.call("s3://b/trial"):
        pass


def test_a_trial_that_answers_lets_others_through_before_it_has_been_read() -> None:
    clock = Clock()
    gate = Gate(clock)
    for _ in range(FAILURES):
        fails(gate)
    clock.now += PAUSE_S + 0.01
    with gate.call("s3://b/trial"):
        refused(gate)
        source = gate.watched(Source(3, lambda most: b"abc"))
        with gate.call("s3://b/mine"):
            pass
        assert source.read(3) == b"abc"


def test_a_server_that_says_nothing_is_away_before_its_calls_time_out() -> None:
    clock = Clock()
    gate = Gate(clock)
    calls = [gate.call("s3://b/x") for _ in range(SILENT_CALLS)]
    for one in calls:
        one.__enter__()
    clock.now += SILENT_S + 0.1
    with gate.call("s3://b/upload", may_be_silent=True):
        pass  # a large upload says nothing for long, and this one has just ended well
    clock.now += SILENT_S + 0.1
    assert refused(gate).blame is Blame.NOT_TRIED


def test_a_server_whose_reads_go_on_is_not_silent() -> None:
    clock = Clock()
    gate = Gate(clock)
    for _ in range(SILENT_CALLS):
        gate.call("s3://b/x").__enter__()
    source = gate.watched(Source(None, lambda most: b"a"))
    clock.now += SILENT_S + 0.1
    source.read(1)
    with gate.call("s3://b/mine"):
        pass


def test_each_server_has_a_gate_of_its_own_and_their_number_is_bounded() -> None:
    gates = Gates()
    for _ in range(FAILURES):
        fails(gates.of("s3"))
    refused(gates.of("s3"))
    with gates.of("https://example.org").call("https://example.org/a"):
        pass
    for number in range(2 * Gates.MOST):
        gates.of(f"https://{number}.example.org")
    assert len(gates._gates) == Gates.MOST


def test_while_it_is_shut_one_passes_the_check_in_each_pause() -> None:
    clock = Clock()
    gate = Gate(clock)
    gate.check("s3://b/any")
    for _ in range(FAILURES):
        fails(gate)
    for _ in range(3):
        clock.now += PAUSE_S + 0.01
        # Whoever waits for a thread is no trial: it may be that the threads wait for this server.
        with pytest.raises(StoreError, match="is not tried"):
            gate.check("s3://b/waits", waits=True)
        gate.check("s3://b/passes")
        with pytest.raises(StoreError, match="is not tried"):
            gate.check("s3://b/another")
    with gate.call("s3://b/passes"):
        pass
    gate.check("s3://b/waits", waits=True)
