"""The window against a slow reference: the same rules, written as a sentence each, over a plain list."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.schedule.costs import Learned, Pass
from pipeq_worker.schedule.urgency import EVERY, PATIENCE_S
from pipeq_worker.schedule.window import LEAD_S, Window

LIMITS = BatchLimits(max_size=6, max_cost=120, launch_cost=20, max_wait_s=0)


@dataclass(eq=False)
class Row:
    cost: int = 5
    priority: int = 0
    tenant: str | None = None
    deadline: float = math.inf
    arrived: float = 0.0
    group: str = "g"
    lane: str = "a"
    nbytes: int = 1
    order: int = 0


def known(launch_s: float = 0.0, cost_s: float = 0.01, **limits: float) -> Learned:
    """What is known of a device that takes exactly this long."""
    learned = Learned(BatchLimits(**{**vars(LIMITS), **limits}))  # type: ignore[arg-type]
    for padded in (1, 10, 100):
        for _ in range(5):
            learned.add(Pass(1, padded, launch_s + cost_s * padded))
    learned.surprise_s = 0.0
    return learned


class Reference:
    """The choice within one pipeline, by brute force."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.passed_over: Counter[int] = Counter()
        self.now: Counter[int] = Counter()
        self.times: Counter[tuple[int, str | None]] = Counter()

    def add(self, row: Row) -> None:
        if not any((one.priority, one.tenant) == (row.priority, row.tenant) for one in self.rows):
            self.times[row.priority, row.tenant] = max(self.times[row.priority, row.tenant], self.now[row.priority])
        self.rows.append(row)

    def time(self, priority: int, tenant: str | None) -> int:
        return self.times[priority, tenant]

    @staticmethod
    def due(row: Row) -> tuple[float, int]:
        return min(row.deadline, row.arrived + PATIENCE_S), row.order

    def head(self) -> Row:
        late = [row for row in self.rows if self.passed_over[row.priority] >= EVERY]
        priority = min(row.priority for row in late or self.rows)
        mine = [row for row in self.rows if row.priority == priority]
        least = min(self.time(priority, row.tenant) for row in mine)
        return min((row for row in mine if self.time(priority, row.tenant) == least), key=self.due)

    def windows(self, head: Row) -> dict[tuple[int, ...], float]:
        """All multisets of costs that neighbours in length can give, with the head -> their use."""
        costs = sorted(row.cost for row in self.rows if row.group == head.group)
        found = {}
        for start in range(len(costs)):
            for stop in range(start + 1, min(start + LIMITS.max_size, len(costs)) + 1):
                part, number = costs[start:stop], stop - start
                if head.cost in part and (
                    number == 1 or (number <= LIMITS.max_size and part[-1] * number <= LIMITS.max_cost)
                ):
                    found[tuple(part)] = sum(part) / (LIMITS.launch_cost + part[-1] * number)
        return found

    def most_urgent(self, rows: list[Row], number: int, head: Row) -> list[Row]:
        chosen, extra, left = [], Counter[tuple[int, str | None]](), list(rows)
        if head in left:
            left.remove(head)
            chosen.append(head)
            extra[head.priority, head.tenant] += head.cost
        while len(chosen) < number:
            best = min(
                left,
                key=lambda row: (
                    row.priority,
                    self.time(row.priority, row.tenant) + extra[row.priority, row.tenant],
                    self.due(row),
                ),
            )
            left.remove(best)
            chosen.append(best)
            extra[best.priority, best.tenant] += best.cost
        return chosen

    def expected(self, head: Row, costs: list[int]) -> set[int]:
        """Orders of the rows that a batch of these costs must hold."""
        group = [row for row in self.rows if row.group == head.group]
        found = set()
        for cost, number in Counter(costs).items():
            found |= {row.order for row in self.most_urgent([r for r in group if r.cost == cost], number, head)}
        return found

    def remove(self, head: Row, taken: list[Row]) -> None:
        self.now[head.priority] = max(self.now[head.priority], self.time(head.priority, head.tenant) + head.cost)
        for row in taken:
            self.times[row.priority, row.tenant] += row.cost
            self.rows.remove(row)
        self.passed_over[head.priority] = 0
        for priority in range(10):
            if not any(row.priority == priority for row in self.rows):
                self.passed_over[priority] = 0
            elif priority > head.priority:
                self.passed_over[priority] += 1


@pytest.mark.parametrize("seed", range(60))
def test_random_windows_are_as_the_rules_say(seed: int) -> None:
    """Sixty runs of some hundred windows each."""
    rng = random.Random(seed)
    window: Window[Row] = Window()
    learned, reference = Learned(LIMITS), Reference()
    now, order = 0.0, 0
    longest, tenants = rng.choice([3, 12, 60]), rng.choice([[None], [None, "a", "b"], list("abcdefgh")])
    priorities, groups = rng.choice([[0], [0, 6], [0, 3, 6, 9]]), rng.choice(["g", "ghi"])
    for _ in range(80):
        for _ in range(rng.choice([0, 1, 3, 20])):
            now += rng.random()
            alike = (
                rng.choice(priorities),
                rng.choice(tenants),
                now + rng.random() * 20 if rng.random() < 0.3 else math.inf,
                now,
                rng.choice(groups),
            )
            # Mostly one, sometimes several rows of a pack.
            rows = [Row(rng.randint(1, longest), *alike, order=order + at) for at in range(1, rng.choice([2, 2, 2, 9]))]
            order += len(rows)
            window.add_all(rows, learned, now)
            for row in rows:
                reference.add(row)
        if not reference.rows:
            assert window.next(now, is_idle=True) is None
            continue
        head, taken = reference.head(), window.next(now, is_idle=True)
        assert isinstance(taken, list)
        assert head in taken
        costs = [row.cost for row in taken]
        assert costs == sorted(costs)
        windows = reference.windows(head)
        assert windows[tuple(costs)] == pytest.approx(max(windows.values()))
        assert {row.order for row in taken} == reference.expected(head, costs)
        reference.remove(head, taken)
        assert len(window) == len(reference.rows)
        assert window.waiting("a") == (
            len(reference.rows),
            sum(row.cost for row in reference.rows),
            len(reference.rows),
        )
    assert {row.order for row in window.clear()} == {row.order for row in reference.rows}


def fill(window: Window[Row], learned: Learned, rows: list[Row]) -> None:
    for at, row in enumerate(rows):
        row.order = at
        window.add(row, learned, row.arrived)


def keep(window: Window[Row], learned: Learned, number: int = 50, **fields: Any) -> None:
    """Adds rows of one pipeline until so many wait."""
    while window.waiting(fields.get("lane", "a"))[0] < number:
        window.add(Row(**fields), learned, 0.0)


def batches(window: Window[Row], number: int = 10**6, now: float = 0.0) -> list[list[Row]]:
    found = []
    while len(found) < number and (batch := window.next(now, is_idle=True)) is not None:
        assert isinstance(batch, list)
        found.append(batch)
    return found


def test_an_urgent_item_is_in_the_very_next_batch() -> None:
    window: Window[Row] = Window()
    fill(window, Learned(LIMITS), [Row(priority=9) for _ in range(500)])
    batches(window, 20)
    urgent = Row(priority=0, cost=40)
    window.add(urgent, Learned(LIMITS), 0.0)
    assert urgent in batches(window, 1)[0]


def test_bulk_gets_a_batch_in_eleven_however_much_is_urgent() -> None:
    window: Window[Row] = Window()
    fill(window, Learned(LIMITS), [Row(priority=0) for _ in range(600)] + [Row(9, priority=6) for _ in range(600)])
    first = [batch[0].priority for batch in batches(window, 88)]
    assert first.count(6) == 8


def test_what_is_due_sooner_comes_first_and_nothing_waits_behind_deadlines_for_ever() -> None:
    window: Window[Row] = Window()
    learned = Learned(BatchLimits(max_size=1, max_cost=100))
    plain = Row(arrived=0.0)
    soon, late = Row(arrived=0.5, deadline=1.5), Row(arrived=0.5, deadline=500.0)
    fill(window, learned, [plain, late, soon])
    assert batches(window) == [[soon], [plain], [late]]
    window.add(plain, learned, 0.0)
    for at in range(100):
        now = at * 0.5
        window.add(Row(arrived=now, deadline=now + 1), learned, now)
        if batches(window, 1, now)[0] == [plain]:
            break
    assert now <= PATIENCE_S


def test_tenants_take_turns() -> None:
    window: Window[Row] = Window()
    fill(window, Learned(LIMITS), [Row(tenant="big") for _ in range(1000)])
    batches(window, 30)
    learned = Learned(LIMITS)
    for _ in range(12):
        window.add(Row(tenant="small"), learned, 1.0)
    served = [row.tenant for batch in batches(window, 4) for row in batch]
    assert served.count("small") == 12


def test_a_tenant_that_was_away_neither_catches_up_nor_pays() -> None:
    window: Window[Row] = Window()
    learned = Learned(LIMITS)
    fill(window, learned, [Row(tenant="a") for _ in range(60)])
    batches(window)
    fill(window, learned, [Row(tenant=name) for _ in range(60) for name in "ab"])
    served = Counter(row.tenant for batch in batches(window, 10) for row in batch)
    assert abs(served["a"] - served["b"]) <= 6


def test_newcomers_without_end_do_not_stop_a_tenant_that_has_had_a_turn() -> None:
    window: Window[Row] = Window()
    learned = Learned(BatchLimits(max_size=1, max_cost=100))
    fill(window, learned, [Row(tenant="old") for _ in range(20)])
    old = 0
    for at in range(100):
        window.add(Row(tenant=f"new {at}"), learned, 0.0)
        window.add(Row(tenant=f"newer {at}"), learned, 0.0)
        old += batches(window, 1)[0][0].tenant == "old"
    assert old >= 2


@pytest.mark.parametrize(("weight", "share"), [(1, 0.5), (3, 0.75), (0.25, 0.2)])
def test_pipelines_share_the_time_by_weight_not_by_number_of_batches(weight: float, share: float) -> None:
    """One is 40 times as slow as the other."""
    window: Window[Row] = Window()
    slow, fast = known(1.0, 0.2, weight=weight), known(0.02, 0.005)
    spent = Counter[str]()
    while sum(spent.values()) < 600:
        keep(window, slow, lane="slow", group="s")
        keep(window, fast, lane="fast", group="f")
        [batch] = batches(window, 1)
        name = batch[0].lane
        spent[name] += (1.0 + 0.2 * 30) if name == "slow" else (0.02 + 0.005 * 30)  # type: ignore[assignment]
    assert spent["slow"] / spent.total() == pytest.approx(share, abs=0.03)


def test_a_pipeline_pays_for_what_its_passes_really_took() -> None:
    window: Window[Row] = Window()
    liar, honest = known(0.0, 0.001), known(0.0, 0.001)
    counts = Counter[str]()
    for _ in range(200):
        keep(window, liar, lane="liar", group="l")
        keep(window, honest, lane="honest", group="h")
        [batch] = batches(window, 1)
        counts[batch[0].lane] += 1
        if batch[0].lane == "liar":
            liar.surprise_s += 0.09  # 120 ms in place of 30
    assert counts["honest"] / counts["liar"] == pytest.approx(4, rel=0.1)


def test_an_urgent_item_goes_before_the_turns_of_others_but_not_for_ever() -> None:
    window: Window[Row] = Window()
    one, other = known(0.0, 0.1 / 30), known(0.0, 0.1 / 30)  # 0.1 s a batch of six
    keep(window, other, priority=6, lane="b", group="b")
    batches(window, 3)
    served = []
    for _ in range(200):
        keep(window, other, priority=6, lane="b", group="b")
        keep(window, one, priority=0, lane="a", group="a")
        served.append(batches(window, 1)[0][0].lane)
    ahead = served.index("b")
    assert ahead * 0.1 == pytest.approx(LEAD_S, abs=0.5)
    assert served[ahead:].count("a") == pytest.approx(served[ahead:].count("b"), abs=2)


def test_a_batch_is_no_larger_than_its_first_deadline_allows() -> None:
    window: Window[Row] = Window()
    learned = known(0.0, 0.01)  # 50 ms for each item of cost 5
    fill(window, learned, [Row(arrived=0.0, deadline=0.11 if at == 3 else math.inf) for at in range(20)])
    assert len(batches(window, 1)[0]) == 2
    assert len(batches(window, 1)[0]) == 6
    late = Row(arrived=0.0, deadline=0.01)
    window.add(late, learned, 0.0)
    batch = batches(window, 1)[0]  # it cannot be in time, so its batch is as full as any
    assert late in batch
    assert len(batch) == 6


def test_when_to_ask_again() -> None:
    learned = known(0.0, 0.01, max_wait_s=2.0)
    window: Window[Row] = Window()
    assert window.next(0.0, is_idle=True) is None
    window.add(Row(), learned, 0.0)
    assert window.next(0.5, is_idle=True) == 2.0
    assert window.next(0.5, is_idle=False) is None
    window.add(Row(arrived=0.5, deadline=1.5), learned, 0.5)
    assert window.next(0.6, is_idle=True) == pytest.approx(1.45, abs=0.01)
    assert window.next(0.6, is_idle=False) == pytest.approx(1.45, abs=0.01)
    batch = window.next(1.46, is_idle=False)
    assert isinstance(batch, list)
    window.add(Row(arrived=1.0, deadline=1.5), learned, 1.0)
    assert window.next(1.6, is_idle=False) is None  # it is late, and may as well wait for company
