"""WATCH: the clock of what a child does: which of its steps takes too long, and whether it still answers.

The clock is the host's. A timer inside the child would need the lock that a step which hangs may hold.
"""

from __future__ import annotations

import time

from pipeq_worker.children import board, protocol
from pipeq_worker.children.process import Member
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.steps import OF_STORES, Stage

#: How often the clock of what a child does is looked at, in seconds.
WATCH_S = 0.25
#: How often a child that serves is asked for an answer, in looks.
ASK_LOOKS = 4
#: A child that does not answer for so many looks is deaf.
DEAF_LOOKS = 4
#: A step that goes on for so long after it should have been ended hangs, in seconds.
HANGS_S = 5.0
#: The setting that limits each kind of step.
LIMITS = {
    Stage.FETCH: "[inputs] max_fetch_s",
    Stage.PREPARE: "step_timeout_s",
    Stage.FORWARD: "hard_timeout_s",
    Stage.FINISH: "step_timeout_s",
    Stage.PLACE: "[results] max_write_s",
    Stage.LOAD: "load_timeout_s",
}
#: A store keeps its limit by itself, and its error then says more. It is late after so many more seconds: a call of its
#: library does not come back, or a store of a user's own has no deadline.
STORE_GRACE_S = 5.0
#: What each is called.
_NAMES = {
    Stage.FETCH: "a read of a store",
    Stage.PLACE: "a write to a store",
    Stage.PREPARE: "a step of prepare",
    Stage.FORWARD: "a forward pass",
    Stage.FINISH: "a step of finish",
    Stage.LOAD: "loading a pipeline",
}


class Watch:
    """Looks at one child at a time. Used by its keeper's threads.

    Args:
        settings: the worker's settings, for the limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limits_s = {stage: _limit_s(settings, setting) for stage, setting in LIMITS.items()}
        #: Looks since the child was asked for an answer, and since when it could have given it.
        self._looks = 0
        self._is_asked = False
        self._silent = 0
        #: How often the child has answered, that number when a step was first seen to be overdue, and looks since then.
        self._answers = 0
        self._answers_before: int | None = None
        self._waited = 0

    def begin(self) -> None:
        """Notes that there is another child."""
        self._is_asked, self._silent, self._answers_before = False, 0, None

    def answered(self) -> None:
        """Notes that the child has answered."""
        self._is_asked = False
        self._answers += 1

    def overdue(self, child: Member) -> board.Entry | None:
        """The step of the child that takes too long, if there is one."""
        return next((entry for entry in child.doing() if self._late_s(entry) > 0), None)

    def is_deaf(self, child: Member) -> bool | None:
        """Whether a child with an overdue step does not answer: any of its steps may then hold Python's lock.

        If it answers, the lock is free, and the step itself takes long. Returns None if that is not known yet; call it
        again at the next look.
        """
        if self._answers_before is None:
            self._answers_before, self._waited = self._answers, 0
            if not self._is_asked:
                self._is_asked = True
                child.send(protocol.Ask())
        if self._answers > self._answers_before:
            return False
        self._waited += 1
        return True if self._waited > DEAF_LOOKS else None

    def is_silent(self, child: Member) -> bool:
        """Asks the child for an answer. Returns whether none comes although it is working on nothing.

        A step has a limit of its own, and may keep the child from answering. Call it once a look.
        """
        self._looks += 1
        if not self._is_asked:
            if self._looks % ASK_LOOKS == 0:
                self._is_asked, self._silent = True, 0
                child.send(protocol.Ask())
        elif any(entry.stage not in OF_STORES for entry in child.doing()):
            self._silent = 0
        else:
            # Counted in looks, not by the clock: both processes may have been frozen together.
            self._silent += 1
        return self._silent * WATCH_S > self._settings.metrics.hung_s

    def hangs(self, child: Member) -> str | None:
        """Says that the child, or a step of it, should have been ended; None if all is well."""
        if self._silent * WATCH_S > self._settings.metrics.hung_s + HANGS_S:
            return f"process {child.pid} does not answer"
        for entry in child.doing():
            if (late_s := self._late_s(entry) - HANGS_S) > 0:
                return f"{_NAMES[entry.stage]} should have been ended {late_s:.0f} s ago"
        return None

    def too_long(self, entry: board.Entry, pid: int) -> str:
        """Says that a child was ended because of this step."""
        setting, limit_s = LIMITS[entry.stage], self._limits_s[entry.stage]
        return f"{_NAMES[entry.stage]} took over {setting} ({limit_s:g} s), and process {pid} was ended"

    def no_answer(self, pid: int) -> str:
        """Says that a child was ended because it did not answer."""
        return f"process {pid} did not answer for {self._settings.metrics.hung_s:g} s, and was ended"

    def _late_s(self, entry: board.Entry) -> float:
        """Seconds since a step should have ended; negative if it may go on."""
        grace_s = STORE_GRACE_S if entry.stage in OF_STORES else 0.0
        return time.monotonic() - entry.since - self._limits_s[entry.stage] - grace_s


def _limit_s(settings: Settings, setting: str) -> float:
    """The value of a setting, whose name may begin with its section: ``[inputs] max_fetch_s``."""
    section, _, key = setting.rpartition(" ")
    found: float = getattr(getattr(settings, section.strip("[]")) if section else settings, key)
    return found
