"""The services under comparison, one uvicorn worker each, and the servers that they share."""

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import asyncpg
import httpx
import psutil
from passlib.context import CryptContext
from redis import Redis

from bench.endpoints import NUMBERS, PASSWORD, POSTS_PER_USER, USERS
from bench.load import BenchError
from scripts.servers import HOST, START_SECONDS, Postgres, Process, Valkey, free_port

SRC = Path(__file__).parent.parent
APPS = {"ours": "app.main:app", "floor": "bench.floor:app", "limit": "bench.limit:app"}
INHERITED = ("HOME", "LANG", "PATH", "TMPDIR")
SETTINGS = {
    "ENV_FILE": "",
    "ENVIRONMENT": "production",
    "BCRYPT_COST": "4",
    # All requests come from one address, and the limiter must accept all of them.
    "DEFAULT_RATE_LIMIT_LIMIT": "1000000000",
    "DEFAULT_RATE_LIMIT_PERIOD": "3600",
}
# Avoid disk writes and autovacuum during a measurement.
POSTGRES_SETTINGS = {
    "autovacuum": "off",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "max_wal_size": "4GB",
    "synchronous_commit": "off",
}
TIER = "INSERT INTO tier (name, created_at) VALUES ('bench', now())"
LIMIT = """
INSERT INTO rate_limit (tier_id, name, path, "limit", period, created_at)
VALUES (1, 'bench', 'api_v1_tasks_task', 1000000000, 3600, now())
"""
USER = """
INSERT INTO "user" (
    name, username, email, hashed_password, profile_image_url, tier_id, is_superuser, uuid, created_at, is_deleted
)
SELECT 'User ' || n, 'user' || n, 'user' || n || '@example.com', $2, 'https://www.example.com/' || n || '.png', 1,
       false, gen_random_uuid(), timestamptz '2026-01-01 00:00:00.123456Z' + n * interval '1 minute', false
FROM generate_series(1, $1::int) AS n
"""
POST = """
INSERT INTO post (created_by_user_id, title, text, uuid, created_at, is_deleted)
SELECT 1 + (n - 1) / $2::int, 'Post ' || n, repeat('This is the content of a post. ', 16), gen_random_uuid(),
       timestamptz '2026-02-01 00:00:00.123456Z' + n * interval '1 minute', false
FROM generate_series(1, $1::int) AS n
"""


@dataclass(frozen=True)
class Service:
    port: int
    process: Process
    start_seconds: float
    """Time from the start of the process to its first answer."""

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://{HOST}:{self.port}", trust_env=False)

    def memory_mib(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20


class Bench:
    """PostgreSQL with its rows, and Valkey. `services()` runs the services with these servers."""

    def __init__(self, directory: Path, postgres: Postgres, valkey: Valkey) -> None:
        self.directory = directory
        self.postgres_log = directory / "postgres.log"
        self._postgres, self.valkey = postgres, valkey
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        self.environment = {**inherited, **SETTINGS, "SECRET_KEY": secrets.token_hex(32), "PYTHONUNBUFFERED": "1"}
        self.environment |= {**postgres.environment(), **valkey.environment("CACHE", "QUEUE", "RATE_LIMIT")}
        database = f"{postgres.user}:{postgres.password}@{HOST}:{postgres.port}/{postgres.database}"
        self.environment["DATABASE_URL"] = f"postgresql://{database}"
        self.environment["REDIS_URL"] = f"redis://{HOST}:{valkey.port}"

    def redis(self) -> Redis:
        return Redis(host=HOST, port=self.valkey.port)

    def execute(self, *statements: tuple[str, *tuple[object, ...]]) -> None:
        """Run statements outside a transaction."""

        async def run() -> None:
            connection = await asyncpg.connect(self.environment["DATABASE_URL"])
            for statement, *values in statements:
                await connection.execute(statement, *values)
            await connection.close()

        asyncio.run(run())

    def migrate(self) -> None:
        alembic = [sys.executable, "-m", "alembic", "upgrade", "head"]
        done = subprocess.run(alembic, cwd=SRC, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"the migration failed:\n{done.stderr}")

    def fill(self) -> None:
        """Make the few rows that most endpoints read."""
        self.execute(
            (TIER,),
            (LIMIT,),
            (USER, USERS, password_hash()),
            (POST, USERS * POSTS_PER_USER, POSTS_PER_USER),
            ("VACUUM ANALYZE",),
        )

    @contextmanager
    def services(self) -> Iterator[Mapping[str, Service]]:
        """Run all services; start them one after the other."""
        with ExitStack() as stack:
            yield {name: stack.enter_context(self.service(name)) for name in APPS}

    @contextmanager
    def service(self, name: str, *, may_warn: bool = False, **settings: str) -> Iterator[Service]:
        """Run a service. Raises BenchError if it logged an error, or a warning without `may_warn`."""
        log = self.directory / f"{name}-{secrets.token_hex(4)}.log"
        with ExitStack() as stack:
            yield self._start(name, log, settings, stack)
            text = log.read_text(errors="replace")
            levels = ("ERROR",) if may_warn else ("ERROR", "WARNING")
            if complaints := [line for line in text.splitlines() if any(level in line for level in levels)]:
                raise BenchError(f"{name} logged errors or warnings:\n" + "\n".join(complaints[:10]))

    def _start(self, name: str, log: Path, settings: Mapping[str, str], stack: ExitStack) -> Service:
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", APPS[name], "--host", HOST, "--port", str(port)]
        # Write no access log, as gunicorn in production. Keep connections open while another service gets requests.
        command += ["--no-access-log", "--timeout-keep-alive", "600"]
        began = time.perf_counter()
        with log.open("wb") as output:
            process = Process(command, cwd=SRC, env={**self.environment, **settings}, output=output)
        stack.callback(process.stop)
        while time.perf_counter() < began + START_SECONDS and process.returncode is None:
            if _answers(port):
                return Service(port, process, time.perf_counter() - began)
            time.sleep(0.005)
        raise BenchError(f"{name} did not start:\n{log.read_text(errors='replace')}")


def _answers(port: int) -> bool:
    """Return whether the service answers; the check is cheap, so that it does not slow the start."""
    with closing(HTTPConnection(HOST, port, timeout=START_SECONDS)) as connection:
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, HTTPException):
            return False


def password_hash() -> str:
    policy = CryptContext(["bcrypt_sha256"], bcrypt_sha256__rounds=int(SETTINGS["BCRYPT_COST"]))
    return str(policy.hash(PASSWORD))


def sign_in(service: Service) -> list[str]:
    """Return access tokens of the first users; all services accept them."""
    with service.client() as client:
        tokens = []
        for number in NUMBERS:
            answer = client.post("/api/v1/login", data={"username": f"user{number}", "password": PASSWORD})
            tokens.append(str(answer.raise_for_status().json()["access_token"]))
        return tokens


@contextmanager
def running_bench() -> Iterator[Bench]:
    """Run the servers with empty tables; stop them and delete their data at the end."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="bench-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        log = stack.enter_context((directory / "postgres.log").open("ab"))
        postgres = Postgres(directory / "postgres", settings=POSTGRES_SETTINGS, output=log)
        stack.enter_context(postgres)
        valkey = stack.enter_context(Valkey(directory / "valkey", settings={"appendonly": "no"}))
        bench = Bench(directory, postgres, valkey)
        bench.migrate()
        yield bench
