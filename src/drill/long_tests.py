"""The tests that are marked `drill`: they kill and pause servers, start processes, or need large tables."""

import subprocess
import sys

from tests.environment import SRC


def main() -> None:
    command = [sys.executable, "-m", "pytest", "-n", "auto", "-m", "drill"]
    subprocess.run(command, cwd=SRC, check=True)
