from typing import Any

import asyncpg
import httpx

from tests.fixtures import RunServer, Statements


class TestReadHealth:
    async def test_anonymous(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/health")
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
        assert response.headers["Cache-Control"] == "private, no-store"

    async def test_asks_no_database(self, client: httpx.AsyncClient, statements: Statements) -> None:
        await client.get("/health")
        assert statements.all == []


class TestReadReadiness:
    async def test_all_up(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/health/ready")
        assert response.status_code == 200
        assert response.json() == {
            "status": "ready",
            "dependencies": {
                "postgresql": "up",
                "cache": "up",
                "queue": "up",
                "rate limit": "up",
            },
        }
        assert response.headers["Cache-Control"] == "private, no-store"

    async def test_after_the_last_migration_was_undone(
        self, client: httpx.AsyncClient, postgres: "asyncpg.Connection[Any]"
    ) -> None:
        revision = await postgres.fetchval("DELETE FROM alembic_version RETURNING version_num")
        response = await client.get("/health/ready")
        await postgres.execute("INSERT INTO alembic_version VALUES ($1)", revision)
        assert (response.status_code, response.json()["dependencies"]["postgresql"]) == (503, "down")

    async def test_before_the_migrations(self, run_server: RunServer, empty_database: str) -> None:
        """Outside the local environment, the start does not migrate the database."""
        server = await run_server(environment={"ENVIRONMENT": "staging", "POSTGRES_DB": empty_database})
        ready = await server.client.get("/health/ready")
        assert ready.status_code == 503
        assert (ready.json()["status"], ready.json()["dependencies"]["postgresql"]) == ("not ready", "down")
        users = await server.client.get("/api/v1/users")
        assert users.status_code == 503
        assert users.headers["Retry-After"].isdigit()
        assert list(users.json()) == ["detail"]
        [line, *_] = [line for line in server.output.splitlines() if "a table is missing" in line]
        assert "run `alembic upgrade head`" in line
        assert "alembic_version" in line
        await server.client.get("/health/ready")
        assert server.output.count("alembic_version") == 1
