"""The route of the specimen that the rate limiter guards, and what its answers say."""

import re

import httpx

from app.core.config import settings

JOB = "/api/v1/specimen/job"
JOB_PATH = "api_v1_specimen_job"
DEFAULT = settings.DEFAULT_RATE_LIMIT_LIMIT


async def post_job(client: httpx.AsyncClient, headers: dict[str, str] | None = None) -> httpx.Response:
    return await client.post(JOB, params={"message": "hello"}, headers=headers or {})


async def passes(client: httpx.AsyncClient, headers: dict[str, str] | None = None) -> int:
    """Send requests until one is refused; return the number of accepted ones."""
    count = 0
    while (response := await post_job(client, headers)).status_code == 201:
        count += 1
    assert response.status_code == 429, response.text
    return count


def fields(response: httpx.Response) -> tuple[str, int, int, int, int]:
    """Return the policy's name, limit and period, the remaining requests, and the seconds until the next one."""
    policy = re.fullmatch(r'"([^"]+)";q=(\d+);w=(\d+)', response.headers["RateLimit-Policy"])
    left = re.fullmatch(r'"([^"]+)";r=(\d+);t=(\d+)', response.headers["RateLimit"])
    assert policy
    assert left
    assert policy[1] == left[1]
    return policy[1], int(policy[2]), int(policy[3]), int(left[2]), int(left[3])
