"""The report: answers and latencies in each phase, and the broken promises."""

import math
import time
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

BOUND_SECONDS = 3.0
"""The greatest latency of an answer, even while a server is unavailable."""
RECOVERY_SECONDS = 5.0
"""How long after a server's return answers may still report it unavailable."""
CALM = "calm"
COLUMNS = ("2xx", "401", "429", "4xx", "503", "500", "other", "cut", "retried")
DETAILS = 5
"""How many broken promises of one kind are printed in full for each phase."""


@dataclass
class Phase:
    name: str
    times: int = 0
    seconds: float = 0
    counts: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    recovery: float = 0

    def cells(self) -> list[str]:
        waits = sorted(self.waits) or [0.0]
        times = [waits[math.ceil(0.99 * len(waits)) - 1], waits[-1], self.recovery]
        counts = [str(self.counts[column]) for column in COLUMNS]
        return [self.name, str(self.times), f"{self.seconds:.0f}", *counts, *(f"{1000 * time:.0f}" for time in times)]


class Report:
    def __init__(self, start_seconds: float) -> None:
        self.start_seconds = start_seconds
        """How long the API's workers take to start; while all restart, answers may take that much longer."""
        self.phases: dict[str, Phase] = {}
        self.phase = self.phases[CALM] = Phase(CALM, times=1)
        self.broken: Counter[str] = Counter()
        self.details: list[str] = []
        self.reads = 0
        """Number of checked reads."""
        self.jobs: list[str] = []
        """Ids of the jobs that were accepted."""
        self._details_told: Counter[tuple[str, str]] = Counter()
        self._began = self._entered = time.monotonic()
        self._last_fault, self._last_fault_ended = self.phase, self._began
        self._away_until: dict[str, float] = {}

    def enter(self, name: str) -> None:
        now = time.monotonic()
        self.phase.seconds += now - self._entered
        self._entered = self._last_fault_ended = now
        self.phase = self.phases.setdefault(name, Phase(name))
        self.phase.times += 1
        if name != CALM:
            self._last_fault, self._last_fault_ended = self.phase, math.inf

    def goes_away(self, role: str) -> None:
        self._away_until[role] = math.inf

    def is_back(self, role: str) -> float:
        """Record the return of a server; return the time after which no answer may report it unavailable."""
        self._away_until[role] = time.monotonic() + RECOVERY_SECONDS
        return self._away_until[role]

    def was_away(self, roles: Iterable[str], since: float, margin: float = 0) -> bool:
        """Return whether one of these was unavailable or recovering at any time since `since`."""
        return any(since < self._away_until.get(role, 0) + margin for role in roles)

    def answered(
        self,
        what: str,
        asked: float,
        status: int | None,
        expected: Container[int],
        roles: Iterable[str],
        tries: int = 1,
    ) -> None:
        """Count the answer to a request that needs the servers of these `roles`; None: the connection was lost."""
        wait = time.monotonic() - asked
        phase = self._last_fault if asked < self._last_fault_ended else self.phases[CALM]
        phase.waits.append(wait)
        phase.counts[_column(status)] += 1
        phase.counts["retried"] += tries > 1
        api_was_away = self.was_away(["gunicorn"], asked)
        excused = (status == 503 and self.was_away(roles, asked)) or (status is None and api_was_away)
        if status not in expected and not excused:
            self.breaks("unexpected answers", f"{what}: {status or 'cut'}")
        if wait > BOUND_SECONDS + (self.start_seconds if api_was_away else 0):
            self.breaks("slow answers", f"{what}: {status or 'cut'} after {wait:.2f} s")

    def breaks(self, promise: str, detail: str) -> None:
        self.broken[promise] += 1
        self._details_told[promise, self.phase.name] += 1
        if self._details_told[promise, self.phase.name] <= DETAILS:
            self.details.append(f"{time.monotonic() - self._began:.1f} s, {self.phase.name}: {promise}: {detail}")

    def table(self) -> str:
        """Return the phases as a Markdown table."""
        total = Phase("all")
        for phase in self.phases.values():
            total.times += phase.times
            total.seconds += phase.seconds
            total.counts += phase.counts
            total.waits += phase.waits
            total.recovery = max(total.recovery, phase.recovery)
        head = ["phase", "times", "s", *COLUMNS, "p99 ms", "worst ms", "recovered ms"]
        rows = [head, *(phase.cells() for phase in [*self.phases.values(), total])]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
        cells = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _column(status: int | None) -> str:
    if status is None:
        return "cut"
    return str(status) if str(status) in COLUMNS else {2: "2xx", 4: "4xx"}.get(status // 100, "other")
