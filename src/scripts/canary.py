"""Run the tests on the newest and on the lowest versions that `pyproject.toml` admits, of the development tools too.

Each run uses its own environment at the top of the clone: `.venv-canary-newest` or `.venv-canary-lowest`. A run first
recreates this environment and keeps it afterwards; its `requirements.txt` lists the installed packages. The runs leave
the locks and `.venv` unchanged. Pass arguments for pytest in `PYTEST_ADDOPTS`.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
import tomllib
import venv
from pathlib import Path

SRC = Path(__file__).parent.parent
RESOLUTIONS = {"newest": "highest", "lowest": "lowest-direct"}
"""uv's resolution strategy for each run. In both, indirect dependencies get the newest version that fits."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="*", metavar="newest|lowest", help="without one, both")
    runs = parser.parse_args().runs or [*RESOLUTIONS]
    if unknown := set(runs) - RESOLUTIONS.keys():
        parser.error(f"no run is called {', '.join(sorted(unknown))}")
    outcomes: dict[str, str] = {}
    found: dict[str, dict[str, str]] = {"locked": versions(SRC / "requirements-dev.lock")}
    for run in runs:
        folder = SRC.parent / f".venv-canary-{run}"
        requirements = folder / "requirements.txt"
        print(f"installing the {run} versions into {folder.name}/", flush=True)
        begin = time.monotonic()
        passed = install(folder, RESOLUTIONS[run], requirements) and test(folder)
        outcomes[run] = f"{'passed' if passed else 'FAILED'} after {time.monotonic() - begin:.0f} s"
        found[run] = versions(requirements) if requirements.exists() else {}
    print(f"\nPython {platform.python_version()}, {platform.platform()}, {time.strftime('%Y-%m-%d')}\n")
    print(table(found))
    print("", *(f"{run}: {outcome}" for run, outcome in outcomes.items()), sep="\n")
    return int(any(outcome.startswith("FAILED") for outcome in outcomes.values()))


def install(folder: Path, resolution: str, requirements: Path) -> bool:
    """Install the packages that the resolution selects into a new environment; return whether it succeeded."""
    venv.create(folder, clear=True, symlinks=True)
    python = str(folder / "bin" / "python")
    uv = [sys.executable, "-m", "uv", "pip"]
    choose = ["--resolution", resolution, "--group", "dev", "--excludes", "unused.txt", "--no-header", "--no-annotate"]
    compiled = [*uv, "compile", "--quiet", "--python", python, *choose, "pyproject.toml", "-o", str(requirements)]
    synced = [*uv, "sync", "--quiet", "--compile-bytecode", "--python", python, str(requirements)]
    return all(run(command) == 0 for command in (compiled, synced))


def test(folder: Path) -> bool:
    return run([str(folder / "bin" / "python"), "-m", "pytest", "-n", "auto", "-m", "drill or not drill"]) == 0


def run(command: list[str]) -> int:
    return subprocess.run(command, cwd=SRC, env={**os.environ, "UV_NO_CONFIG": "1"}, check=False).returncode


def versions(requirements: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)(?:\[.*?\])?==(\S+)", requirements.read_text(), re.MULTILINE))


def table(found: dict[str, dict[str, str]]) -> str:
    """Return a Markdown table with one row for each package that `pyproject.toml` names."""
    project = tomllib.loads((SRC / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    entries = [*project["project"]["dependencies"], *groups["servers"], *groups["dev"]]
    names = [re.split(r"[^a-z0-9-]", entry)[0] for entry in entries if isinstance(entry, str)]
    rows = [["package", *found], ["---"] * (len(found) + 1)]
    rows += [[name, *(packages.get(name, "-") for packages in found.values())] for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
