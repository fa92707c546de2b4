"""Run a reading statement on the driver without SQLAlchemy's execution, which halves the cost of a small read.

SQLAlchemy compiles the statement once; parameters and rows then pass through the bind and result processors of their
types. Only statements whose types are all in `TYPES` are run so: `tests/integration/test_prepared_types.py` proves for
each that the results equal SQLAlchemy's own. POSTGRES_PREPARED_READS=false turns this off.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from sqlalchemy import Dialect, Executable, types

BUILT_ONCE = {"built_once": True}
"""Execution options of a statement that is built once and used often: a `Reader` compiles it once, too."""
TYPES = frozenset({
    types.BigInteger, types.Boolean, types.Date, types.DateTime, types.Integer, types.LargeBinary, types.NullType,
    types.SmallInteger, types.String, types.Text, types.Time, types.Unicode, types.UnicodeText, types.Uuid,
})  # fmt: skip
"""Types of columns and parameters; a subclass is another type, and so is a `TypeDecorator`."""


@dataclass(frozen=True, slots=True)
class PreparedStatement:
    """The SQL of a statement, and how its parameters and rows are converted."""

    sql: str
    defaults: Mapping[str, Any]
    names: Sequence[str]
    to_driver: Mapping[str, Callable[[Any], Any]]
    from_driver: Sequence[Callable[[Any], Any] | None]

    def arguments(self, given: Mapping[str, Any]) -> list[Any]:
        values = {**self.defaults, **given}
        for name, process in self.to_driver.items():
            values[name] = process(values[name])
        return [values[name] for name in self.names]

    def rows(self, records: Sequence[Any]) -> Sequence[Any]:
        if not any(self.from_driver):
            return records
        return [
            tuple(process(value) if process else value for process, value in zip(self.from_driver, record, strict=True))
            for record in records
        ]


@lru_cache(maxsize=1024)
def prepare(statement: Executable, dialect: Dialect) -> PreparedStatement | None:
    """Compile a statement; None when its text depends on its values (as that of a list does), or for other types."""
    if "built_once" not in statement.get_execution_options():
        return None
    compiled = cast(Any, statement).compile(dialect=dialect)
    if compiled.literal_execute_params or compiled.post_compile_params:
        return None
    binds = {name: bind.type for name, bind in compiled.binds.items()}
    columns = [column.type for column in cast(Any, statement).selected_columns]
    if any(type(each) not in TYPES for each in (*binds.values(), *columns)):
        return None
    processors = {name: kind.dialect_impl(dialect).bind_processor(dialect) for name, kind in binds.items()}
    return PreparedStatement(
        sql=compiled.string,
        defaults=compiled.params,
        names=tuple(compiled.positiontup),
        to_driver={name: process for name, process in processors.items() if process is not None},
        from_driver=[column.dialect_impl(dialect).result_processor(dialect, None) for column in columns],
    )
