"""CHOICE: sorted costs, and one of them that must be in -> the slice that makes best use of a forward pass."""

from __future__ import annotations

from pipeq_worker.models.pipeline import BatchLimits


def use(costs: list[int], window: tuple[int, int], limits: BatchLimits) -> float:
    """The useful cost of a slice of sorted costs for each unit of time, which is padded cost plus that of a launch."""
    start, stop = window
    return sum(costs[start:stop]) / (limits.launch_cost + max(costs[stop - 1], 1) * (stop - start))


def best_window(costs: list[int], must: int, limits: BatchLimits) -> tuple[int, int]:
    """Returns the slice of ``costs`` (sorted) that holds index ``must`` and makes best use of a forward pass.

    "Best" is the most useful cost for each unit of time, where the time of a pass is its padded cost plus the cost of
    launching it: ``sum(costs) / (launch_cost + longest * n)``.

    Returns:
        ``(start, stop)``; at least the item itself, even if it alone exceeds the limits.
    """
    cost = costs[0]
    if cost == costs[-1] and cost > 0 and limits.launch_cost > 0:
        # Of equal ones, the more the better.
        number = min(len(costs), limits.max_size, max(1, limits.max_cost // cost))
        start = min(must, len(costs) - number)
        return start, start + number
    prefix = [0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)
    best, best_score = (must, must + 1), -1.0
    start = max(0, must + 1 - limits.max_size)
    for stop in range(must + 1, len(costs) + 1):
        longest = max(costs[stop - 1], 1)
        start = max(start, stop - limits.max_size)
        while start < must and longest * (stop - start) > limits.max_cost:
            start += 1
        if start > must or (stop - start > 1 and longest * (stop - start) > limits.max_cost):
            break
        # A shorter item pays off while its share of the longest exceeds the score so far. Towards shorter items the
        # shares only fall.
        score = -1.0
        for begin in range(must, start - 1, -1):
            longer = (prefix[stop] - prefix[begin]) / (limits.launch_cost + longest * (stop - begin))
            if longer <= score:
                break
            score = longer
            if score > best_score:
                best, best_score = (begin, stop), score
    return best
