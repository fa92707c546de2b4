"""A copy of the clone that a test extends as its user would, with a database of its own."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from subprocess import PIPE, STDOUT

import httpx

from scripts.servers import HOST, free_port
from tests.fixtures import Program, RunningServer, own_database
from tests.repository import clone_to


class Clone:
    """A copy of the clone, and the programs that it runs."""

    def __init__(self, top: Path, database: str, stack: AsyncExitStack) -> None:
        self.top = clone_to(top)
        self.src = top / "src"
        self.environment = {"POSTGRES_DB": database}
        self._stack = stack

    def write(self, files: Mapping[str, str]) -> None:
        """Write files below `src/`; a module of `app/api/v1` gets its line in the package, as the README says."""
        routers = self.src / "app/api/v1/__init__.py"
        for name, text in files.items():
            path = self.src / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            if path.parent == routers.parent:
                added = f"\nfrom app.api.v1 import {path.stem} as own_{path.stem}\n"
                routers.write_text(f"{routers.read_text()}{added}router.include_router(own_{path.stem}.router)\n")

    async def run(self, *command: str, **environment: str) -> tuple[int, str]:
        """Run `python -m COMMAND …` in `src/`; return the exit status and what it printed."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *command),
            cwd=self.src,
            env={**os.environ, **self.environment, **environment},
            stdout=PIPE,
            stderr=STDOUT,
        )
        printed, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, printed.decode()

    async def migrate(self) -> None:
        """Write a migration for what was added, and run it."""
        for command in (["upgrade", "head"], ["revision", "--autogenerate", "-m", "own"], ["upgrade", "head"]):
            status, printed = await self.run("alembic", *command)
            assert status == 0, printed

    async def start(self, **environment: str) -> RunningServer:
        """Start an API, and return it."""
        port = free_port()
        command = ["uvicorn", "app.main:app", "--host", HOST, "--port", str(port)]
        log = self.top / f"{port}.log"
        server = RunningServer(command, {**self.environment, **environment}, self.src, log)
        self._stack.push_async_callback(server.stop)
        server.port = port
        client = httpx.AsyncClient(base_url=f"{server.url}/api/v1", timeout=30, trust_env=False)
        server.client = await self._stack.enter_async_context(client)
        await server.wait_until(lambda: server.is_answering(f"{server.url}/health"), "/health did not answer 200")
        return server

    async def start_worker(self, settings: str = "app.worker.WorkerSettings") -> Program:
        log = self.top / f"{settings}.log"
        worker = Program(["arq", settings], self.environment, self.src, log)
        self._stack.push_async_callback(worker.stop)
        await worker.wait_for_output("redis_version")
        return worker


@asynccontextmanager
async def open_clone(top: Path) -> AsyncIterator[Clone]:
    async with own_database() as database, AsyncExitStack() as stack:
        yield Clone(top, database, stack)
