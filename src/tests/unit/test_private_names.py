"""The private or undocumented names of libraries that the application uses, each with its reason.

A new one fails the test. Use a documented name instead, or add the name here with its reason and limit the library's
versions in `pyproject.toml`.
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.environment import SRC

DOCUMENTED = {
    "aiosmtplib", "alembic", "alembic.config", "arq", "arq.connections", "arq.cron", "arq.jobs", "arq.worker",
    "asyncpg", "email_validator", "fastapi", "fastapi.exceptions", "fastapi.openapi.docs", "fastapi.requests",
    "fastapi.responses", "fastapi.routing", "fastapi.security", "fastapi.websockets", "jose", "passlib.context",
    "pydantic", "pydantic_core", "pydantic_settings", "redis", "redis.asyncio", "redis.asyncio.client",
    "redis.asyncio.retry",
    "redis.backoff", "redis.exceptions", "sqlalchemy", "sqlalchemy.dialects.postgresql", "sqlalchemy.engine",
    "sqlalchemy.exc", "sqlalchemy.ext.asyncio", "sqlalchemy.orm", "sqlalchemy.pool", "starlette.concurrency",
    "starlette.exceptions", "starlette.middleware", "starlette.middleware.cors", "starlette.requests",
    "starlette.responses", "starlette.routing", "starlette.staticfiles", "starlette.types", "typing_extensions",
}  # fmt: skip
"""Modules whose names are documented, except those below."""

PRIVATE = {
    # -------- FastAPI --------
    "fastapi.dependencies.utils.get_dependant": "the parameters of an endpoint, to refuse @cache on callers' data",
    "fastapi.dependencies.models.Dependant": "the type that get_dependant returns",
    "fastapi.security.base.SecurityBase": "to recognise dependencies that read credentials",
    "fastapi.routing.iter_route_contexts": "the paths of included routes; `app.routes` has routers since 0.137",
    "fastapi.routing.serialize_response": "@cache stores the bytes that FastAPI would send",
    "scope['fastapi']": "the path of the matched route with its prefixes, under which limits are stored",
    # -------- SQLAlchemy --------
    "sqlalchemy.util.await_only": "the pool and the Reader await the driver within one greenlet",
    "sqlalchemy.util.greenlet_spawn": "one greenlet for a read rather than three: a fifth of a small request",
    "FairPool._do_get": "waiters get connections in order; without it, some wait until the timeout",
    "FairPool._do_return_conn": "likewise",
    "FairPool._timeout": "likewise",
    # -------- arq and redis-py: a killed worker or a paused server loses no job --------
    "arq.constants.*": "the keys that arq uses; jobs are enqueued, kept and retried in one step each",
    "arq.jobs.serialize_job": "likewise",
    "arq.jobs.deserialize_result": "likewise",
    "arq.typing.WorkerCoroutine": "the type of a job",
    "arq.utils.*": "arq's own conversions of times, so that scores of the queue agree",
    "arq.worker.Function": "a job with its own timeout and tries is wrapped, not replaced",
    "arq.worker.JobExecutionFailed": "a job that retries after its last try has failed",
    "JobPipeline.immediate_execute_command": "a lost connection repeats the watched reads; arq's worker would end",
    "JobPipeline.annotate_exception": "arguments of jobs may be secrets, and errors are logged",
    "_PatientPool.ensure_connection": "a worker waits for a server that accepts connections and stays silent",
    "_PatientRetry.call_with_retry": "a worker waits for its server and logs this once",
}
OVERRIDES = {
    # Methods that the library documents for overriding, or overrides that keep the documented meaning.
    "ArqJob.__init__", "BearerScheme.__call__", "FairPool.__init__",
    "JobPipeline.psetex", "JobPipeline.reset", "JobPipeline.set",
    "JobQueue.__init__", "JobQueue.enqueue_job", "JobQueue.pipeline",
    "KeyValueFormatter.format",
}  # fmt: skip
SCOPE_KEYS = {
    "app", "client", "headers", "method", "path", "path_params", "query_string", "root_path", "route", "type",
}  # fmt: skip
"""Keys that ASGI, Starlette and FastAPI document."""


def modules() -> Iterator[tuple[Path, ModuleType, ast.Module]]:
    for file in sorted((SRC / "app").rglob("*.py")):
        name = ".".join(file.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
        yield file, importlib.import_module(name), ast.parse(file.read_text())


PUBLIC = {"_asdict", "_fields", "_mapping", "_t", "_tuple"}
"""Names of SQLAlchemy's `Row` that its documentation shows; the linter ignores them, too."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield imported names of libraries that are private, or from an undocumented module."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        parents = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for parent in parents:
            if parent.partition(".")[0] in {*sys.stdlib_module_names, "app"}:
                continue
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else [""]
            for name in names:
                full = f"{parent}.{name}".rstrip(".")
                if parent not in DOCUMENTED or is_private(name) or full in PRIVATE:
                    yield f"{parent}.*" if f"{parent}.*" in PRIVATE else full


def attributes(tree: ast.Module) -> Iterator[str]:
    """Yield private attributes of objects other than `self`, `cls` and the module itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = node.value
            is_own = isinstance(owner, ast.Name) and (owner.id in {"self", "cls"} or owner.id.lstrip("_")[:1].isupper())
            if not is_own and not isinstance(owner, ast.Call):  # `inherited` yields super()._method
                yield ast.unparse(node)


def inherited(module: ModuleType) -> Iterator[str]:
    """Yield the names that our classes override, or use privately, from classes of libraries."""
    for name, kind in inspect.getmembers(module, inspect.isclass):
        bases = [base for base in kind.__mro__[1:] if base.__module__.partition(".")[0] not in {"app", "builtins"}]
        bases = [base for base in bases if base.__module__.partition(".")[0] not in {"typing", "abc", "enum"}]
        if kind.__module__ != module.__name__ or not bases or _is_model(bases):
            continue
        tree = ast.parse(inspect.getsource(kind).lstrip())
        methods = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        yield from (f"{name}.{method}" for method in methods if any(method in vars(base) for base in bases))
        assigned = {
            node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        }
        for node in ast.walk(tree):
            match node:
                case ast.Attribute(value=ast.Name(id="self"), attr=attribute) if is_private(attribute):
                    if attribute not in methods | assigned:
                        yield f"{name}.{attribute}"


def _is_model(bases: list[type[Any]]) -> bool:
    """Return whether the class is a Pydantic or SQLAlchemy model, an exception or a protocol, made for inheritance."""
    names = {base.__name__ for base in bases}
    return bool(names & {"BaseModel", "DeclarativeBase", "MappedAsDataclass", "Exception", "Protocol", "Generic"})


def scope_keys(tree: ast.Module) -> Iterator[str]:
    """Yield keys of ASGI scopes that are neither documented nor the application's own."""
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=owner, slice=ast.Constant(value=key)):
                pass
            case ast.Call(func=ast.Attribute(value=owner), args=[ast.Constant(value=key), *_]):
                pass
            case _:
                continue
        is_known = key in SCOPE_KEYS or str(key).startswith("app.")
        if ast.unparse(owner).endswith("scope") and not is_known:
            yield f"scope[{key!r}]"


def found() -> dict[str, set[str]]:
    """Return the places where each name is used."""
    places: dict[str, set[str]] = {}
    for file, module, tree in modules():
        for name in [*imported(tree), *attributes(tree), *inherited(module), *scope_keys(tree)]:
            if name not in OVERRIDES:
                places.setdefault(name, set()).add(str(file.relative_to(SRC)))
    return places


def test_each_is_listed_with_its_reason() -> None:
    new = {name: places for name, places in found().items() if name not in PRIVATE}
    assert new == {}, "private or undocumented names: use documented ones, or list them with a reason"


def test_each_that_is_listed_is_used() -> None:
    assert PRIVATE.keys() - found().keys() == set()


def test_endpoints_and_queries_use_none_but_the_paths_of_routes() -> None:
    places = {
        name: {place for place in files if "/api/" in place or "/crud/" in place} for name, files in found().items()
    }
    assert {name for name, files in places.items() if files} <= {"fastapi.routing.iter_route_contexts"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from fastapi._compat import x", ["fastapi._compat.x"]),
        ("from fastapi.routing import _x", ["fastapi.routing._x"]),
        ("import redis._parsers", ["redis._parsers"]),
        ("from os import _exit\nfrom app.core import x", []),
    ],
)
def test_imports_are_found(source: str, expected: list[str]) -> None:
    assert [*imported(ast.parse(source))] == expected


def test_attributes_and_scope_keys_are_found() -> None:
    tree = ast.parse(
        "request._state\nrow._mapping\nself._own\nscope['fastapi']\nrequest.scope.get('secret', 1)\nscope['app.mine']"
    )
    assert [*attributes(tree)] == ["request._state"]
    assert [*scope_keys(tree)] == ["scope['fastapi']", "scope['secret']"]
