"""The client's address: a client cannot choose it, but a trusted proxy can."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.requests import HTTPConnection

from app.core.config import AppSettings, settings
from app.core.http import client_address
from tests.fixtures import RedisRoles, RunningServer, RunServer, open_client
from tests.integration.own_app import send
from tests.specimen.main import SPECIMEN

TASK = "/api/v1/specimen/job?message=x"


@pytest.fixture(scope="session")
def app(specimen: FastAPI) -> FastAPI:
    return specimen


def address(peer: str | None, *forwarded: str, trusted: str = "") -> str:
    """Return the client's address for a peer and its `X-Forwarded-For` headers, which the server itself ignores."""
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    scope = {"type": "http", "client": peer and (peer, 50000), "headers": headers}
    return client_address(HTTPConnection(scope), AppSettings(FORWARDED_ALLOW_IPS=trusted))


class TestClientAddress:
    def test_header_of_an_untrusted_peer_is_ignored(self) -> None:
        assert address("192.0.2.1", "198.51.100.1") == "192.0.2.1"
        assert address("192.0.2.1", "192.0.2.1") == "192.0.2.1"
        assert address("192.0.2.1") == "192.0.2.1"
        assert address("2001:db8::1", "198.51.100.1") == "2001:db8::/64"

    def test_last_address_of_an_untrusted_peer(self) -> None:
        trusted = "192.0.2.1, 10.0.0.0/8, 2001:db8:1::/48"
        assert address("192.0.2.1", "198.51.100.1", trusted=trusted) == "198.51.100.1"
        assert address("192.0.2.1", "203.0.113.9, 198.51.100.1", trusted=trusted) == "198.51.100.1"
        assert address("192.0.2.1", "203.0.113.9, 198.51.100.1, 10.1.2.3", trusted=trusted) == "198.51.100.1"
        assert address("192.0.2.1", "203.0.113.9", "198.51.100.1", "10.1.2.3", trusted=trusted) == "198.51.100.1"
        assert address("2001:db8:1::1", "198.51.100.1", trusted=trusted) == "198.51.100.1"
        assert address("::ffff:192.0.2.1", "198.51.100.1", trusted=trusted) == "198.51.100.1"
        assert address("192.0.2.2", "198.51.100.1", trusted=trusted) == "192.0.2.2"

    def test_request_of_a_proxy_itself(self) -> None:
        assert address("192.0.2.1", trusted="192.0.2.1") == "192.0.2.1"
        assert address("192.0.2.1", "192.0.2.7", trusted="192.0.2.0/24") == "192.0.2.7"

    def test_trusting_the_local_proxy_trusts_no_other_peer(self) -> None:
        assert address("192.0.2.1", "192.0.2.1, 198.51.100.1", trusted="127.0.0.1") == "192.0.2.1"
        assert address("192.0.2.1", "192.0.2.1:50000, 198.51.100.1", trusted="127.0.0.1") == "192.0.2.1"

    def test_everything_is_trusted(self) -> None:
        assert address("192.0.2.1", "203.0.113.9, 198.51.100.1", trusted="*") == "203.0.113.9"

    @pytest.mark.parametrize("written", ["198.51.100.1:4711", " 198.51.100.1 ", "::ffff:198.51.100.1"])
    def test_ways_to_write_an_address(self, written: str) -> None:
        assert address("192.0.2.1", written, trusted="192.0.2.1") == "198.51.100.1"

    @pytest.mark.parametrize("written", ["2001:db8:2::1", "[2001:db8:2::1]", "[2001:db8:2::1]:4711"])
    def test_ways_to_write_a_long_address(self, written: str) -> None:
        assert address("192.0.2.1", written, trusted="192.0.2.1") == "2001:db8:2::/64"

    @pytest.mark.parametrize("written", ["nonsense", "<script>", "1.2.3.4.5", "1:2:3"])
    def test_nonsense_is_counted_together(self, written: str) -> None:
        assert address("192.0.2.1", f"198.51.100.1,{written}", trusted="192.0.2.1") == "unknown"

    def test_without_a_peer(self) -> None:
        assert address(None, "198.51.100.1") == "127.0.0.1"
        assert address(None, "198.51.100.1", trusted="127.0.0.1") == "198.51.100.1"


async def test_forged_headers_open_no_new_bucket(app: FastAPI, redis: RedisRoles) -> None:
    async with open_client(app, client=("192.0.2.1", 50000)) as client:
        for number in range(5):
            headers = {
                "Host": f"forged{number}",
                "X-Forwarded-For": f"198.51.100.{number}",
                "X-Real-IP": f"198.51.100.{number}",
                "Forwarded": f"for=198.51.100.{number}",
                "X-Forwarded-Host": f"forged{number}",
            }
            assert (await client.post(TASK, headers=headers)).status_code == 201
    assert await redis.rate_limit.keys() == [b"rate_limit:api_v1_specimen_job:address:192.0.2.1"]


class TestRealServers:
    """uvicorn and gunicorn trust a peer on this machine unless FORWARDED_ALLOW_IPS says otherwise."""

    async def buckets(self, server: RunningServer, redis: RedisRoles, forwarded: Sequence[str]) -> set[str]:
        await redis.rate_limit.flushdb()
        for value in forwarded:
            headers = [f"X-Forwarded-For: {value}", "X-Forwarded-Proto: https"] if value else []
            status, _, _ = await send(server.port, "POST", TASK, headers)
            assert status in {201, 429}
        return {key.decode().rpartition("address:")[2] for key in await redis.rate_limit.keys()}

    FORGED = (
        "",
        "198.51.100.1",
        "198.51.100.2:80",
        "[2001:db8::1]:80",
        "203.0.113.9, 198.51.100.3",
        "x",
        "[2001:db8::2",
        "1.2.3.4:x",
    )

    @pytest.mark.parametrize("workers", [None, 1])
    async def test_no_peer_is_trusted_unless_named(
        self, run_server: RunServer, redis: RedisRoles, workers: int | None
    ) -> None:
        server = await run_server(app=SPECIMEN, workers=workers)
        assert await self.buckets(server, redis, self.FORGED) == {"127.0.0.1"}

    @pytest.mark.parametrize("workers", [None, 1])
    async def test_named_in_the_environment(
        self, run_server: RunServer, redis: RedisRoles, workers: int | None
    ) -> None:
        environment = {"FORWARDED_ALLOW_IPS": "127.0.0.1,10.0.0.0/8"}
        server = await run_server(app=SPECIMEN, workers=workers, environment=environment)
        await self.check_named(server, redis)

    async def test_named_in_the_env_file(self, run_server: RunServer, redis: RedisRoles, tmp_path: Path) -> None:
        (tmp_path / ".env").write_text("FORWARDED_ALLOW_IPS=127.0.0.1,10.0.0.0/8\n")
        server = await run_server(app=SPECIMEN, environment={"ENV_FILE": str(tmp_path / ".env")})
        await self.check_named(server, redis)

    async def check_named(self, server: RunningServer, redis: RedisRoles) -> None:
        for forwarded, counted in (
            ("198.51.100.1", "198.51.100.1"),
            ("203.0.113.9, 198.51.100.1", "198.51.100.1"),
            ("203.0.113.9, 198.51.100.1, 10.9.8.7", "198.51.100.1"),
            ("2001:db8::1", "2001:db8::/64"),
            ("", "127.0.0.1"),
        ):
            assert await self.buckets(server, redis, [forwarded]) == {counted}, forwarded


def test_no_peer_is_trusted_by_default() -> None:
    assert not settings.FORWARDED_ALLOW_IPS
