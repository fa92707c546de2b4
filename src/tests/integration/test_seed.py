"""The documentation of the original project, to the letter: its blocks are pasted into a clone, its commands are run.

The blocks stand here as they were printed, with slips corrected (misspelt imports, missing awaits and quotes) and their
`...` filled in. Without `poetry run`, which changes nothing in an environment that is active.
"""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends
from fastapi.routing import iter_route_contexts
from sqlalchemy import inspect
from sqlalchemy.ext.asyncio import AsyncSession

from app.api import router as the_router
from app.api import v1
from app.api.exceptions import ensure_found
from app.core.config import settings
from app.core.database import async_get_db
from app.core.models import TokenData
from app.core.setup import create_application
from app.crud.crud_users import crud_users
from app.models.post import Post
from app.models.rate_limit import RateLimit
from app.models.tier import Tier
from app.models.user import User
from app.schemas.post import Post as PostSchema
from app.schemas.rate_limit import RateLimit as RateLimitSchema
from app.schemas.tier import Tier as TierSchema
from app.schemas.user import User as UserSchema
from app.schemas.user import UserRead
from scripts.servers import free_port
from tests.environment import PEOPLE, connected
from tests.fixtures import Program, RedisRoles, RunningServer, RunProgram, RunServer, RunWorker, open_client
from tests.repository import clone_to

API = "/api/v1"

# -------- 3.1 Environment variables --------

ENV = """\
# ------------- app settings -------------
APP_NAME="Your app name here"
APP_DESCRIPTION="Your app description here"
APP_VERSION="0.1"
CONTACT_NAME="Your name"
CONTACT_EMAIL="Your email"
LICENSE_NAME="The license you picked"

# ------------- database -------------
POSTGRES_USER="your_postgres_user"
POSTGRES_PASSWORD="your_password"
POSTGRES_SERVER="your_server" # default localhost
POSTGRES_PORT=5432
POSTGRES_DB="your_db"

# ------------- crypt -------------
SECRET_KEY= # result of openssl rand -hex 32
ALGORITHM= # pick an algorithm, default HS256
ACCESS_TOKEN_EXPIRE_MINUTES= # minutes until token expires, default 30

# ------------- admin -------------
ADMIN_NAME="your_name"
ADMIN_EMAIL="your_email"
ADMIN_USERNAME="your_username"
ADMIN_PASSWORD="your_password"

# ------------- redis -------------
REDIS_CACHE_HOST="your_host" # default "localhost", if using docker compose you should use "redis"
REDIS_CACHE_PORT=6379

# ------------- client-side cache -------------
CLIENT_CACHE_MAX_AGE=60

# ------------- redis queue -------------
REDIS_QUEUE_HOST="your_host" # default "localhost", if using docker compose you should use "redis"
REDIS_QUEUE_PORT=6379

# ------------- first tier -------------
TIER_NAME="free"

# ------------- redis rate limit -------------
REDIS_RATE_LIMIT_HOST="localhost"   # default="localhost"
REDIS_RATE_LIMIT_PORT=6379          # default=6379


# ------------- default rate limit settings -------------
DEFAULT_RATE_LIMIT_LIMIT=10         # default=10
DEFAULT_RATE_LIMIT_PERIOD=3600      # default=3600

# ------------- test -------------
TEST_NAME="Tester User"
TEST_EMAIL="test@tester.com"
TEST_USERNAME="testeruser"
TEST_PASSWORD="Str1ng$t"

# ------------- environment -------------
ENVIRONMENT="local"
"""
# What Docker Compose passes on instead, where it reads these lines differently.
COMPOSE = {
    "SECRET_KEY": "# result of openssl rand -hex 32",
    "ALGORITHM": "# pick an algorithm, default HS256",
    "ACCESS_TOKEN_EXPIRE_MINUTES": "# minutes until token expires, default 30",
    "TEST_PASSWORD": "Str1ng",
    "ADMIN_EMAIL": "your_email",
    "ADMIN_USERNAME": "your_username",
}
ADMIN = {"ADMIN_EMAIL": "me@example.com", "ADMIN_USERNAME": "boss"}

# -------- 5.3 SQLAlchemy models --------

MODEL = """\
from datetime import datetime

from sqlalchemy import String, DateTime
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.core.database import Base

class Entity(Base):
  __tablename__ = "entity"

  id: Mapped[int] = mapped_column(
    "id", autoincrement=True, nullable=False, unique=True, primary_key=True, init=False
  )
  name: Mapped[str] = mapped_column(String(30))
  updated_at: Mapped[datetime | None] = mapped_column(default=None)
  deleted_at: Mapped[datetime | None] = mapped_column(default=None)
  is_deleted: Mapped[bool] = mapped_column(default=False, index=True)
"""

# -------- 5.4 Pydantic schemas --------

SCHEMAS = """\
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, EmailStr, Field, HttpUrl, ConfigDict

class EntityBase(BaseModel):
  name: Annotated[
    str,
    Field(min_length=2, max_length=30, examples=["Entity Name"])
  ]

class Entity(EntityBase):
  ...

class EntityRead(EntityBase):
  id: int

class EntityCreate(EntityBase):
  ...

class EntityCreateInternal(EntityCreate):
  ...

class EntityUpdate(BaseModel):
  name: str

class EntityUpdateInternal(BaseModel):
  ...

class EntityDelete(BaseModel):
    model_config = ConfigDict(extra='forbid')

    is_deleted: bool
    deleted_at: datetime
"""

# -------- 5.6 CRUD --------

CRUD = """\
from app.crud.crud_base import CRUDBase
from app.models.entity import Entity
from app.schemas.entity import EntityCreateInternal, EntityUpdate, EntityUpdateInternal, EntityDelete

CRUDEntity = CRUDBase[Entity, EntityCreateInternal, EntityUpdate, EntityUpdateInternal, EntityDelete]
crud_entities = CRUDEntity(Entity)
"""

CRUD_OF_USERS = """\
from app.crud.crud_base import CRUDBase
from app.models.user import User
from app.schemas.user import UserCreateInternal, UserUpdate, UserUpdateInternal, UserDelete

CRUDUser = CRUDBase[User, UserCreateInternal, UserUpdate, UserUpdateInternal, UserDelete]
crud_users = CRUDUser(User)
"""

USE_OF_CRUD = """\
import asyncio, json

from app.core.database import transaction
from app.crud.crud_entities import crud_entities
from app.crud.users_as_printed import crud_users
from app.schemas.entity import EntityCreateInternal, EntityRead, EntityUpdate
from app.schemas.user import UserCreateInternal, UserRead

async def main():
    found = {}
    async with transaction() as db:
        for number in range(1, 6):
            await crud_users.create(db=db, object=UserCreateInternal(
              name="User Userson",
              username=f"userson{number}",
              email=f"user.userson{number}@example.com",
              profile_image_url="https://profileimageurl.com",
              hashed_password="..."
            ))
        user_internal = UserCreateInternal(
          name="user",
          username="myusername",
          email="user@example.com",
          hashed_password="..."
        )
        await crud_users.create(db=db, object=user_internal)
    async with transaction() as db:
        # Here I'm getting the first user with email == user.email (email is unique in this case)
        found["get"] = await crud_users.get(db=db, email="user@example.com")
        # Here I'm getting at most 100 users with the name 'User Userson' except for the first 3
        found["get_multi"] = await crud_users.get_multi(
          db=db,
          offset=3,
          limit=100,
          name="User Userson"
        )
        # It returns True if there's at least one or False if there is none
        found["exists"] = await crud_users.exists(db=db, email="user@example.com")
        found["exists not"] = await crud_users.exists(db=db, email="nobody@example.com")
        found["count"] = await crud_users.count(
          db=db,
          name="User Userson"
        )
        await crud_users.update(db=db, object={"name": "Updated Name"}, username="myusername")
        found["updated"] = await crud_users.get(db=db, username="myusername")
        found["selected"] = await crud_users.get(db=db, username="myusername", schema_to_select=UserRead)
        # Here I'll just change is_deleted to True
        await crud_users.delete(db=db, username="myusername")
        found["deleted"] = await crud_users.get(db=db, username="myusername")
        # Here I actually delete it from the database
        await crud_users.db_delete(db=db, username="myusername")
        found["gone"] = await crud_users.get(db=db, username="myusername")
    async with transaction() as db:
        for number in range(1, 13):
            await crud_entities.create(db=db, object=EntityCreateInternal(name=f"entity {number}"))
        await crud_entities.update(db=db, object=EntityUpdate(name="changed"), id=2)
        await crud_entities.delete(db=db, id=12)
        found["entities"] = [await crud_entities.get(db=db, id=number) for number in (2, 12)]
    print(json.dumps(found, default=str))

asyncio.run(main())
"""

# -------- 5.7 Routes, 5.7.1 Paginated responses --------

ROUTES = """\
from typing import Annotated

import fastapi
from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession

from app.crud.crud_entities import crud_entities
from app.schemas.entity import EntityRead
from app.core.database import async_get_db
from app.api.paginated import (
  PaginatedListResponse, # What you'll use as a response_model to validate
  paginated_response,    # Creates a paginated response based on the parameters
  compute_offset         # Calculate the offset for pagination ((page - 1) * items_per_page)
)

router = fastapi.APIRouter(tags=["entities"])

@router.get("/entities/{id}", response_model=EntityRead)
async def read_entities(
  request: Request,
  id: int,
  db: Annotated[AsyncSession, Depends(async_get_db)]
):
  entity = await crud_entities.get(db=db, id=id)

  return entity

@router.get("/entities", response_model=PaginatedListResponse[EntityRead])
async def read_entities(
    request: Request,
    db: Annotated[AsyncSession, Depends(async_get_db)],
    page: int = 1,
    items_per_page: int = 10
):
    entities_data = await crud_entities.get_multi(
        db=db,
        offset=compute_offset(page, items_per_page),
        limit=items_per_page,
        schema_to_select=EntityRead,
        is_deleted=False
    )

    return paginated_response(
        crud_data=entities_data,
        page=page,
        items_per_page=items_per_page
    )
"""

ROUTER = """
from app.api.v1.entities import router as entity_router
from app.api.v1.exact_keys import router as exact_keys_router
from app.api.v1.patterns import router as patterns_router

router.include_router(entity_router)
router.include_router(exact_keys_router)
router.include_router(patterns_router)
"""

# -------- 5.8 Caching, in main.py --------

MAIN = """\
from fastapi import Request

from app.api import router
from app.core.cache import cache
from app.core.config import settings
from app.core.setup import create_application

app = create_application(router=router, settings=settings)

@app.get("/sample/{my_id}")
@cache(
    key_prefix="sample_data",
    expiration=3600,
    resource_id_name="my_id"
)
async def sample_endpoint(request: Request, my_id: int):
    # Endpoint logic here
    return {"data": "my_data"}

@app.get("/inferred/{my_id}")
@cache(
    key_prefix="inferred_data",
    resource_id_type=int
)
async def sample_endpoint(request: Request, my_id: int):
    # Endpoint logic here
    return {"data": "my_data"}
"""

# -------- 5.9 More advanced caching --------

IMPORTS = """\
from typing import Annotated, List

from fastapi import APIRouter, Depends, HTTPException, Request
from sqlalchemy.ext.asyncio import AsyncSession

from app.api.dependencies import get_current_user
from app.api.paginated import PaginatedListResponse, compute_offset, paginated_response
from app.core.cache import cache
from app.core.database import async_get_db
from app.crud.crud_posts import crud_posts
from app.crud.crud_users import crud_users
from app.schemas.post import PostRead, PostUpdate
from app.schemas.user import UserRead
"""

EXACT_KEYS = """
router = APIRouter(prefix="/exact")

# The cache here will be saved as "{username}_posts:{username}":
@router.get("/{username}/posts", response_model=List[PostRead])
@cache(key_prefix="{username}_posts", resource_id_name="username")
async def read_posts(
    request: Request,
    username: str,
    db: Annotated[AsyncSession, Depends(async_get_db)]
):
    return (await crud_posts.get_multi(db=db, schema_to_select=PostRead, is_deleted=False))["data"]

# Invalidating cache for the former endpoint by just passing the key_prefix and id as a dictionary:
@router.delete("/{username}/post/{id}")
@cache(
    "{username}_post_cache",
    resource_id_name="id",
    to_invalidate_extra={"{username}_posts": "{username}"} # also invalidate "{username}_posts:{username}" cache
)
async def erase_post(
    request: Request,
    username: str,
    id: int,
    current_user: Annotated[UserRead, Depends(get_current_user)],
    db: Annotated[AsyncSession, Depends(async_get_db)]
):
    await crud_posts.delete(db=db, id=id)

# And now I'll also invalidate when I update the user:
@router.patch("/{username}/post/{id}", response_model=PostRead)
@cache(
    "{username}_post_cache",
    resource_id_name="id",
    to_invalidate_extra={"{username}_posts": "{username}"}
)
async def patch_post(
    request: Request,
    username: str,
    id: int,
    values: PostUpdate,
    current_user: Annotated[UserRead, Depends(get_current_user)],
    db: Annotated[AsyncSession, Depends(async_get_db)]
):
    await crud_posts.update(db=db, object=values, id=id)
    return await crud_posts.get(db=db, id=id)
"""

PATTERNS = """
router = APIRouter(prefix="/patterns")

@router.get("/{username}/posts", response_model=PaginatedListResponse[PostRead])
@cache(
    key_prefix="{username}_posts:page_{page}:items_per_page:{items_per_page}",
    resource_id_name="username",
    expiration=60
)
async def read_posts(
    request: Request,
    username: str,
    db: Annotated[AsyncSession, Depends(async_get_db)],
    page: int = 1,
    items_per_page: int = 10
):
    db_user = await crud_users.get(db=db, schema_to_select=UserRead, username=username, is_deleted=False)
    if not db_user:
        raise HTTPException(status_code=404, detail="User not found")

    posts_data = await crud_posts.get_multi(
        db=db,
        offset=compute_offset(page, items_per_page),
        limit=items_per_page,
        schema_to_select=PostRead,
        created_by_user_id=db_user["id"],
        is_deleted=False
    )

    return paginated_response(
        crud_data=posts_data,
        page=page,
        items_per_page=items_per_page
    )

@router.patch("/{username}/post/{id}")
@cache(
    "{username}_post_cache",
    resource_id_name="id",
    pattern_to_invalidate_extra=["{username}_posts:*"]
)
async def patch_post(
    request: Request,
    username: str,
    id: int,
    values: PostUpdate,
    current_user: Annotated[UserRead, Depends(get_current_user)],
    db: Annotated[AsyncSession, Depends(async_get_db)]
):
    await crud_posts.update(db=db, object=values, id=id)
"""

# -------- 5.10 ARQ job queues, 5.11 Rate limiting --------

TASKS = """\
from fastapi import APIRouter, Depends

from app.api.dependencies import rate_limiter
from app.core import queue
from app.core.queue import ArqJob
from app.schemas.job import Job

router = APIRouter(prefix="/tasks")

@router.post("/task", response_model=Job, status_code=201, dependencies=[Depends(rate_limiter)])
async def create_task(message: str):
    job = await queue.pool.enqueue_job("sample_background_task", message)
    return {"id": job.job_id}


@router.get("/task/{task_id}")
async def get_task(task_id: str):
    job = ArqJob(task_id, queue.pool)
    return await job.info()
"""

FUNCTIONS = "    functions = [sample_background_task]\n"


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return clone_to(tmp_path / "clone") / "src"


@pytest.fixture
def extended(src: Path) -> Path:
    """The clone with every block of chapter 5 in it."""
    app = src / "app"
    pasted = {
        "models/entity.py": MODEL,
        "schemas/entity.py": SCHEMAS,
        "crud/crud_entities.py": CRUD,
        "crud/users_as_printed.py": CRUD_OF_USERS,
        "api/v1/entities.py": ROUTES,
        "api/v1/exact_keys.py": IMPORTS + EXACT_KEYS,
        "api/v1/patterns.py": IMPORTS + PATTERNS,
        "api/v1/tasks.py": TASKS,
        "main.py": MAIN,
    }
    for name, text in pasted.items():
        (app / name).write_text(text)
    (src / "use_of_crud.py").write_text(USE_OF_CRUD)
    package, worker = app / "api" / "v1" / "__init__.py", app / "worker.py"
    package.write_text(package.read_text() + ROUTER)
    lines = worker.read_text().splitlines(keepends=True)
    (at,) = [number for number, line in enumerate(lines) if line.startswith("    functions = (")]
    worker.write_text("".join([*lines[:at], FUNCTIONS, *lines[at + 1 :]]))
    return src


async def run(run_program: RunProgram, command: str, cwd: Path, **environment: str) -> tuple[int, str]:
    """Run `python -m …` to its end; return its exit status and output."""
    program = await run_program(*command.removeprefix("python -m ").split(), cwd=cwd, environment=environment)
    return await program.wait(120), program.output


async def sign_in(client: httpx.AsyncClient, username: str, password: str) -> dict[str, str]:
    answer = await client.post(f"{API}/login", data={"username": username, "password": password})
    assert answer.json().keys() == {"access_token", "token_type"}
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


class TestEnvironmentVariables:
    async def test_pasted_file(
        self, src: Path, empty_database: str, run_program: RunProgram, run_server: RunServer
    ) -> None:
        (src / ".env").write_text(ENV)
        people = {name: "" for name in os.environ if name.startswith(PEOPLE)}  # those of the clone's own `.env`
        servers = {"POSTGRES_DB": empty_database, "ENV_FILE": str(src / ".env"), "SECRET_KEY": "", **people}
        status, output = await run(run_program, "python -m scripts.create_first_superuser", src, **servers)
        assert (status, output.count("\n")) == (1, 1)
        assert "ADMIN_EMAIL: Value error, this is not an e-mail address" in output
        assert "ADMIN_USERNAME: " in output
        for script in ("superuser", "tier"):
            command = f"python -m src.scripts.create_first_{script}"  # of Docker Compose, in the folder above
            status, output = await run(run_program, command, src.parent, **(servers | ADMIN), PYTHONPATH=str(src))
            assert status == 0, output
        assert output == "Tier free created.\n"
        gunicorn = "gunicorn app.main:app -w 4 -k uvicorn.workers.UvicornWorker -b 0.0.0.0:{port}"
        server = await run_server(
            gunicorn.split(), cwd=src, environment={**servers, "SECRET_KEY": "0123456789abcdef" * 2}
        )
        document = (await server.client.get("/openapi.json")).json()
        assert document["info"] == {
            "title": "Your app name here",
            "description": "Your app description here",
            "version": "0.1",
            "contact": {"name": "Your name"},
            "license": {"name": "The license you picked"},
        }
        headers = await sign_in(server.client, "boss", "your_password")
        assert (await server.client.get(f"{API}/user/me/", headers=headers)).json()["name"] == "your_name"

    async def test_values_of_docker_compose(self, src: Path, run_program: RunProgram, run_server: RunServer) -> None:
        server = await run_server(cwd=src, environment=COMPOSE)
        assert "tokens are valid in this process only" in server.output
        status, output = await run(run_program, "python -m scripts.create_first_superuser", src, **COMPOSE)
        assert (status, output.count("\n")) == (1, 1)
        status, output = await run(run_program, "python -m scripts.create_first_superuser", src, **(COMPOSE | ADMIN))
        assert (status, output) == (0, "Superuser boss created.\n")
        password = settings.ADMIN_PASSWORD.get_secret_value()
        assert "Authorization" in await sign_in(server.client, "boss", password)

    async def test_file_that_cannot_be_read(self, src: Path, run_program: RunProgram) -> None:
        (src / ".env").symlink_to("/proc/self/mem")  # a file whose reading fails for every user
        for command in ("scripts.create_first_tier", "alembic current", f"scripts.dev --port {free_port()}"):
            status, output = await run(run_program, command, src, ENV_FILE=str(src / ".env"))
            assert status == 1
            last = output.splitlines()[-1]
            assert ".env or src/.env cannot be read" in last
            assert "Input/output error" in last
            assert "Traceback" not in output

    async def test_own_test_beside_placeholders(self, src: Path, run_program: RunProgram) -> None:
        (src / ".env").write_text(ENV)
        test = (src / "tests" / "test_user.py").read_text()
        (src / "tests" / "test_items.py").write_text(test)
        command = "python -m pytest tests/test_items.py tests/test_user.py"
        status, output = await run(run_program, command, src, **COMPOSE, PYTEST_XDIST_WORKER="main")
        assert status == 0, output


class TestExtending:
    async def test_every_block(
        self,
        extended: Path,
        database: str,
        redis: RedisRoles,
        run_program: RunProgram,
        run_server: RunServer,
        run_worker: RunWorker,
    ) -> None:
        environment = {"POSTGRES_DB": database}
        for command in ("alembic revision --autogenerate", "alembic upgrade head", "alembic check"):
            status, output = await run(run_program, command, extended, **environment)
            assert status == 0, output
        await self._check_columns(database)
        status, output = await run(run_program, "python -m use_of_crud", extended, **environment)
        assert status == 0, output
        self._check_crud(json.loads(output))

        command = "python -m scripts.create_first_superuser"
        assert (await run(run_program, command, extended, **environment))[0] == 0
        development = ["uvicorn", "app.main:app", "--reload", "--port", "{port}"]
        server = await run_server(development, cwd=extended, environment=environment)
        worker = await run_worker("app.worker.WorkerSettings", cwd=extended, environment=environment)
        await self._check_routes(server.client)
        await self._check_cache(server.client, redis)
        headers = await self._check_tiers(server)
        await self._check_tasks(server.client, worker, headers)
        assert "Traceback" not in server.output + worker.output

    async def _check_columns(self, database: str) -> None:
        async with connected(database) as connection:
            types = await connection.fetch(
                "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'entity'"
            )
        assert dict(map(tuple, types)) == {
            "id": "integer",
            "name": "character varying",
            "updated_at": "timestamp with time zone",
            "deleted_at": "timestamp with time zone",
            "is_deleted": "boolean",
        }

    def _check_crud(self, found: dict[str, Any]) -> None:
        assert found["get"]["username"] == "myusername"
        page = found["get_multi"]
        assert [row["username"] for row in page.pop("data")] == ["userson4", "userson5"]
        assert page == {"total_count": 5, "has_more": False, "page": 1, "items_per_page": 100}
        assert (found["exists"], found["exists not"], found["count"]) == (True, False, 5)
        assert found["updated"]["name"] == "Updated Name"
        assert found["updated"]["updated_at"].endswith("+00:00")
        assert found["selected"] == {name: found["updated"][name] for name in UserRead.model_fields}
        assert (found["deleted"]["is_deleted"], found["gone"]) == (True, None)
        changed, deleted = found["entities"]
        assert (changed["name"], changed["updated_at"][-6:]) == ("changed", "+00:00")
        assert (deleted["is_deleted"], deleted["deleted_at"][-6:]) == (True, "+00:00")

    async def _check_routes(self, client: httpx.AsyncClient) -> None:
        assert (await client.get(f"{API}/entities/2")).json() == {"id": 2, "name": "changed"}
        answer = (await client.get(f"{API}/entities?page=2&items_per_page=5")).json()
        assert [row["id"] for row in answer.pop("data")] == [6, 7, 8, 9, 10]
        envelope = {"total_count": 11, "has_more": True, "page": 2, "items_per_page": 5}
        assert {name: answer[name] for name in envelope} == envelope
        for query in ("page=0", "page=-1", "items_per_page=0", "items_per_page=-5", f"page={10**30}"):
            answer = await client.get(f"{API}/entities?{query}")
            assert answer.status_code == 422, query
            assert answer.json()["detail"][0].keys() == {"type", "loc", "msg"}
        document = (await client.get("/openapi.json")).json()
        ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
        assert len(ids) == len({*ids})
        assert {"read_entities", "read_entities_api_v1_entities_get"} <= {*ids}

    async def _check_cache(self, client: httpx.AsyncClient, redis: RedisRoles) -> None:
        async def stored() -> set[str]:
            return {key.decode() for key in await redis.cache.keys() if not key.startswith(b"@")}

        for _ in range(2):
            assert (await client.get("/sample/7")).json() == {"data": "my_data"}
            assert (await client.get("/inferred/7")).json() == {"data": "my_data"}
        assert await stored() == {"sample_data:7", "inferred_data:7"}
        for key in await stored():
            assert 3590 < await redis.cache.ttl(key) <= 3600
        await redis.cache.delete(*await stored())

        headers = await self._sign_up(client)
        body = {"title": "A title", "text": "Some text"}
        for _ in range(2):
            assert (await client.post(f"{API}/tester/post", json=body, headers=headers)).status_code == 201
        exact, patterns = f"{API}/exact/tester", f"{API}/patterns/tester"
        page = "tester_posts:page_{}:items_per_page:1:tester"
        assert len((await client.get(f"{exact}/posts")).json()) == 2
        assert await stored() == {"tester_posts:tester"}
        assert (await client.delete(f"{exact}/post/2", headers=headers)).status_code == 200
        assert await stored() == set()
        assert len((await client.get(f"{exact}/posts")).json()) == 1
        changed = await client.patch(f"{exact}/post/1", json={"title": "Another"}, headers=headers)
        assert changed.json()["title"] == "Another"
        assert (await client.get(f"{exact}/posts")).json()[0]["title"] == "Another"
        assert (await client.post(f"{API}/tester/post", json=body, headers=headers)).status_code == 201
        for number in (1, 2):
            answer = await client.get(f"{patterns}/posts?page={number}&items_per_page=1")
            assert answer.json()["total_count"] == 2
        assert {page.format(1), page.format(2)} <= await stored()
        await client.patch(f"{patterns}/post/1", json={"title": "Third"}, headers=headers)
        assert await stored() == set()
        answer = await client.get(f"{patterns}/posts?page=1&items_per_page=1")
        assert answer.json()["data"][0]["title"] == "Third"
        assert (await client.get(f"{API}/patterns/nobody/posts")).json() == {"detail": "User not found"}

    async def _sign_up(self, client: httpx.AsyncClient) -> dict[str, str]:
        body = {"name": "Tester User", "email": "test@tester.com", "username": "tester", "password": "Str1ng$t"}
        assert (await client.post(f"{API}/user", json=body)).status_code == 201
        return await sign_in(client, "tester", "Str1ng$t")

    async def _check_tiers(self, server: RunningServer) -> dict[str, str]:
        """Follow section 5.11; return the headers of a user of the tier `free` with one request left."""
        client = server.client
        password = settings.ADMIN_PASSWORD.get_secret_value()
        headers = await sign_in(client, settings.ADMIN_USERNAME, password)
        for name, limit in (("free", 1), ("pro", 10)):
            assert (await client.post(f"{API}/tier", json={"name": name}, headers=headers)).status_code == 201
            rule = {"path": "api/v1/tasks/task", "limit": limit, "period": 3600, "name": f"api_v1_tasks:{limit}:3600"}
            answer = await client.post(f"{API}/tier/{name}/rate_limit", json=rule, headers=headers)
            assert answer.status_code == 201
        tiers = (await client.get(f"{API}/tiers", headers=headers)).json()["data"]
        assert [(row["name"], row["id"], row.keys()) for row in tiers] == [
            ("free", 1, {"name", "id", "created_at"}),
            ("pro", 2, {"name", "id", "created_at"}),
        ]
        limits = (await client.get(f"{API}/tier/pro/rate_limits", headers=headers)).json()
        assert limits["data"] == [
            {
                "path": "api_v1_tasks_task",
                "limit": 10,
                "period": 3600,
                "id": 2,
                "tier_id": 2,
                "name": "api_v1_tasks:10:3600",
            }
        ]
        moved = await client.patch(f"{API}/user/tester/tier", json={"tier_id": 1}, headers=headers)
        assert moved.json()["tier_id"] == 1
        return await sign_in(client, "tester", "Str1ng$t")

    async def _check_tasks(self, client: httpx.AsyncClient, worker: Program, headers: dict[str, str]) -> None:
        url = f"{API}/tasks/task"
        created = await client.post(f"{url}?message=test", headers=headers)
        assert (created.status_code, created.json().keys()) == (201, {"id"})
        assert (await client.post(f"{url}?message=test", headers=headers)).status_code == 429
        assert (await client.post(f"{url}?message=test")).status_code == 201  # by address, with the default limit

        async def is_complete() -> bool:
            return "result" in (await client.get(f"{url}/{created.json()['id']}")).json()

        await worker.wait_until(is_complete, "the task was not run")
        info = (await client.get(f"{url}/{created.json()['id']}")).json()
        named = {name: info[name] for name in ("function", "args", "kwargs", "success", "result")}
        assert named == {
            "function": "sample_background_task",
            "args": ["test"],
            "kwargs": {},
            "success": True,
            "result": "Task test is complete!",
        }
        assert {"job_try", "enqueue_time", "start_time", "finish_time", "queue_name"} <= info.keys()
        assert (await client.get(f"{url}/unknown")).json() is None


class TestCreateApplication:
    @pytest.fixture
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        router = APIRouter(prefix="/api")

        @router.get("/{username}")
        async def read(username: str, db: Annotated[AsyncSession, Depends(async_get_db)]) -> dict[str, Any]:
            found = await crud_users.get(db=db, username=username, schema_to_select=["username"])
            return ensure_found(found, "User")

        async with open_client(create_application(router=router, settings=settings)) as client:
            yield client

    async def test_with_a_router_of_fastapi(self, client: httpx.AsyncClient, user: User) -> None:
        assert (await client.get(f"/api/{user.username}")).json() == {"username": user.username}
        missing = await client.get("/api/nobody")
        assert (missing.status_code, missing.json()) == (404, {"detail": "User not found"})
        assert (await client.get("/docs")).status_code == 200

    def test_with_the_router_of_the_service(self) -> None:
        paths = {context.path for context in iter_route_contexts(create_application(settings, the_router).routes)}
        assert {f"{API}/login", f"{API}/users", "/health", "/docs"} <= paths

    def test_with_the_version_as_the_prefix_of_its_own_router(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(v1, "router", APIRouter(prefix="/v1"))
        v1.router.get("/entities")(lambda: None)
        app = create_application(router=the_router, settings=settings)
        paths = {context.path for context in iter_route_contexts(app.routes)}
        assert {path for path in paths if "entities" in str(path)} == {"/api/v1/entities"}


class TestSchemas:
    @pytest.mark.parametrize(
        ("model", "schema"),
        [(User, UserSchema), (Post, PostSchema), (Tier, TierSchema), (RateLimit, RateLimitSchema)],
    )
    def test_full_class_has_every_column(self, model: type[Any], schema: type[Any]) -> None:
        assert schema.model_fields.keys() == {*inspect(model).column_attrs.keys()}

    def test_data_of_a_token(self) -> None:
        assert TokenData(username_or_email="testeruser").model_dump() == {"username_or_email": "testeruser"}
