"""Values of schemas as the columns of a model take them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic_core import to_jsonable_python

from app.core.database import Base
from app.core.exceptions import InvalidValueError
from app.crud.statements import columns_of


def values_of(
    model: type[Base], object: BaseModel | Mapping[str, Any], *, exclude_unset: bool = False
) -> dict[str, Any]:
    """Return what a schema or a mapping sets, for the columns of the model.

    A null for a column that has none, and a time without an offset, raise InvalidValueError if a client sent them.
    """
    if isinstance(object, BaseModel):
        values, sent = object.model_dump(exclude_unset=exclude_unset), object.model_fields_set
    else:
        values, sent = dict(object), set()
    attributes = columns_of(model)
    for name in values.keys() & attributes.keys():
        column, value = attributes[name], values[name]
        if value is None and name in sent and isinstance(column, sa.Column) and not column.nullable:
            raise InvalidValueError("This must not be null", field=name)
        values[name] = _stored(column.type, value, name)
    return values


def _stored(kind: sa.types.TypeEngine[Any], value: Any, name: str) -> Any:
    if isinstance(kind, sa.JSON):
        return sa.null() if value is None else value  # SQLAlchemy would store JSON's null, which is not NULL
    if isinstance(value, SecretStr | SecretBytes):
        raise TypeError(f"{name} is a secret: hash it, or give its get_secret_value()")
    if isinstance(value, datetime) and isinstance(kind, sa.DateTime) and kind.timezone and value.utcoffset() is None:
        raise InvalidValueError("A time needs its offset, such as Z or +01:00", field=name)
    is_text = isinstance(kind, sa.String) and not isinstance(kind, sa.Enum)
    return to_jsonable_python(value) if is_text and not isinstance(value, str | sa.ClauseElement | None) else value
