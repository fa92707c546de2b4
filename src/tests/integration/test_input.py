"""Odd input for every operation in the OpenAPI document: each gets a 4xx with a reason, no 5xx, and no echo."""

import base64
import json
from collections.abc import Callable
from itertools import product
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest

from app.core.config import settings
from app.core.database import Base
from app.models.user import User
from tests.fixtures import RedisRoles
from tests.operations import JSON_TYPES, Operation, Rows, json_types, operations, refused, resolve, valid_query

FORM = "application/x-www-form-urlencoded"
# A part of every odd string; no 422 may contain it.
MARK = "3ch0"
NESTED = 30_000

ODD_STRINGS = (
    *(
        "",
        " ",
        MARK,
        f"{MARK}\x00",
        f"\x00{MARK}",
        f"{MARK}\ud800",
        f"\udfff{MARK}",
        f"{MARK}\r\nX: y",
        f"{MARK}\u202e",
    ),
    *(f"{MARK}é", f"{MARK}😀", f"' OR '{MARK}", f"{{{MARK}}}", f"%s{MARK}%00", "../../" + MARK, f"*{MARK}?["),
    *("-1", "1e400", "NaN", "null", "true", MARK * 30, MARK * 20_000),
)
ODD_NUMBERS = (
    0,
    -1,
    1.5,
    -0.0,
    1e308,
    2**31 - 1,
    2**31,
    2**63,
    -(2**63) - 1,
    2**64,
    10**300,
    float("nan"),
    float("inf"),
)
ODD_VALUES: tuple[Any, ...] = (
    *ODD_STRINGS,
    *ODD_NUMBERS,
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {MARK: MARK},
    {f"{MARK}\ud800": None},
    {"a": {"b": f"\udfff{MARK}"}},
    {"a": f"{MARK}\x00"},
    {"a": float("nan")},
    {"a": [10**400]},
    [MARK] * 1000,
    [f"{MARK}\ud800"],
    [[[MARK]]],
)

ODD_BODIES = (
    *(b"", b" ", b"\x00", b"null", b"true", b"0", b"[]", b'""', b"{}", b"{", b"}", b"[" * NESTED, b'{"a":' * NESTED),
    *(b"[" * NESTED + b"]" * NESTED, b'{"a":' * NESTED + b"1" + b"}" * NESTED),
    *(b"NaN", b"-Infinity", b"9" * 5_000, b"1e999999", b'{"a":1,}', b"{'a':1}", b'{"a":1}{"a":1}', b'{"\\ud800":1}'),
    *(
        b'{"\\u0000":1}',
        b'{"' + b"k" * 5_000 + b'":1}',
        b"\xff\xfe",
        b'{"name":"\xff\xfe"}',
        b"\xef\xbb\xbf{}",
        b"\x80" * 99,
    ),
    *('{"name":"x"}'.encode("utf-16"), '{"name":"x"}'.encode("utf-32-be"), b'{"name":"\xed\xa0\x80"}', b"a=b&%00=%ff"),
    b'{"id":1,"uuid":"x","is_superuser":true,"hashed_password":"x","is_deleted":true,"created_by_user_id":2}',
)
CONTENT_TYPES = (
    *("application/json", "application/json; charset=utf-16", "application/x-www-form-urlencoded", "text/plain", ""),
    *(
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/problem+json",
        "/",
        "\xff",
    ),
)
ODD_PATH_PARTS = (
    *(
        "%00",
        f"{MARK}%00",
        "%ff",
        "%ED%A0%80",
        "%C0%80",
        "%F0%9F%98%80",
        "%2F",
        "%2e%2e",
        "..",
        "%",
        "%zz",
        "%0d%0aX:y",
    ),
    *("-1", "0", "1", "1.0", "1e3", "0x1", "٣", "2147483647", "2147483648", "9223372036854775808", "9" * 5_000, "NaN"),
    *("null", "a" * 5_000, "A", "ab", "*", "a_b", "me", "~", ";", "{username}", "%7Busername%7D", "%252e", "a b"),
)
ODD_QUERY_VALUES = (
    *("", "%00", "%ff", "%ED%A0%80", MARK, "-1", "0", "1.5", "1e3", "101", "21474836", "21474837", "2147483648", "NaN"),
    *("9223372036854775808", "9" * 5_000, "null", "%5B%5D", "٣", "1&page=2", "1;page=2", "+1", "a" * 5_000),
)


def _token(header: bytes, claims: bytes) -> str:
    return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, claims, b"x" * 32)).decode()


ODD_TOKENS = (
    *("", " ", ".", "..", "a.b.c", "a" * 10_000, "\xff", "null", "a b", "=" * 100, "." * 1000),
    _token(b"[" * NESTED, b"{}"),
    _token(b'{"alg":"HS256"}', b"[" * NESTED),
    _token(b'{"alg":' + b"[" * NESTED, b'{"sub":1}'),
    _token(b'{"alg":"none"}', b'{"sub":"00000000-0000-0000-0000-000000000000"}'),
    _token(b'{"alg":["HS256"],"typ":null}', b'{"sub":[]}'),
    _token(b"\xff", b"\x00"),
    _token(b'{"alg":"HS256","kid":"\\ud800"}', b'{"exp":1e400}'),
)


def each_operation(condition: Callable[[Operation], bool]) -> pytest.MarkDecorator:
    """Run the test for each operation that fulfils the condition."""
    chosen = [operation for operation in operations().values() if condition(operation)]
    return pytest.mark.parametrize("operation", chosen, ids=str)


class Caller:
    """A client that sends requests as the superuser to existing rows, and records faulty answers."""

    def __init__(
        self, client: httpx.AsyncClient, headers: dict[str, str], redis: RedisRoles, operation: Operation
    ) -> None:
        self._client = client
        self._headers = headers
        self._redis = redis
        self._operation = operation
        self.values: dict[str, str] = {}
        self.valid: Any = {}
        """A body that the schema accepts."""
        self.wrong: list[str] = []
        self.statuses: set[int] = set()

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the valid body; none if it is no object."""
        return self.valid if isinstance(self.valid, dict) else {}

    @property
    def body(self) -> dict[str, Any]:
        """The valid body, as options of a request."""
        match self._operation.content_type:
            case None:
                return {}
            case "application/json":
                return {"json": self.valid}
            case "multipart/form-data":
                return {"files": {name: str(value).encode() for name, value in self.valid.items()}}
        return {"data": self.valid}

    def url(self, **values: str) -> str:
        path = self._operation.path
        for name, value in {**self.values, **values}.items():
            path = path.replace(f"{{{name}}}", value)
        query = urlencode(valid_query(self._operation), doseq=True)
        return f"{path}?{query}" if query else path

    async def send(self, what: str, url: str, **options: Any) -> httpx.Response:
        """Send a request; `what` names it in the record of faults."""
        await self._redis.rate_limit.flushdb()
        headers = httpx.Headers(self._headers)
        headers.update(options.pop("headers", {}))
        response = await self._client.request(self._operation.method, url, headers=headers, **options)
        self.statuses.add(response.status_code)
        if response.status_code >= 500:
            self.wrong.append(f"{what}: {response.status_code} {response.text[:200]}")
        if response.status_code >= 400 and "detail" not in response.json():
            self.wrong.append(f"{what}: no detail: {response.text[:200]}")
        if response.status_code == 422 and MARK in response.text:
            self.wrong.append(f"{what}: echoed: {response.text[:400]}")
        return response


def known_of(superuser: User) -> dict[str, Any]:
    return {"username": superuser.username, "task_id": "0" * 32, "/api/v1/user/me/sessions/{id}": 1}


@pytest.fixture
async def caller(
    client: httpx.AsyncClient,
    superuser: User,
    superuser_headers: dict[str, str],
    redis: RedisRoles,
    operation: Operation,
) -> Caller:
    rows = Rows(client, [superuser_headers], known_of(superuser))
    caller = Caller(client, superuser_headers, redis, operation)
    caller.values = await rows.path_values(operation)
    if operation.content_type is not None:
        caller.valid = await rows.body(operation)
    return caller


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@each_operation(lambda operation: operation.content_type is not None)
class TestBodies:
    async def test_unchanged_bodies_are_valid(self, caller: Caller, operation: Operation) -> None:
        response = await caller.send("valid", caller.url(), **caller.body)
        # Valid input can still have a wrong password, a wrong token or a name that is taken.
        assert response.is_success or response.status_code in {401, 403, 409}, refused(operation, response)

    async def test_odd_values_in_each_field(self, caller: Caller, operation: Operation) -> None:
        is_form = operation.content_type == FORM
        names = dict.fromkeys([*caller.fields, *operation.fields, "surprise"])
        for name, odd in product(names, ODD_VALUES):
            what = f"{name}={str(odd)[:40]!r}"
            if operation.content_type == "application/json":
                body = as_json({**caller.fields, name: odd})
                await caller.send(what, caller.url(), content=body, headers={"Content-Type": "application/json"})
            elif is_form and isinstance(odd, str):
                pairs = {**caller.fields, name: odd}.items()
                form = "&".join(f"{key}={quote(str(value).encode(errors='surrogatepass'))}" for key, value in pairs)
                content_type = {"Content-Type": FORM}
                await caller.send(what, caller.url(), content=form.encode(), headers=content_type)
        assert caller.wrong == []
        assert caller.statuses & {401, 422} or operation.content_type not in {"application/json", FORM}

    async def test_odd_keys_and_missing_ones(self, caller: Caller, operation: Operation) -> None:
        as_it_should = {"headers": {"Content-Type": "application/json"}}
        for odd in ("", "\x00", "\ud800", "k" * 10_000, "__proto__", "é", "__class__"):
            body = as_json({**caller.fields, odd: MARK})
            await caller.send(f"key {odd[:40]!r}", caller.url(), content=body, **as_it_should)
        for name in caller.fields:
            body = as_json({key: value for key, value in caller.fields.items() if key != name})
            await caller.send(f"without {name}", caller.url(), content=body, **as_it_should)
        assert caller.wrong == []

    async def test_odd_bodies_of_odd_types(self, caller: Caller, operation: Operation) -> None:
        for body, content_type in product(ODD_BODIES, CONTENT_TYPES):
            headers = {"Content-Type": content_type.encode("latin-1")} if content_type else {}
            what = f"{content_type}: {body[:40]!r}"
            await caller.send(what, caller.url(), content=body, headers=headers)
        assert caller.wrong == []

    async def test_more_than_the_limit(self, caller: Caller, operation: Operation) -> None:
        for content_type in CONTENT_TYPES[:3]:
            body = b'{"name":"' + b"x" * settings.MAX_BODY_BYTES + b'"}'
            headers = {"Content-Type": content_type}
            response = await caller.send(content_type, caller.url(), content=body, headers=headers)
            assert response.status_code == 413
        assert caller.wrong == []


@each_operation(lambda operation: operation.content_type == "application/json")
async def test_fields_take_the_json_types_that_the_document_names(caller: Caller, operation: Operation) -> None:
    accepted = []
    for name, schema in operation.fields.items():
        types = json_types(schema)
        for odd in (True, False, 5, "5", "", [5], {"5": 5}, None):
            if types and not types & {*JSON_TYPES[type(odd)]}:
                response = await caller.send(name, caller.url(), json={**caller.fields, name: odd})
                places = [item["loc"][:2] for item in response.json()["detail"]] if response.status_code == 422 else []
                if places != [["body", name]] * max(1, len(places)):
                    accepted.append(f"{name}={odd!r}: {response.status_code} {response.text[:100]}")
    assert accepted == [], f"{operation}: derive the body from `InputSchema` of app.core.models"
    assert caller.wrong == []


@each_operation(lambda operation: operation.method == "PATCH" and operation.content_type == "application/json")
class TestPatches:
    async def test_unknown_fields_are_refused(self, caller: Caller, operation: Operation) -> None:
        columns = {column.name for table in Base.metadata.tables.values() for column in table.columns}
        for name in sorted({"surprise", "hashed_password", *columns} - operation.fields.keys()):
            response = await caller.send(name, caller.url(), json={**caller.fields, name: MARK})
            assert response.status_code == 422, f"{name}: derive the body from `InputSchema` of app.core.models"
            assert response.json()["detail"][0]["loc"] == ["body", name]
            assert response.json()["detail"][0]["type"] == "extra_forbidden"
        assert caller.wrong == []

    async def test_null_is_refused_where_the_schema_says_so(self, caller: Caller, operation: Operation) -> None:
        required = {name: caller.fields[name] for name in operation.body.get("required", ())}
        for name, schema in operation.fields.items():
            types = json_types(schema)
            allowed = not types or "null" in types
            response = await caller.send(name, caller.url(), json={**required, name: None})
            assert response.status_code == (operation.success if allowed else 422), (name, response.text)
        assert caller.wrong == []


@each_operation(lambda operation: bool(operation.parameters("path")))
class TestPaths:
    async def test_odd_values_in_the_path(self, caller: Caller, operation: Operation) -> None:
        names = [parameter["name"] for parameter in operation.parameters("path")]
        for name, odd in product(names, ODD_PATH_PARTS):
            await caller.send(f"{name}={odd[:40]!r}", caller.url(**{name: odd}), **caller.body)
        assert caller.wrong == []


@each_operation(lambda operation: operation.method == "GET" and bool(operation.parameters("path")))
async def test_get_answers_what_the_post_has_answered(
    client: httpx.AsyncClient, superuser: User, superuser_headers: dict[str, str], operation: Operation
) -> None:
    """A POST answers what the database holds: `9.90` and a moment in UTC, not what the body said."""
    rows = Rows(client, [superuser_headers], known_of(superuser))
    response = await client.get(await rows.url(operation), headers=superuser_headers)
    for name, row in rows.created.items():
        if operations()[name].answer == operation.answer:
            assert response.json() == row


@each_operation(lambda operation: bool(operation.parameters("query")))
class TestQueries:
    async def test_odd_values_in_the_query(self, caller: Caller, operation: Operation) -> None:
        names = [parameter["name"] for parameter in operation.parameters("query")]
        path = caller.url().partition("?")[0]
        for name, odd in product([*names, "surprise"], ODD_QUERY_VALUES):
            await caller.send(f"{name}={odd[:40]!r}", f"{path}?{name}={odd}")
        for odd in ("", "&&&", "=", "%", "%00=%00", "page[]=1", "a" * 20_000):
            await caller.send(f"?{odd[:40]}", f"{path}?{odd}")
        assert caller.wrong == []

    async def test_numbers_have_bounds(self, caller: Caller, operation: Operation) -> None:
        """Only those of PostgreSQL's types, if the document names no others: a larger number is refused, too."""
        for parameter in operation.parameters("query"):
            schema, name = resolve(parameter["schema"]), parameter["name"]
            cases = [
                (schema.get("minimum"), True),
                (schema.get("maximum"), True),
                (schema.get("minimum", 0) - 1, "minimum" not in schema),
                (schema.get("maximum", 0) + 1, "maximum" not in schema),
            ]
            for value, accepted in cases:
                if {"minimum", "maximum"} & schema.keys() and value is not None:
                    url = f"{caller.url().partition('?')[0]}?{urlencode({**valid_query(operation), name: value})}"
                    response = await caller.send(url, url, **caller.body)
                    assert response.status_code == (operation.success if accepted else 422), (url, response.text)
        assert caller.wrong == []


@each_operation(lambda _: True)
async def test_odd_headers(caller: Caller, operation: Operation) -> None:
    """Malformed tokens get a 401 wherever a token is read; other odd headers have no effect."""
    url = caller.url()
    for token in ODD_TOKENS:
        headers = {"Authorization": b"Bearer " + token.encode("latin-1")}
        response = await caller.send(f"token {token[:40]!r}", url, headers=headers, **caller.body)
        # FastAPI treats a blank token as a missing one.
        if "security" in operation.description and token.strip():
            assert response.status_code == 401, token[:40]
            assert response.headers["WWW-Authenticate"].startswith("Bearer")
    for scheme in ("Bearer", "Basic x", "Basic Og==", "Digest", "\xff", "bearer bearer bearer"):
        headers = {"Authorization": scheme.encode("latin-1")}
        await caller.send(f"scheme {scheme!r}", url, headers=headers, **caller.body)
    others = {
        "X-Request-ID": MARK * 100,
        "Cookie": "\xff",
        "X-Forwarded-For": "[",
        "Range": "bytes=-1",
        "Accept": "\xff",
    }
    for name, value in others.items():
        await caller.send(name, url, headers={name: value.encode("latin-1")}, **caller.body)
    assert caller.wrong == []
