"""Measure how long removing each of these users' lists takes: `python -m bench.removal PORT FIRST LAST`.

It runs with the environment of the service at PORT, and reads each list there first to store it in the cache. It prints
the seconds as JSON.
"""

import asyncio
import json
import sys
import time

import httpx
from redis.asyncio import Redis

from app.core.cache import CacheStore
from app.core.config import settings
from scripts.servers import HOST

WARM_UP = 10


async def main(port: int, first: int, last: int) -> list[float]:
    seconds = []
    redis = Redis(host=settings.REDIS_CACHE_HOST, port=settings.REDIS_CACHE_PORT)
    store = CacheStore()
    store.open(settings, settings.secret_key, settings.POSTGRES_STATEMENT_TIMEOUT)
    try:
        for _ in range(WARM_UP):  # the first one succeeds once the store trusts its server
            await asyncio.sleep(0.1)
            await store.remove([], ["nobody_posts:*"])
        async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}", trust_env=False) as client:
            for number in range(first, last + 1):
                key = f"user{number}_posts:page_1:items_per_page:10:user{number}"
                (await client.get(f"/api/v1/user{number}/posts")).raise_for_status()
                stored = await redis.exists(key)
                began = time.perf_counter()
                await store.remove([], [f"user{number}_posts:*"])
                seconds.append(time.perf_counter() - began)
                if not stored or await redis.exists(key):
                    raise SystemExit(f"{key} was {'not removed' if stored else 'not stored'}")
    finally:
        await store.close()
        await redis.aclose()
    return seconds


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*map(int, sys.argv[1:])))))
