"""Medians and ranges of the rounds, as a Markdown table or as JSON."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TypedDict

from bench.check import Asked
from bench.load import Measure

COLUMNS = ("endpoint", "service", "µs", "to floor", "to limit", "requests/s", "p50 ms", "p99 ms", "SQL", "Redis")


class Figure(TypedDict):
    median: float
    lowest: float
    highest: float


class Row(TypedDict):
    """The figures of one service at one endpoint."""

    cpu_us: Figure
    to_floor: Figure
    to_limit: Figure
    per_second: Figure
    p50_ms: Figure
    p99_ms: Figure
    statements: float
    commands: float


def _figure(values: Sequence[float]) -> Figure:
    return Figure(median=median(values), lowest=min(values), highest=max(values))


def rows(measures: Mapping[str, Sequence[Measure]], asked: Mapping[str, Asked]) -> dict[str, Row]:
    """Return the figures of one endpoint by service. Each ratio compares two measures of the same round."""

    def ratio(name: str, base: str) -> Figure:
        return _figure([one.cpu_us / of.cpu_us for one, of in zip(measures[name], measures[base], strict=True)])

    return {
        name: Row(
            cpu_us=_figure([measure.cpu_us for measure in rounds]),
            to_floor=ratio(name, "floor"),
            to_limit=ratio(name, "limit"),
            per_second=_figure([measure.per_second for measure in rounds]),
            p50_ms=_figure([measure.p50_ms for measure in rounds]),
            p99_ms=_figure([measure.p99_ms for measure in rounds]),
            statements=asked[name].statements,
            commands=asked[name].commands,
        )
        for name, rounds in measures.items()
    }


def table(endpoints: Mapping[str, Mapping[str, Row]], titles: Mapping[str, str]) -> str:
    lines = [list(COLUMNS)]
    for name, services in endpoints.items():
        for service, row in services.items():
            cells = [titles[name] if service == "ours" else "", service]
            cells += [_cell(row["cpu_us"], 0), _cell(row["to_floor"], 2), _cell(row["to_limit"], 2)]
            cells += [_cell(row["per_second"], 0), _cell(row["p50_ms"], 1), _cell(row["p99_ms"], 1)]
            lines.append([*cells, f"{row['statements']:g}", f"{row['commands']:g}"])
    return markdown(lines, texts=2)


def markdown(lines: Sequence[Sequence[str]], texts: int) -> str:
    """Return a Markdown table. The first line is the head; the first `texts` columns are text, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width if number < texts else "-" * (width - 1) + ":" for number, width in enumerate(widths)]
    aligned = (
        [*map(str.ljust, line[:texts], widths), *map(str.rjust, line[texts:], widths[texts:])]
        for line in (lines[0], rule, *lines[1:])
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def _cell(figure: Figure, digits: int) -> str:
    middle, lowest, highest = (f"{figure[key]:.{digits}f}" for key in ("median", "lowest", "highest"))
    return f"{middle} ({lowest}-{highest})"
