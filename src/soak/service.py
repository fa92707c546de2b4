"""The service as the README runs it in production, with its own servers on loopback."""

import asyncio
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from scripts.dev import CACHE_SETTINGS, QUEUE_SETTINGS
from scripts.servers import HOST, Postgres, Process, Server, ServerError, Valkey, free_port

SRC = Path(__file__).parent.parent
API_WORKERS, JOB_WORKERS = 2, 2
FINISHED = "soak:finished"
"""The key on the queue's server with the number of times that each job finished."""
LIMIT, PERIOD = 5, 5
"""Number of tasks that a user may queue, and the period in seconds."""
GRACE_SECONDS = 10.0
"""How long a spent refresh token gets the same answer again."""
GIVE_UP_SECONDS = 15.0

INHERITED = ("HOME", "LANG", "PATH", "TMPDIR")
SETTINGS = {
    "ENV_FILE": "",
    "ENVIRONMENT": "production",
    "BCRYPT_COST": "4",
    "DEFAULT_RATE_LIMIT_LIMIT": str(LIMIT),
    "DEFAULT_RATE_LIMIT_PERIOD": str(PERIOD),
    "REFRESH_GRACE_SECONDS": str(GRACE_SECONDS),
    # All users share one address here.
    "SIGN_UP_LIMIT": "1000000",
    **{f"LOGIN_LIMIT{of}": "1000000" for of in ("", "_PER_ACCOUNT", "_PER_ADDRESS")},
}


class Service:
    def __init__(self, directory: Path, logs: Path) -> None:
        self.logs = logs
        self.port = free_port()
        # Allow connections for two generations of workers while gunicorn reloads.
        self.postgres = Postgres(directory / "postgres", settings={"max_connections": "300"})
        self.redis = {
            "cache": Valkey(directory / "cache", settings=CACHE_SETTINGS),
            "queue": Valkey(directory / "queue", settings=QUEUE_SETTINGS),
            "rate limit": Valkey(directory / "rate_limit", settings=CACHE_SETTINGS),
        }
        self.servers: dict[str, Server] = {"PostgreSQL": self.postgres, **self.redis}
        self.environment: dict[str, str] = {}
        self.gunicorn: Process
        self.job_workers: list[Process] = []

    async def start(self, stack: AsyncExitStack) -> None:
        """Start all servers and processes; `stack` stops them in the reverse order."""
        for server in self.servers.values():
            stack.push_async_callback(asyncio.to_thread, server.stop)
            await asyncio.to_thread(server.start)
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        self.environment = {**inherited, **SETTINGS, "SECRET_KEY": secrets.token_hex(32), "PYTHONUNBUFFERED": "1"}
        self.environment |= self.postgres.environment()
        for role, redis in self.redis.items():
            self.environment |= redis.environment(role.upper().replace(" ", "_"))
        migration = self._run("migration", "alembic", "upgrade", "head")
        if await asyncio.to_thread(migration.popen.wait) != 0:
            raise ServerError(f"the migration failed: {self.logs}")
        workers = ("-w", str(API_WORKERS), "-k", "uvicorn.workers.UvicornWorker", "--no-control-socket")
        self.gunicorn = self._run("api", "gunicorn", "app.main:app", "-b", f"{HOST}:{self.port}", *workers)
        stack.push_async_callback(asyncio.to_thread, self.gunicorn.stop)
        for number in range(JOB_WORKERS):
            self.job_workers.append(self.run_job_worker(number))
            stack.push_async_callback(self._stop_job_worker, number)

    def client(self, **options: Any) -> httpx.AsyncClient:
        base = f"http://{HOST}:{self.port}"
        return httpx.AsyncClient(base_url=base, timeout=GIVE_UP_SECONDS, trust_env=False, **options)

    def api_workers(self) -> list[psutil.Process]:
        return psutil.Process(self.gunicorn.pid).children()

    def run_job_worker(self, number: int) -> Process:
        return self._run(f"job worker {number}", "arq", "soak.jobs.WorkerSettings")

    def ended(self) -> list[str]:
        """Return the names of the processes that have ended unexpectedly."""
        processes = {"gunicorn": self.gunicorn}
        processes |= {f"job worker {number}": process for number, process in enumerate(self.job_workers)}
        return [name for name, process in processes.items() if process.returncode is not None]

    async def _stop_job_worker(self, number: int) -> None:
        await asyncio.to_thread(self.job_workers[number].stop)

    def _run(self, name: str, *command: str) -> Process:
        with (self.logs / f"{name}.log").open("ab") as log:
            return Process([sys.executable, "-m", *command], cwd=SRC, env=self.environment, output=log)


@asynccontextmanager
async def running_service() -> AsyncIterator[Service]:
    """Run all servers and processes. Their output stays in the folder `Service.logs`."""
    async with AsyncExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="soak-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        service = Service(directory, Path(tempfile.mkdtemp(prefix="soak-logs-")))
        await service.start(stack)
        yield service
