"""`RedisServer.guard`: an outage becomes RedisUnavailableError; any other error is a fault of the code and passes."""

from collections.abc import AsyncIterator

import pytest
from redis import exceptions

from app.core.config import RedisCacheSettings
from app.core.exceptions import RedisUnavailableError
from app.core.redis import RedisServer

OUTAGES: list[Exception] = [
    ConnectionRefusedError(),
    TimeoutError(),
    exceptions.ConnectionError(),
    exceptions.TimeoutError(),
    exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
    exceptions.AuthenticationError("Authentication required."),
    exceptions.NoPermissionError("User default has no permissions to run the 'get' command"),
    exceptions.ReadOnlyError("You can't write against a read only replica."),
    exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
    exceptions.InvalidResponse("Protocol Error: b'HTTP/1.1 400 Bad Request'"),
    exceptions.ResponseError("BUSY Redis is busy running a script."),
    exceptions.ResponseError("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
    exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots, but cannot."),
    exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."),
    exceptions.ResponseError("Error running script (call to f_1): @user_script:1: -OOM command not allowed"),
]
FAULTS: list[Exception] = [
    exceptions.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    exceptions.ResponseError("unknown command 'GTE'"),
    exceptions.ResponseError("Error compiling script: OOM is not defined"),
    exceptions.DataError("Invalid input of type: 'NoneType'"),
    KeyError("code"),
]


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    server = RedisServer("test")
    server.open(RedisCacheSettings(), "REDIS_CACHE", 1)
    yield server
    await server.close()


@pytest.mark.parametrize("error", OUTAGES, ids=str)
async def test_outage(server: RedisServer, error: Exception) -> None:
    with pytest.raises(RedisUnavailableError):
        async with server.guard():
            raise error
    assert server.is_away


@pytest.mark.parametrize("error", FAULTS, ids=str)
async def test_fault(server: RedisServer, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)[:10]):
        async with server.guard():
            raise error
    assert not server.is_away
