"""Types of enums in generated migrations.

Alembic itself creates such a type with each table that uses it, and none for an added column. It drops none, and does
not see new values.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from alembic.operations import MigrateOperation, MigrationScript, ops
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Enum, inspect

from app.core.database import Base


class EnumOperation(MigrateOperation):
    """One line of a migration."""

    def __init__(self, line: str) -> None:
        self.line = line

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Let `alembic check` show the line."""
        return "execute", self.line


@renderers.dispatch_for(EnumOperation)
def _render(autogenerate: AutogenContext, operation: EnumOperation) -> str:
    autogenerate.imports.add("from sqlalchemy.dialects import postgresql")
    return operation.line


def render_item(kind: str, item: Any, autogenerate: AutogenContext) -> str | Literal[False]:
    """Let columns refer to their type by its name (option `render_item`)."""
    if kind != "type" or not isinstance(item, Enum) or not _enums([item]):
        return False
    autogenerate.imports.add("from sqlalchemy.dialects import postgresql")
    return f"postgresql.ENUM({_name(item)}, create_type=False)"


def manage_enums(context: MigrationContext, _revision: object, scripts: list[MigrationScript]) -> None:
    """Create types before the columns, drop them after the columns (option `process_revision_directives`)."""
    for script in scripts:
        upgrade, downgrade = script.upgrade_ops, script.downgrade_ops
        if context.connection is None or upgrade is None or downgrade is None:
            continue
        catalog: Any = inspect(context.connection)
        quoter: Any = context.dialect.identifier_preparer
        stored = {each["name"]: each["labels"] for each in catalog.get_enums(schema="*")}
        used = _enums(column.type for table in Base.metadata.tables.values() for column in table.columns)
        new = [enum for name, enum in _enums(_types_in(upgrade)).items() if name not in stored]
        unused = [enum for name, enum in _enums(_types_in(downgrade)).items() if name not in used]
        values = [
            _add_value(quoter.format_type(enum), value)
            for name, enum in used.items()
            for value in enum.enums
            if value not in stored.get(name, enum.enums)
        ]
        upgrade.ops[:] = [*map(_create, new), *values, *upgrade.ops, *map(_drop, unused)]
        downgrade.ops[:] = [*map(_create, unused), *downgrade.ops, *map(_drop, new)]


def _enums(types: Iterable[Any]) -> dict[str, Enum]:
    """Return the enums among the types by name, also those of arrays."""
    items = [getattr(each, "item_type", each) for each in types]
    return {each.name: each for each in items if isinstance(each, Enum) and each.native_enum and each.name}


def _types_in(operations: ops.OpContainer) -> Iterator[Any]:
    """Yield the types of the columns that the operations create."""
    for each in operations.ops:
        match each:
            case ops.OpContainer():
                yield from _types_in(each)
            case ops.CreateTableOp():
                yield from (getattr(column, "type", None) for column in each.columns)
            case ops.AddColumnOp():
                yield each.column.type
            case ops.AlterColumnOp():
                yield each.modify_type


def _name(enum: Enum) -> str:
    return f"name={enum.name!r}" + (f", schema={enum.schema!r}" if enum.schema else "")


def _create(enum: Enum) -> EnumOperation:
    values = "".join(f"{value!r}, " for value in enum.enums)
    return EnumOperation(f"op.execute(postgresql.CreateEnumType(postgresql.ENUM({values}{_name(enum)})))")


def _drop(enum: Enum) -> EnumOperation:
    return EnumOperation(f"op.execute(postgresql.DropEnumType(postgresql.ENUM({_name(enum)})))")


def _add_value(type_name: str, value: str) -> EnumOperation:
    # PostgreSQL cannot remove a value, so `downgrade` leaves it. A colon would begin the name of a parameter.
    quoted = "'" + value.replace("'", "''").replace(":", "\\:") + "'"
    return EnumOperation(f"op.execute({f'ALTER TYPE {type_name} ADD VALUE IF NOT EXISTS {quoted}'!r})")
