"""Timing statements against each other on a machine that other work shares.

The candidates take turns in short rounds, so that a slow moment of the machine falls on all of them, and a candidate's
time is its median round. A round repeats the statement itself in timeit's loop: nothing is called but what is timed.
What runs on one thread is measured by that thread's processor time, which stands still while others have the core.
"""

from __future__ import annotations

import statistics
import time
import timeit
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

ROUND_SECONDS = 1e-3
FEWEST_ROUNDS = 5
MOST_ROUNDS = 41


class Work:
    """A statement, the names it uses, and the context (instruction set, grad mode, threads) that it runs in."""

    def __init__(
        self,
        statement: str,
        names: dict[str, Any],
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.statement, self.names, self.context = statement, names, context
        self.timer = timeit.Timer(statement, timer=time.thread_time, globals=names)
        self.number = 0
        self.times: list[float] = []

    def calibrate(self, seconds: float = ROUND_SECONDS) -> float:
        """Warm up, find how many repetitions fill a round, and return the seconds that a round takes."""
        self.number = 1
        with self.context():
            self.timer.timeit(1)
            while (took := self.timer.timeit(self.number)) < seconds / 2 and self.number < 1 << 24:
                self.number = max(2 * self.number, min(round(0.8 * seconds / took * self.number), 50 * self.number))
        return took

    def round(self, warm: bool = False) -> None:
        """Time one round, after one run for the caches if warm; the seconds of one repetition go to ``times``."""
        with self.context():
            if warm:
                self.timer.timeit(1)
            self.times.append(self.timer.timeit(self.number) / self.number)

    def use_wall_clock(self) -> None:
        """For what runs on more than one thread."""
        self.timer.timer = time.perf_counter

    def forget(self) -> None:
        """Let go of the arrays; the times stay."""
        del self.names, self.timer

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    def function(self) -> Callable[[], None]:
        """The statement as a function without arguments."""
        scope: dict[str, Any] = {}
        exec(f"def run():\n    {self.statement}", self.names, scope)
        return scope["run"]


def interleave(works: Mapping[str, Work], seconds: float) -> dict[str, float]:
    """Let the works take turns for about so many seconds in all; the median seconds of each."""
    turn = sum(work.calibrate() for work in works.values())
    order = list(works.values())
    for _ in range(min(max(round(seconds / turn), FEWEST_ROUNDS), MOST_ROUNDS)):
        for work in order:
            work.round()
        order = order[1:] + order[:1]  # nobody always runs after the same one
    return {name: work.median for name, work in works.items()}
