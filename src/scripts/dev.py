"""Run everything for development, as `make run` does: PostgreSQL, Valkey, the API and the worker, with one log."""

import argparse
import contextlib
import fcntl
import http.client
import json
import os
import pwd
import re
import secrets
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from dotenv import dotenv_values
from watchfiles import PythonFilter, watch

from scripts.servers import HOST, Postgres, Process, ServerError, Valkey, port_is_free, stop_leftover

SRC = Path(__file__).parent.parent
TOP = SRC.parent
LOCAL = TOP / ".local"
ENV_FILES = (TOP / ".env", SRC / ".env")  # as in app.core.config: the later one wins

# Run both scripts in one process, because imports take most of their time.
SETUP = """
import runpy
for module in ("scripts.create_first_superuser", "scripts.create_first_tier"):
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise
"""

# The queue must not lose jobs, so it is kept on disk and evicts nothing. Cache and rate limits may be lost, not grow.
QUEUE_SETTINGS = {"loglevel": "warning", "appendonly": "yes", "maxmemory-policy": "noeviction"}
CACHE_SETTINGS = {"loglevel": "warning", "appendonly": "no", "maxmemory": "64mb", "maxmemory-policy": "allkeys-lru"}

# If the worker ends this soon after an edit, the edit most likely has a mistake that the next edit corrects.
MISTAKE_SECONDS = 10


class CannotRunError(Exception):
    """An error whose message tells the user of `make run` why the services cannot run."""


class Log:
    """One stream of lines, each prefixed with the name of the process that wrote it."""

    def __init__(self) -> None:
        self._readers: list[threading.Thread] = []

    def write(self, name: str, line: str) -> None:
        # Write to the descriptor without a buffer, because flushing one at exit fails if the reader is gone.
        with contextlib.suppress(OSError):
            os.write(1, f"{name:<8} | {line.rstrip()}\n".encode())

    def stream(self, name: str) -> IO[bytes]:
        """Open a stream for the output of the process `name`; close it once the process has inherited it."""
        reading, writing = os.pipe()

        def copy() -> None:
            with os.fdopen(reading, errors="replace") as lines:
                for line in lines:
                    self.write(name, line)

        reader = threading.Thread(target=copy, daemon=True)
        reader.start()
        self._readers.append(reader)
        return os.fdopen(writing, "wb", buffering=0)

    def finish(self) -> None:
        for reader in self._readers:
            reader.join(timeout=1)


class Processes:
    """The processes of one run. They stop in the reverse order of their start."""

    def __init__(self, stack: ExitStack, log: Log) -> None:
        self._stack = stack
        self.log = log
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.running: dict[str, Process] = {}  # by name; the run ends if one of these ends

    def start_servers(self, own: Mapping[str, str]) -> dict[str, str]:
        """Start a server for each role without an address in our `own` settings; return their variables."""
        remembered = _read_ports()
        addresses: dict[str, str] = {}
        if not own.get("POSTGRES_SERVER"):
            with self.log.stream("postgres") as output:
                settings = {"log_checkpoints": "off"}
                postgres = Postgres(
                    LOCAL / "postgres", port=remembered.get("postgres"), output=output, settings=settings
                )
                self._stack.callback(postgres.stop)
                postgres.start()
            self.running["PostgreSQL"] = postgres.process
            remembered["postgres"] = postgres.port
            addresses |= postgres.environment()
        for name, valkey_settings, roles in (
            ("queue", QUEUE_SETTINGS, ("QUEUE",)),
            ("cache", CACHE_SETTINGS, ("CACHE", "RATE_LIMIT")),
        ):
            missing = [role for role in roles if not own.get(f"REDIS_{role}_HOST")]
            if missing:
                settings = {**valkey_settings, "requirepass": _valkey_password()}
                with self.log.stream(name) as output:
                    valkey = Valkey(LOCAL / name, port=remembered.get(name), output=output, settings=settings)
                    self._stack.callback(valkey.stop)
                    valkey.start()
                self.running[f"Valkey ({name})"] = valkey.process
                remembered[name] = valkey.port
                addresses |= valkey.environment(*missing)
        (LOCAL / "ports.json").write_text(json.dumps(remembered))
        self.environment |= addresses
        return addresses

    def start(self, name: str, *arguments: str) -> Process:
        """Start a Python program."""
        with self.log.stream(name) as output:
            process = Process(
                [sys.executable, *arguments],
                cwd=SRC,
                env=self.environment,
                output=output,
                pid_file=LOCAL / f"{name}.pid",
            )
        self._stack.callback(process.stop)
        self.running[name] = process
        return process

    def check(self) -> None:
        """Raise CannotRunError if a process has ended unexpectedly."""
        for name, process in self.running.items():
            if process.returncode and name == "setup":
                raise CannotRunError("the first superuser or the first tier could not be created, see above")
            if process.returncode is not None and name != "setup":
                raise CannotRunError(f"{name} has ended ({_status(process.returncode)}), see above")


def main() -> int:
    for descriptor in (0, 1, 2):  # the next file that is opened would get the number of a closed one
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="port of the API on 127.0.0.1 (default: 8000)")
    port: int = parser.parse_args().port
    if not 0 < port < 2**16:
        parser.error(f"{port} is not a port: choose one from 1 to 65535")

    log = Log()
    _on_signal(_interrupt)
    try:
        with _lock_of_this_folder(), ExitStack() as stack:
            try:
                run(Processes(stack, log), port)
            finally:
                _on_signal(signal.SIG_IGN)  # ignore further signals: stopping takes a few seconds at most
    except KeyboardInterrupt:
        log.finish()
        log.write("make run", "stopped")
        return 0
    except (CannotRunError, ServerError) as error:
        log.finish()
        for line in str(error).splitlines():
            log.write("make run", line)
    return 1


def run(processes: Processes, port: int) -> None:
    for name in ("api", "worker", "setup"):
        stop_leftover(LOCAL / f"{name}.pid")
    if not port_is_free(port):
        raise CannotRunError(f"{HOST}:{port} is taken by another program; choose another: make run PORT={port + 1}")
    password = _write_env_file()
    settings = _settings()
    addresses = processes.start_servers(settings)
    _write_private(LOCAL / "servers.env", "".join(f"{key}={shlex.quote(value)}\n" for key, value in addresses.items()))

    # uvicorn reads this variable from the environment only, not from .env, and trusts 127.0.0.1 if it is unset.
    processes.environment["FORWARDED_ALLOW_IPS"] = settings.get("FORWARDED_ALLOW_IPS", "")

    setup = processes.start("setup", "-c", SETUP)
    worker = Worker(processes)
    api = ["-m", "uvicorn", "app.main:app", "--reload", "--reload-dir", "app", "--host", HOST, "--port", str(port)]
    processes.start("api", *api, "--timeout-graceful-shutdown", "3")

    announced = False  # whether the address and the credentials have been printed
    for changes in watch(SRC / "app", watch_filter=PythonFilter(), rust_timeout=200, yield_on_timeout=True):
        if changes:
            worker.restart()
        worker.tolerate_mistake()
        processes.check()
        if not announced and setup.returncode == 0 and _is_ready(port):
            announced = True
            _announce(processes.log, port, settings.get("ADMIN_USERNAME", "admin"), password, addresses)


class Worker:
    """The worker, which restarts after each edit as the API does under uvicorn."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._edited = -float("inf")
        self._process = self._start()

    def _start(self) -> Process:
        return self._processes.start("worker", "-m", "arq", "app.worker.WorkerSettings")

    def restart(self) -> None:
        self._process.stop()
        self._edited = time.monotonic()
        self._process = self._start()

    def tolerate_mistake(self) -> None:
        """Keep the run alive until the next edit if the last edit made the worker end."""
        if (
            "worker" in self._processes.running
            and self._process.returncode is not None
            and time.monotonic() < self._edited + MISTAKE_SECONDS
        ):
            del self._processes.running["worker"]
            self._processes.log.write("make run", "the worker has ended; it starts again after the next edit")


def _announce(log: Log, port: int, username: str, password: str | None, addresses: Mapping[str, str]) -> None:
    where = "ADMIN_PASSWORD in src/.env" if (SRC / ".env").exists() else "ADMIN_PASSWORD in .env"
    lines = [
        "",
        f"ready     http://{HOST}:{port}/docs",
        f"sign in   {username}, password {f'{password} ({where})' if password else where}",
    ]
    if addresses:
        lines.append("shell     set -a; . .local/servers.env    leads alembic and the like to these servers")
    for line in [*lines, "stop      Ctrl-C", ""]:
        log.write("make run", line)


def _write_env_file() -> str | None:
    """Write src/.env with generated secrets if there is no .env; return the password if the file was written."""
    if any(file.exists() for file in ENV_FILES):
        return None
    new = {"SECRET_KEY": secrets.token_hex(32), "ADMIN_PASSWORD": secrets.token_urlsafe(12)}
    lines = []
    for line in (TOP / ".env.example").read_text().partition("\n\n")[2].splitlines():  # without "Copy to src/.env"
        key = line.partition("=")[0]
        lines.append(f"{key}={new[key]}" if key in new else line)
    _write_private(SRC / ".env", "\n".join(lines) + "\n")
    return new["ADMIN_PASSWORD"]


def _settings() -> dict[str, str]:
    """Read the variables as the application does: empty ones and comments are absent."""
    try:
        sources: list[Mapping[str, str | None]] = [*map(dotenv_values, ENV_FILES), os.environ]
    except (OSError, UnicodeDecodeError) as error:
        raise CannotRunError(f".env or src/.env cannot be read: {error}") from None
    found = ((key, value) for source in sources for key, value in source.items())
    return {key: value for key, value in found if value and re.match(r"\s*[^\s#]", value)}


@contextmanager
def _lock_of_this_folder() -> Iterator[None]:
    LOCAL.mkdir(mode=0o700, exist_ok=True)
    owner = LOCAL.stat().st_uid
    if owner != os.geteuid():
        raise CannotRunError(
            f"{LOCAL} belongs to {_user_name(owner)}, you are {_user_name(os.geteuid())}: run as "
            f"{_user_name(owner)}, or remove that folder and with it the data of earlier runs"
        )
    with (LOCAL / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise CannotRunError(f"make run is already running in this folder (process {lock.read()})") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=1)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _read_ports() -> dict[str, int]:
    try:
        ports = json.loads((LOCAL / "ports.json").read_text())
        return {str(name): int(port) for name, port in ports.items()}
    except (FileNotFoundError, ValueError, AttributeError):
        return {}


def _valkey_password() -> str:
    """Return the password from an earlier run, so that shells that have read servers.env can still connect."""
    file = LOCAL / "valkey-password"
    if not file.exists():
        _write_private(file, secrets.token_hex(16))
    return file.read_text()


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _on_signal(handler: Callable[..., None] | signal.Handlers) -> None:
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
        signal.signal(signal.SIGHUP, handler)


def _status(code: int) -> str:
    return f"status {code}" if code >= 0 else signal.Signals(-code).name


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


if __name__ == "__main__":
    sys.exit(main())
