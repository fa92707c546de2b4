"""Check every use of `@cache`: `python -m scripts.check_cache`. Print one line for each fault; exit with 1 on any."""

import sys

from app.core.cache.checker import find_cache_faults
from app.main import app


def main() -> int:
    faults = find_cache_faults(app)
    print(*faults or ["no fault found in the uses of @cache"], sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
