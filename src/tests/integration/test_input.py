"""Odd input for every operation in the OpenAPI document: each gets a 4xx with a reason, no 5xx, and no echo."""

import base64
import json
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from app.core.config import settings
from app.main import app
from app.models.post import Post
from app.models.user import User
from tests.factories import make_post, make_rate_limit, make_tier
from tests.fixtures import RedisRoles

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
    [MARK] * 1000,
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


def _operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in app.openapi()["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def _takes(operation: dict[str, Any], place: str) -> bool:
    return any(parameter["in"] == place for parameter in operation.get("parameters", ()))


def operations(condition: Callable[[str, dict[str, Any]], bool]) -> pytest.MarkDecorator:
    """Run the test for each operation (method, path, description) that fulfils the condition."""
    cases = [
        pytest.param(method, path, operation, id=f"{method} {path}")
        for method, path, operation in _operations()
        if condition(method, operation)
    ]
    return pytest.mark.parametrize(("method", "path", "operation"), cases)


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    """Follow references, and take the first of alternative schemas."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return resolve(app.openapi()["components"]["schemas"][name])
    return resolve(schema["anyOf"][0]) if "anyOf" in schema else schema


def valid_value(schema: dict[str, Any]) -> Any:
    schema = resolve(schema)
    by_type = {"integer": schema.get("minimum", 1), "string": "something", "boolean": True, "null": None}
    return schema["examples"][0] if schema.get("examples") else by_type[schema["type"]]


def valid_body(operation: dict[str, Any]) -> dict[str, Any]:
    """Return a body that the operation's schema accepts."""
    (content,) = operation["requestBody"]["content"].values()
    schema = resolve(content["schema"])
    return {
        name: valid_value(value)
        for name, value in schema["properties"].items()
        if name in schema.get("required", schema["properties"])
    }


class Caller:
    """A client that sends requests as the superuser to existing rows, and records faulty answers."""

    def __init__(
        self, client: httpx.AsyncClient, headers: dict[str, str], values: dict[str, str], redis: RedisRoles
    ) -> None:
        self._client = client
        self._headers = headers
        self._values = values
        self._redis = redis
        self.wrong: list[str] = []
        self.statuses: set[int] = set()

    def url(self, path: str, **values: str) -> str:
        for name, value in {**self._values, **values}.items():
            path = path.replace(f"{{{name}}}", value)
        return path

    async def send(self, what: str, method: str, url: str, **options: Any) -> httpx.Response:
        """Send a request; `what` names it in the record of faults."""
        await self._redis.rate_limit.flushdb()
        headers = httpx.Headers(self._headers)
        headers.update(options.pop("headers", {}))
        response = await self._client.request(method, url, headers=headers, **options)
        self.statuses.add(response.status_code)
        if response.status_code >= 500:
            self.wrong.append(f"{what}: {response.status_code} {response.text[:200]}")
        if response.status_code >= 400 and "detail" not in response.json():
            self.wrong.append(f"{what}: no detail: {response.text[:200]}")
        if response.status_code == 422 and MARK in response.text:
            self.wrong.append(f"{what}: echoed: {response.text[:400]}")
        return response


@pytest.fixture
async def post(superuser: User) -> Post:
    return await make_post(superuser)


@pytest.fixture
async def caller(
    client: httpx.AsyncClient, superuser: User, superuser_headers: dict[str, str], post: Post, redis: RedisRoles
) -> Caller:
    tier = await make_tier("free")
    rate_limit = await make_rate_limit(tier, path="some_path")
    ids = {"id": str(post.id), "task_id": "0" * 32}
    names = {"username": superuser.username, "name": tier.name, "tier_name": tier.name}
    assert post.id == rate_limit.id
    return Caller(client, superuser_headers, {**ids, **names}, redis)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@operations(lambda _, operation: "requestBody" in operation)
class TestBodies:
    async def test_unchanged_bodies_are_valid(
        self, caller: Caller, method: str, path: str, operation: dict[str, Any]
    ) -> None:
        (content_type,) = operation["requestBody"]["content"]
        body = {"json" if content_type == "application/json" else "data": valid_body(operation)}
        response = await caller.send("valid", method, caller.url(path), **body)
        # Valid input can still have a wrong password, a wrong token or a name that is taken.
        assert response.is_success or response.status_code in {401, 403, 409}

    async def test_odd_values_in_each_field(
        self, caller: Caller, method: str, path: str, operation: dict[str, Any]
    ) -> None:
        valid = valid_body(operation)
        is_form = "application/x-www-form-urlencoded" in operation["requestBody"]["content"]
        url = caller.url(path)
        for name, odd in product([*valid, "surprise"], ODD_VALUES):
            what = f"{name}={str(odd)[:40]!r}"
            if not is_form:
                body = as_json({**valid, name: odd})
                await caller.send(what, method, url, content=body, headers={"Content-Type": "application/json"})
            elif isinstance(odd, str):
                pairs = {**valid, name: odd}.items()
                form = "&".join(f"{key}={quote(str(value).encode(errors='surrogatepass'))}" for key, value in pairs)
                content_type = "application/x-www-form-urlencoded"
                await caller.send(what, method, url, content=form.encode(), headers={"Content-Type": content_type})
        assert caller.wrong == []
        assert caller.statuses & {401, 422}

    async def test_numbers_are_not_made_of_other_types(
        self, caller: Caller, method: str, path: str, operation: dict[str, Any]
    ) -> None:
        valid = valid_body(operation)
        for name in [name for name, value in valid.items() if isinstance(value, int)]:
            for odd in (True, False, "5", "", [5]):
                response = await caller.send(name, method, caller.url(path), json={**valid, name: odd})
                assert response.status_code == 422, (name, odd)
                assert [item["loc"] for item in response.json()["detail"]] == [["body", name]]
        assert caller.wrong == []

    async def test_odd_keys_and_missing_ones(
        self, caller: Caller, method: str, path: str, operation: dict[str, Any]
    ) -> None:
        valid = valid_body(operation)
        as_it_should = {"headers": {"Content-Type": "application/json"}}
        for odd in ("", "\x00", "\ud800", "k" * 10_000, "__proto__", "é", "__class__"):
            body = as_json({**valid, odd: MARK})
            await caller.send(f"key {odd[:40]!r}", method, caller.url(path), content=body, **as_it_should)
        for name in valid:
            body = as_json({key: value for key, value in valid.items() if key != name})
            await caller.send(f"without {name}", method, caller.url(path), content=body, **as_it_should)
        assert caller.wrong == []

    async def test_odd_bodies_of_odd_types(
        self, caller: Caller, method: str, path: str, operation: dict[str, Any]
    ) -> None:
        for body, content_type in product(ODD_BODIES, CONTENT_TYPES):
            headers = {"Content-Type": content_type.encode("latin-1")} if content_type else {}
            what = f"{content_type}: {body[:40]!r}"
            await caller.send(what, method, caller.url(path), content=body, headers=headers)
        assert caller.wrong == []

    async def test_more_than_the_limit(self, caller: Caller, method: str, path: str, operation: dict[str, Any]) -> None:
        for content_type in CONTENT_TYPES[:3]:
            body = b'{"name":"' + b"x" * settings.MAX_BODY_BYTES + b'"}'
            headers = {"Content-Type": content_type}
            response = await caller.send(content_type, method, caller.url(path), content=body, headers=headers)
            assert response.status_code == 413
        assert caller.wrong == []


@operations(lambda method, _: method == "PATCH")
class TestPatches:
    async def test_unknown_fields_are_refused(
        self, caller: Caller, method: str, path: str, operation: dict[str, Any]
    ) -> None:
        valid = valid_body(operation)
        for name in (
            "surprise",
            "id",
            "uuid",
            "is_superuser",
            "hashed_password",
            "updated_at",
            "is_deleted",
            "created_by_user_id",
        ):
            response = await caller.send(name, method, caller.url(path), json={**valid, name: MARK})
            assert response.status_code == 422, name
            assert response.json()["detail"][0]["loc"] == ["body", name]
            assert response.json()["detail"][0]["type"] == "extra_forbidden"
        assert caller.wrong == []

    async def test_null_is_refused_where_the_schema_says_so(
        self, caller: Caller, method: str, path: str, operation: dict[str, Any]
    ) -> None:
        properties = resolve(operation["requestBody"]["content"]["application/json"]["schema"])["properties"]
        for name, schema in properties.items():
            allowed = {"type": "null"} in schema.get("anyOf", [])
            response = await caller.send(name, method, caller.url(path), json={name: None})
            assert response.status_code == (200 if allowed else 422), name
        assert caller.wrong == []


@operations(lambda _, operation: _takes(operation, "path"))
class TestPaths:
    async def test_odd_values_in_the_path(
        self, caller: Caller, method: str, path: str, operation: dict[str, Any]
    ) -> None:
        names = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"]
        body = {"json": valid_body(operation)} if "requestBody" in operation else {}
        for name, odd in product(names, ODD_PATH_PARTS):
            await caller.send(f"{name}={odd[:40]!r}", method, caller.url(path, **{name: odd}), **body)
        assert caller.wrong == []


@operations(lambda _, operation: _takes(operation, "query"))
class TestQueries:
    async def test_odd_values_in_the_query(
        self, caller: Caller, method: str, path: str, operation: dict[str, Any]
    ) -> None:
        names = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"]
        for name, odd in product([*names, "surprise"], ODD_QUERY_VALUES):
            await caller.send(f"{name}={odd[:40]!r}", method, f"{caller.url(path)}?{name}={odd}")
        for odd in ("", "&&&", "=", "%", "%00=%00", "page[]=1", "a" * 20_000):
            await caller.send(f"?{odd[:40]}", method, f"{caller.url(path)}?{odd}")
        assert caller.wrong == []

    async def test_pages_have_bounds(self, caller: Caller, method: str, path: str, operation: dict[str, Any]) -> None:
        for parameter in operation["parameters"]:
            schema = parameter["schema"]
            for value, accepted in [
                (schema.get("minimum"), True),
                (schema.get("maximum"), True),
                (schema.get("minimum", 0) - 1, False),
                (schema.get("maximum", 0) + 1, False),
            ]:
                if "minimum" in schema and parameter["in"] == "query":
                    url = f"{caller.url(path)}?{parameter['name']}={value}"
                    response = await caller.send(url, method, url)
                    assert response.status_code == (200 if accepted else 422), url
        assert caller.wrong == []


@operations(lambda *_: True)
async def test_odd_headers(caller: Caller, method: str, path: str, operation: dict[str, Any]) -> None:
    """Malformed tokens get a 401 wherever a token is read; other odd headers have no effect."""
    body = {"json": valid_body(operation)} if "requestBody" in operation else {}
    url = caller.url(path) + ("?message=test" if path.endswith("/tasks/task") else "")
    for token in ODD_TOKENS:
        headers = {"Authorization": b"Bearer " + token.encode("latin-1")}
        response = await caller.send(f"token {token[:40]!r}", method, url, headers=headers, **body)
        # FastAPI treats a blank token as a missing one.
        if "security" in operation and token.strip():
            assert response.status_code == 401, token[:40]
            assert response.headers["WWW-Authenticate"].startswith("Bearer")
    for scheme in ("Bearer", "Basic x", "Basic Og==", "Digest", "\xff", "bearer bearer bearer"):
        await caller.send(
            f"scheme {scheme!r}", method, url, headers={"Authorization": scheme.encode("latin-1")}, **body
        )
    others = {
        "X-Request-ID": MARK * 100,
        "Cookie": "\xff",
        "X-Forwarded-For": "[",
        "Range": "bytes=-1",
        "Accept": "\xff",
    }
    for name, value in others.items():
        await caller.send(name, method, url, headers={name: value.encode("latin-1")}, **body)
    assert caller.wrong == []
