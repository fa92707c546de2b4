"""GET routes may use a session, but write nothing: links and images of other sites do no harm."""

import re
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from fastapi import APIRouter, FastAPI, Request
from sqlalchemy import text

from app.api.dependencies import SessionDep
from app.core.cache import cache
from app.models.user import User
from tests.environment import SRC
from tests.fixtures import RunProgram, Statements, open_client
from tests.integration.own_app import build
from tests.repository import TOP, blocks_of

MAY_WRITE = set[str]()
"""Paths of GET routes that write nevertheless."""
WRITE = re.compile(r"(?<!FOR )(?<!KEY )\b(INSERT|UPDATE|DELETE|MERGE|TRUNCATE)\b")
MESSAGE = "these GET routes write, as would a link or image of another site: use POST, or add them to MAY_WRITE here"


def value_for(schema: dict[str, Any], components: dict[str, Any], user: User) -> Any:
    """Return a value that a parameter may have."""
    if "$ref" in schema:
        return value_for(components[schema["$ref"].rpartition("/")[2]], components, user)
    for alternatives in ("allOf", "anyOf", "oneOf"):
        if alternatives in schema:
            return value_for(schema[alternatives][0], components, user)
    for name in ("enum", "examples"):
        if name in schema:
            return schema[name][0]
    formats = {"uuid": str(user.uuid), "date": "2026-02-28", "date-time": "2026-02-28T12:30:15Z", "time": "12:30:15"}
    kinds = {"integer": 1, "number": 1, "boolean": "true"}
    return formats.get(schema.get("format", "")) or kinds.get(schema.get("type", ""), user.username)


async def writing_routes(
    app: FastAPI, client: httpx.AsyncClient, user: User, headers: dict[str, str], statements: Statements
) -> list[str]:
    """Send each GET request of the application; return the paths that have written."""
    writing = []
    document = app.openapi()
    components = document.get("components", {}).get("schemas", {})
    for path, operations in document["paths"].items():
        if "get" not in operations:
            continue
        parameters = [each for each in operations["get"].get("parameters", ()) if each["required"]]
        values = {each["name"]: value_for(each["schema"], components, user) for each in parameters}
        query = {each["name"]: values[each["name"]] for each in parameters if each["in"] == "query"}
        statements.clear()
        response = await client.get(path.format_map(values), params=query, headers=headers)
        assert response.status_code in {200, 404}, f"GET {path}: give its parameters `examples=[…]`: {response.text}"
        if any(WRITE.search(sql) for sql in statements.written):
            writing.append(path)
    return writing


async def test_reading_writes_nothing(
    app: FastAPI,
    client: httpx.AsyncClient,
    superuser: User,
    superuser_headers: dict[str, str],
    statements: Statements,
) -> None:
    found = await writing_routes(app, client, superuser, superuser_headers, statements)
    assert [path for path in found if path not in MAY_WRITE] == [], MESSAGE


class Size(StrEnum):
    SMALL = "small"


async def test_one_that_writes_is_found(user: User, statements: Statements) -> None:
    router = APIRouter()

    @router.get("/reads/{id}")
    async def reads(id: int, db: SessionDep) -> int:
        return len((await db.execute(text('SELECT id FROM "user" WHERE id = :id FOR NO KEY UPDATE'), {"id": id})).all())

    @router.get("/typed/{size}/{day}/{key}")
    async def typed(size: Size, day: date, key: UUID, price: Decimal, since: datetime, union: int | str) -> None: ...

    @router.get("/writes")
    async def writes(name: str, db: SessionDep) -> None:
        await db.execute(text('UPDATE "user" SET name = :name'), {"name": name})

    app = build(router)
    async with open_client(app) as client:
        assert await writing_routes(app, client, user, {}, statements) == ["/writes"]


async def test_cache_over_a_session(user: User, statements: Statements) -> None:
    router = APIRouter()

    @router.get("/name/{id}")
    @cache("name", resource_id_name="id")
    async def read_name(request: Request, id: int, db: SessionDep) -> str:
        return (await db.get_one(User, id)).name

    async with open_client(build(router)) as client:
        assert (await client.get(f"/name/{user.id}")).json() == user.name
        assert any("SELECT" in sql for sql in statements.written)
        statements.clear()
        assert (await client.get(f"/name/{user.id}")).json() == user.name
        assert statements.all == []


SERVE = """
import asyncio

import httpx

from app.api.dependencies import guard_docs
from app.api.exceptions import exception_handlers
from app.core.config import settings
from app.core.database import default_engines, transaction
from app.core.setup import create_application


async def serve() -> None:
    async with default_engines.write.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with transaction() as db:
        author = Author(name="Jane Austen")
        db.add(author)
        await db.flush()
        db.add_all([Novel(author_id=1, title="Emma"), Novel(author_id=1, title="Persuasion")])
        await db.refresh(author, ["novels"])
        print(*(novel.title for novel in author.novels))
    app = create_application(
        settings,
        lambda app, _: app.include_router(router),
        exception_handlers=exception_handlers,
        docs_guard=guard_docs,
    )
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        for id in (1, 2):
            print((await client.get(f"/author/{id}")).text)


asyncio.run(serve())
"""


async def test_relationships_as_in_the_readme(tmp_path: Path, run_program: RunProgram, database: str) -> None:
    (block,) = [each for each in blocks_of((TOP / "README.md").read_text()) if "relationship(" in each.text]
    (tmp_path / "authors.py").write_text(block.text + SERVE)
    environment = {"POSTGRES_DB": database, "PYTHONPATH": str(SRC)}
    program = await run_program("authors", environment=environment, cwd=tmp_path)
    assert await program.wait() == 0, program.output
    novels = '[{"id":1,"title":"Emma"},{"id":2,"title":"Persuasion"}]'
    assert f'{{"id":1,"name":"Jane Austen","novels":{novels}}}\n' in program.output
    assert '{"detail": "Author not found"}' in program.output
    assert "Emma Persuasion\n" in program.output
