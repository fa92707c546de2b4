"""The packages of `unused.txt` are in no lock and are not needed; no other package is missing."""

import os
import re
import subprocess
import sys
from importlib.metadata import distributions
from typing import get_args

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.core.config import CryptSettings
from tests.environment import SRC

UNUSED = set(re.findall(r"^[a-z0-9-]+", (SRC / "unused.txt").read_text(), re.MULTILINE))
ALGORITHMS = get_args(CryptSettings.model_fields["ALGORITHM"].annotation)

SIGN_AND_VERIFY = """
import sys
from uuid import uuid4
sys.modules.update(dict.fromkeys(sys.argv[2:]))  # importing one of these now fails
import app.main, app.worker
from app.core.security import AccessToken, create_access_token, read_access_token
from jose import jws
user = uuid4()
token = create_access_token(user)
assert jws.get_unverified_header(token)["alg"] == sys.argv[1]
assert read_access_token(token) == AccessToken(user, None)
head, claims, signature = token.split(".")
try:
    read_access_token(f"{head}.{claims}.{signature[::-1]}")
except Exception as error:
    print(type(error).__name__)
"""


def test_those_of_python_jose_are_named() -> None:
    assert {"ecdsa", "pyasn1", "rsa"} <= UNUSED
    assert len(ALGORITHMS) == 3


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_no_lock_has_them(lock: str) -> None:
    locked = set(re.findall(r"^([a-z0-9.-]+)(?:\[.*?\])?==", (SRC / lock).read_text(), re.MULTILINE))
    assert "python-jose" in locked
    assert not locked & UNUSED


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_tokens_are_signed_and_verified_without_them(algorithm: str) -> None:
    command = [sys.executable, "-c", SIGN_AND_VERIFY, algorithm, *UNUSED]
    env = {**os.environ, "ALGORITHM": algorithm}
    done = subprocess.run(command, cwd=SRC, env=env, capture_output=True, text=True, check=False)  # noqa: S603 (fixed words)
    assert (done.returncode, done.stdout) == (0, "UnauthorizedError\n"), done.stderr


def test_all_other_required_packages_are_installed() -> None:
    """pip and uv install the locks as they are and do not look for missing requirements."""
    installed = {canonicalize_name(each.metadata["Name"]): each for each in distributions()}
    missing = {
        canonicalize_name(requirement.name)
        for each in installed.values()
        for requirement in map(Requirement, each.requires or ())
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    } - installed.keys()
    assert missing <= UNUSED
