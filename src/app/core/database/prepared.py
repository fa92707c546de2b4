"""Run a reading statement on the driver without SQLAlchemy's execution, which halves the cost of a small read.

SQLAlchemy compiles the statement once. Only statements whose types are all in `TYPES`, and which SQLAlchemy hands over
unchanged in both directions, are run so: `tests/integration/test_prepared_types.py` proves for each type that the
results equal SQLAlchemy's own. POSTGRES_PREPARED_READS=false turns this off.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

from sqlalchemy import Dialect, Executable, types

BUILT_ONCE = {"built_once": True}
"""Execution options of a statement that is built once and used often: a `Reader` compiles it once, too."""
TYPES = frozenset({
    types.BigInteger, types.Boolean, types.Date, types.DateTime, types.Integer, types.NullType, types.SmallInteger,
    types.String, types.Text, types.Time, types.Unicode, types.UnicodeText, types.Uuid,
})  # fmt: skip
"""Types of columns and parameters; a subclass is another type, and so is a `TypeDecorator`."""


class PreparedStatement(NamedTuple):
    """The SQL of a statement, the names of its parameters in their order, and the values of some."""

    sql: str
    names: Sequence[str]
    defaults: Mapping[str, Any]

    def arguments(self, given: Mapping[str, Any]) -> list[Any]:
        values = {**self.defaults, **given}
        return [values[name] for name in self.names]


@lru_cache(maxsize=1024)
def prepare(statement: Executable, dialect: Dialect) -> PreparedStatement | None:
    """Compile a statement; None when its text depends on its values (as that of a list does), or for other types."""
    if "built_once" not in statement.get_execution_options():
        return None
    compiled = cast(Any, statement).compile(dialect=dialect)
    if compiled.literal_execute_params or compiled.post_compile_params:
        return None
    parameters = [bind.type for bind in compiled.binds.values()]
    columns = [column.type for column in cast(Any, statement).selected_columns]
    if any(type(kind) not in TYPES for kind in (*parameters, *columns)):
        return None
    to_driver = [kind.dialect_impl(dialect).bind_processor(dialect) for kind in parameters]
    from_driver = [kind.dialect_impl(dialect).result_processor(dialect, None) for kind in columns]
    if any((*to_driver, *from_driver)):
        return None
    return PreparedStatement(compiled.string, tuple(compiled.positiontup), compiled.params)
