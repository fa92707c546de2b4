"""Record the hashes of new migrations in migrations/frozen.sha256; with --check, find changed and unrecorded ones.

A database may have run a recorded migration, so it never changes: `alembic check` cannot see that a database and its
migrations have parted. Two branches that both add a migration conflict in this file, before they make two heads.
"""

import sys
from hashlib import sha256
from pathlib import Path

MIGRATIONS = Path(__file__).parent.parent / "migrations"
FILE = MIGRATIONS / "frozen.sha256"
RECORDED = "src/migrations/frozen.sha256"


def main() -> int:
    present = {name: sha256((MIGRATIONS / name).read_bytes()).hexdigest() for name in _names()}
    frozen = _frozen()
    new = sorted(present.keys() - frozen.keys())
    faults = [
        f"src/migrations/{name} is frozen, but was {'changed' if name in present else 'removed'}: restore it, and make "
        f"a new migration. If no database that you keep has run it, delete its line in {RECORDED}, then: make freeze"
        for name, digest in sorted(frozen.items())
        if present.get(name) != digest
    ]
    if "--check" in sys.argv[1:]:
        faults += [f"src/migrations/{name} is new: make freeze" for name in new]
    elif new:
        with FILE.open("a") as file:
            file.writelines(f"{present[name]}  {name}\n" for name in new)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def _names() -> list[str]:
    """Return the migrations and the SQL that they execute, in the form that `sha256sum --check` takes."""
    files = [*MIGRATIONS.glob("*.sql"), *MIGRATIONS.glob("versions/*.py")]
    return [file.relative_to(MIGRATIONS).as_posix() for file in files]


def _frozen() -> dict[str, str]:
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in lines if line)}


if __name__ == "__main__":
    sys.exit(main())
