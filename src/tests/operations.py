"""The operations of the OpenAPI document, and requests that they accept: made from their schemas, with rows of the API.

The checks of all routes learn of a new one from here. What a schema cannot tell is in `VALUES`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.core.database import Base
from app.main import app

# Values of parameters and fields for which those made from the schema do not do, by the name of the endpoint:
# "write_book": {"isbn": "9780141439587"}
VALUES: dict[str, dict[str, Any]] = {
    "create_task": {"message": "test"},
}

METHODS = ("get", "post", "put", "patch", "delete")
FORMATS = {
    "date": "2026-11-27",
    "date-time": "2026-11-27T12:00:00+02:00",
    "time": "12:00:00",
    "duration": "P1D",
    "uuid": "e3e70682-c209-4cac-a29f-6fbed82c07cd",
    "email": "somebody@example.com",
    "uri": "https://www.example.com/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "base64": "YQ==",
    "base64url": "YQ==",
    "json-string": "{}",
}
STRINGS = ("something", "a", "1", "A1", "abcdefgh", "https://www.example.com/")
JSON_TYPES: dict[type, tuple[str, ...]] = {
    type(None): ("null",),
    bool: ("boolean",),
    int: ("integer", "number"),
    str: ("string",),
    list: ("array",),
    dict: ("object",),
}


@dataclass(frozen=True)
class Operation:
    """A method of a path; `name` is that of its function."""

    name: str
    method: str
    path: str
    description: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def success(self) -> int:
        return min(int(status) for status in self.description["responses"] if status.startswith("2"))

    def parameters(self, place: str) -> list[dict[str, Any]]:
        """Return the parameters in `path`, `query` or `header`."""
        return [each for each in self.description.get("parameters", ()) if each["in"] == place]

    @property
    def answer(self) -> Any:
        """The schema of the answer in case of success."""
        return self.description["responses"][str(self.success)].get("content")

    @property
    def content_type(self) -> str | None:
        """The first content type of the body."""
        return next(iter(self.description["requestBody"]["content"])) if "requestBody" in self.description else None

    @property
    def body(self) -> dict[str, Any]:
        """The schema of the body."""
        return resolve(self.description["requestBody"]["content"][self.content_type]["schema"])

    @property
    def fields(self) -> dict[str, Any]:
        """The schemas of the body's fields; none if the body is no object."""
        properties: dict[str, Any] = self.body.get("properties", {})
        return properties


@lru_cache
def operations() -> dict[str, Operation]:
    return {
        description["operationId"]: Operation(description["operationId"], method.upper(), path, description)
        for path, item in app.openapi()["paths"].items()
        for method, description in item.items()
        if method in METHODS
    }


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """Follow references, merge `allOf`, and take the first of alternative schemas."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return resolve(app.openapi()["components"]["schemas"][name] | {k: v for k, v in schema.items() if k != "$ref"})
    if "allOf" in schema:
        return {key: value for part in schema["allOf"] for key, value in resolve(part).items()} | {
            key: value for key, value in schema.items() if key != "allOf"
        }
    for alternatives in ("anyOf", "oneOf"):
        if alternatives in schema:
            return {k: v for k, v in schema.items() if k != alternatives} | resolve(schema[alternatives][0])
    return schema


def json_types(schema: dict[str, Any]) -> set[str]:
    """Return the JSON types that a schema names; none if it takes any."""
    if "$ref" in schema:
        return json_types(app.openapi()["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    for alternatives in ("anyOf", "oneOf"):
        if alternatives in schema:
            named = [json_types(each) for each in schema[alternatives]]
            return set[str]().union(*named) if all(named) else set()
    types = schema.get("type", [])
    return {types} if isinstance(types, str) else {*types}


def valid_value(schema: dict[str, Any], name: str) -> Any:
    """Return a value that the schema accepts; `name` is for the message if there is none."""
    schema = resolve(schema)
    named = [*schema.get("examples", ()), *([schema["const"]] if "const" in schema else schema.get("enum", ()))]
    kind = schema.get("type", "string")
    make = {"integer": _valid_number, "number": _valid_number, "array": _valid_array, "object": _valid_object}
    simple = {"boolean": True, "null": None}
    if named:
        return named[0]
    return simple[kind] if kind in simple else make.get(kind, _valid_string)(schema, name)


def _valid_number(schema: dict[str, Any], _name: str) -> float:
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if schema["type"] == "number" and above is not None and below is not None:
        return float(above + below) / 2
    lowest = schema.get("minimum", 1 if above is None else above + 1)
    highest = schema.get("maximum", max(lowest, 1) if below is None else below - 1)
    step = schema.get("multipleOf", 1)
    number: float = min(max(lowest, 1), highest)
    return int(number) if schema["type"] == "integer" and step == 1 else -(-number // step) * step


def _valid_array(schema: dict[str, Any], name: str) -> list[Any]:
    items = schema.get("prefixItems") or [schema.get("items", {})] * max(1, schema.get("minItems", 0))
    return [valid_value(each, name) for each in items][: schema.get("maxItems")]


def _valid_object(schema: dict[str, Any], _name: str) -> dict[str, Any]:
    fields = schema.get("properties", {})
    return {name: valid_value(fields[name], name) for name in fields if name in schema.get("required", fields)}


def _valid_string(schema: dict[str, Any], name: str) -> str:
    if schema.get("format") in FORMATS:
        return FORMATS[schema["format"]]
    if "contentEncoding" in schema or schema.get("contentMediaType") == "application/json":
        return FORMATS["base64" if "contentEncoding" in schema else "json-string"]
    length = schema.get("minLength", 0), schema.get("maxLength", 2**31)
    for string in (*STRINGS, "a" * length[0]):
        if length[0] <= len(string) <= length[1] and re.search(schema.get("pattern", ""), string):
            return string
    pytest.fail(f"no valid value is known for {name!r}: add one to its Field, examples=[…], in app/schemas: {schema}")


def place(file: str, name: str) -> str:
    """Return `path:line` of the first line within the table `name` of a file of the tests."""
    path = Path(__file__).parent / file
    lines = path.read_text().splitlines()
    line = next(number for number, line in enumerate(lines, 1) if re.match(rf"{name}(: .*)? = \{{", line))
    return f"src/tests/{file}:{line + 1}"


class Rows:
    """Rows for the parameters of paths and the references of bodies, created through the API when they are needed.

    `known` has values of parameters: by name, or by the path up to them (`/api/v1/user/me/sessions/{id}`). A row is
    created with the first headers that may.
    """

    def __init__(self, client: httpx.AsyncClient, headers: Sequence[dict[str, str]], known: Mapping[str, Any]) -> None:
        self._client = client
        self._headers = headers
        self._known = known
        self.created: dict[str, dict[str, Any]] = {}
        """The answers of the operations that created rows, by their names."""

    async def path_values(self, operation: Operation) -> dict[str, str]:
        values = {}
        for match in re.finditer(r"\{(\w+)\}", operation.path):
            values[match[1]] = str(await self._path_value(operation, operation.path[: match.end()], match[1]))
        return values

    async def url(self, operation: Operation) -> str:
        return operation.path.format_map(await self.path_values(operation))

    async def body(self, operation: Operation) -> Any:
        """Return a body that the schema accepts, with references to rows that exist."""
        value = valid_value(operation.body, operation.name)
        if isinstance(value, dict):
            for name in value.keys() & REFERENCES.keys():
                value[name] = await self._reference(operation, name)
            value |= {name: v for name, v in VALUES.get(operation.name, {}).items() if name in operation.fields}
        return value

    async def request(self, operation: Operation) -> dict[str, Any]:
        """Return the options of a request that succeeds: body and required query parameters."""
        options: dict[str, Any] = {"params": valid_query(operation)}
        match operation.content_type:
            case None:
                pass
            case "application/json":
                options["json"] = await self.body(operation)
            case "multipart/form-data":
                options["files"] = {name: str(value).encode() for name, value in (await self.body(operation)).items()}
            case _:
                options["data"] = await self.body(operation)
        return options

    async def _path_value(self, operation: Operation, until: str, name: str) -> Any:
        values = VALUES.get(operation.name, {})
        for known in (values.get(name), self._known.get(until), self._known.get(name)):
            if known is not None:
                return known
        segment = until.rpartition("/")[0].rpartition("/")[2]
        creator = creator_of(segment)
        if creator is not None and creator.path != until:
            row = await self._row(creator)
            for key in (name, name.removeprefix(f"{creator.path.rpartition('/')[2]}_")):
                if key in row:
                    return row[key]
        line = f'"{operation.name}": {{"{name}": …}},'
        where = place("operations.py", "VALUES")
        pytest.fail(f"{operation}: no operation creates its {{{name}}}. Add to VALUES, at {where}:\n    {line}")

    async def _reference(self, operation: Operation, name: str) -> Any:
        table = REFERENCES[name]
        if name in self._known:
            return self._known[name]
        creator = creator_of(table)
        if name in VALUES.get(operation.name, {}) or creator is None:
            return VALUES.get(operation.name, {}).get(name, 1)
        return (await self._row(creator))["id"]

    async def _row(self, creator: Operation) -> dict[str, Any]:
        if creator.name not in self.created:
            response = httpx.Response(401)
            for headers in self._headers:
                options = await self.request(creator)
                response = await self._client.post(await self.url(creator), headers=headers, **options)
                if response.status_code not in {401, 403}:
                    break
            assert response.is_success, refused(creator, response)
            self.created[creator.name] = response.json()
        return self.created[creator.name]


REFERENCES: dict[str, str] = {
    key.parent.name: key.column.table.name for table in Base.metadata.tables.values() for key in table.foreign_keys
}
"""The table to which a foreign key leads, by the name of its column."""


def creator_of(segment: str) -> Operation | None:
    """Return the POST operation whose path ends with a segment, such as `post` (also for `posts` and `db_post`)."""
    segment = segment.removeprefix("db_")
    for name in (segment, segment.removesuffix("s"), f"{segment}s"):
        for each in operations().values():
            if each.method == "POST" and each.path.endswith(f"/{name}") and each.content_type is not None:
                return each
    return None


def valid_query(operation: Operation) -> dict[str, Any]:
    """Return the required parameters of the query."""
    values = VALUES.get(operation.name, {})
    required = [each for each in operation.parameters("query") if each.get("required")]
    return {each["name"]: values.get(each["name"], valid_value(each["schema"], each["name"])) for each in required}


def refused(operation: Operation, response: httpx.Response) -> str:
    """Return the message for a refused request that was made from the schema."""
    return (
        f"{operation} refuses the request made from its schema: {response.status_code} {response.text[:500]}\n"
        "Give the fields of the schema `examples=[…]` that it accepts, or name values. Add to VALUES, "
        f'at {place("operations.py", "VALUES")}:\n    "{operation.name}": {{"field": …}},'
    )
