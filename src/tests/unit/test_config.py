import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from app.core.config import DEFAULT_ADMIN_PASSWORD, EnvironmentOption, Settings
from app.core.settings_group import SRC, load

KEY = "6ad1cf38f1f2d16ba33fc35b2ce0e4b9f3a0c6d2b1e58c8d7c9a1a0b4f1e2d3c"

DEFAULTS: dict[str, Any] = {
    "ENVIRONMENT": EnvironmentOption.LOCAL,
    "APP_NAME": "FastAPI app",
    "APP_DESCRIPTION": None,
    "APP_VERSION": "0.1.0",
    "CONTACT_NAME": None,
    "CONTACT_EMAIL": None,
    "LICENSE_NAME": None,
    "MAX_BODY_BYTES": 1048576,
    "REQUEST_TIMEOUT": 30,
    "MAX_CONCURRENT_REQUESTS": 100,
    "FORWARDED_ALLOW_IPS": "",
    "POSTGRES_USER": "postgres",
    "POSTGRES_PASSWORD": "postgres",
    "POSTGRES_SERVER": "localhost",
    "POSTGRES_PORT": 5432,
    "POSTGRES_DB": "postgres",
    "POSTGRES_REPLICA_SERVER": None,
    "POSTGRES_POOL_SIZE": 20,
    "POSTGRES_CONNECT_TIMEOUT": 1.5,
    "POSTGRES_POOL_TIMEOUT": 1,
    "POSTGRES_STATEMENT_TIMEOUT": 2,
    "POSTGRES_LOCK_TIMEOUT": 1.5,
    "POSTGRES_IDLE_TIMEOUT": 60,
    "POSTGRES_STATEMENT_CACHE_SIZE": 100,
    "POSTGRES_PREPARED_READS": True,
    "SECRET_KEY": KEY,
    "ALGORITHM": "HS256",
    "ACCESS_TOKEN_EXPIRE_MINUTES": 30,
    "BCRYPT_COST": 12,
    "PASSWORD_HASH_QUEUE_SIZE": 128,
    "REFRESH_TOKEN_EXPIRE_DAYS": 7,
    "REFRESH_GRACE_SECONDS": 10,
    "REAUTHENTICATION_MINUTES": 15,
    "LOGIN_LIMIT": 10,
    "LOGIN_PERIOD": 300,
    "LOGIN_LIMIT_PER_ACCOUNT": 100,
    "LOGIN_PERIOD_PER_ACCOUNT": 3600,
    "LOGIN_LIMIT_PER_ADDRESS": 100,
    "LOGIN_PERIOD_PER_ADDRESS": 3600,
    "SIGN_UP_LIMIT": 100,
    "SIGN_UP_PERIOD": 3600,
    "PASSWORD_RESET_LIMIT": 20,
    "PASSWORD_RESET_LIMIT_PER_ACCOUNT": 3,
    "PASSWORD_RESET_PERIOD": 3600,
    "CORS_ORIGINS": "",
    "ALLOWED_HOSTS": "",
    "HSTS_MAX_AGE": 31536000,
    "SMTP_HOST": None,
    "SMTP_PORT": 587,
    "SMTP_USER": None,
    "SMTP_PASSWORD": None,
    "SMTP_SECURITY": "starttls",
    "SMTP_TIMEOUT": 10,
    "MAIL_FROM": "noreply@localhost",
    "PASSWORD_RESET_MINUTES": 30,
    "PASSWORD_RESET_URL": None,
    "ADMIN_NAME": "admin",
    "ADMIN_EMAIL": "admin@admin.com",
    "ADMIN_USERNAME": "admin",
    "ADMIN_PASSWORD": "!Ch4ng3Th1sP4ssW0rd!",
    "TIER_NAME": "free",
    "TEST_NAME": "Tester User",
    "TEST_EMAIL": "test@tester.com",
    "TEST_USERNAME": "testeruser",
    "TEST_PASSWORD": "Str1ng$t",
    "REDIS_CACHE_HOST": "localhost",
    "REDIS_CACHE_PORT": 6379,
    "REDIS_CACHE_DB": 0,
    "REDIS_CACHE_PASSWORD": None,
    "REDIS_CACHE_TIMEOUT": 0.2,
    "REDIS_CACHE_REMOVAL_TIMEOUT": 2,
    "CLIENT_CACHE_MAX_AGE": 60,
    "REDIS_QUEUE_HOST": "localhost",
    "REDIS_QUEUE_PORT": 6379,
    "REDIS_QUEUE_DB": 0,
    "REDIS_QUEUE_PASSWORD": None,
    "REDIS_QUEUE_TIMEOUT": 1,
    "JOB_TIMEOUT": 300,
    "JOB_STATEMENT_TIMEOUT": 30,
    "JOB_MAX_TRIES": 5,
    "JOB_RETRY_DELAY": 5,
    "REDIS_RATE_LIMIT_HOST": "localhost",
    "REDIS_RATE_LIMIT_PORT": 6379,
    "REDIS_RATE_LIMIT_DB": 0,
    "REDIS_RATE_LIMIT_PASSWORD": None,
    "REDIS_RATE_LIMIT_TIMEOUT": 1,
    "RATE_LIMIT_FAIL_OPEN": True,
    "DEFAULT_RATE_LIMIT_LIMIT": 10,
    "DEFAULT_RATE_LIMIT_PERIOD": 3600,
}
SECRETS = [name for name, value in Settings.model_fields.items() if "SecretStr" in str(value.annotation)]


def plain(settings: Settings) -> dict[str, Any]:
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in settings.model_dump().items()
    }


@pytest.fixture(autouse=True)
def _key(no_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", KEY)


class TestDefaults:
    def test_every_one(self) -> None:
        assert plain(Settings()) == DEFAULTS

    @pytest.mark.parametrize("value", ["", "  ", "#", "# pick an algorithm, default HS256", " # minutes"])
    def test_values_that_count_as_absent(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str) -> None:
        """Docker Compose takes the comment in `ALGORITHM= # pick one` for the value."""
        file = tmp_path / ".env"
        file.write_text("".join(f'{name}="{value}"\n' for name in (*DEFAULTS, "LICENSE")))
        monkeypatch.delenv("SECRET_KEY")
        assert plain(Settings(_env_file=file)) == {**DEFAULTS, "SECRET_KEY": ""}
        for name in (*DEFAULTS, "LICENSE"):
            monkeypatch.setenv(name, value)
        assert plain(Settings()) == {**DEFAULTS, "SECRET_KEY": ""}
        file.write_text("APP_NAME='of the file # 1'\n")
        assert Settings(_env_file=file).APP_NAME == "of the file # 1"

    @pytest.mark.parametrize("comment", [" # result of openssl rand -hex 32", "", "   "])
    def test_value_that_is_only_a_comment(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, comment: str) -> None:
        monkeypatch.delenv("SECRET_KEY")
        file = tmp_path / ".env"
        lines = [f"SECRET_KEY={comment}", f"ALGORITHM={comment}", "DEFAULT_RATE_LIMIT_LIMIT=7   # default=10"]
        file.write_text("\n".join([*lines, "TEST_PASSWORD='a$b'"]))
        settings = Settings(_env_file=file)
        assert settings.ALGORITHM == "HS256"
        assert settings.DEFAULT_RATE_LIMIT_LIMIT == 7
        assert settings.TEST_PASSWORD.get_secret_value() == "a$b"
        assert len(settings.secret_key) == 64
        assert not settings.SECRET_KEY
        with pytest.raises(ValidationError, match="SECRET_KEY is missing"):
            Settings(_env_file=file, ENVIRONMENT=EnvironmentOption.PRODUCTION)

    def test_environment_before_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        file = tmp_path / ".env"
        file.write_text('APP_NAME="from file"\nTIER_NAME="from file"\n')
        monkeypatch.setenv("APP_NAME", "from environment")
        settings = Settings(_env_file=file)
        assert (settings.APP_NAME, settings.TIER_NAME) == ("from environment", "from file")

    def test_older_name_of_the_licence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LICENSE", "MIT")
        assert Settings().LICENSE_NAME == "MIT"
        monkeypatch.setenv("LICENSE_NAME", "BSD")
        assert Settings().LICENSE_NAME == "BSD"

    def test_proxy_that_is_no_address(self, tmp_path: Path) -> None:
        file = tmp_path / ".env"
        file.write_text("FORWARDED_ALLOW_IPS=10.0.0.1, proxy.internal\n")
        with pytest.raises(ValidationError, match="FORWARDED_ALLOW_IPS"):
            Settings(_env_file=file)
        file.write_text("FORWARDED_ALLOW_IPS=10.0.0.1, 10.1.0.0/16, 2001:db8::/32, *\n")
        assert Settings(_env_file=file).FORWARDED_ALLOW_IPS.endswith("*")

    @pytest.mark.parametrize(
        ("name", "right", "wrong"),
        [
            (
                "CORS_ORIGINS",
                ["https://app.example.com, http://localhost:3000", "*"],
                ["app.example.com", "https://app.example.com/", "https://a.example/b", "https://*.example.com", "null"],
            ),
            (
                "ALLOWED_HOSTS",
                ["api.example.com, *.example.org", "127.0.0.1,[::1],localhost", "*"],
                ["https://api.example.com", "api.example.com:8000", "*example.com", "a b"],
            ),
        ],
    )
    def test_names_that_no_browser_sends(
        self, monkeypatch: pytest.MonkeyPatch, name: str, right: list[str], wrong: list[str]
    ) -> None:
        for value in right:
            monkeypatch.setenv(name, value)
            assert getattr(Settings(), name) == value
        for value in wrong:
            monkeypatch.setenv(name, value)
            with pytest.raises(ValidationError, match=name):
                Settings()

    def test_mail_takes_a_server_outside_local(self) -> None:
        assert Settings().sends_mail
        production = EnvironmentOption.PRODUCTION
        assert not Settings(ENVIRONMENT=production).sends_mail
        assert Settings(ENVIRONMENT=production, SMTP_HOST="mail.example.com").sends_mail

    def test_placeholders_that_are_no_addresses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CONTACT_EMAIL", "Your email")
        monkeypatch.setenv("ADMIN_EMAIL", "your_email")
        assert Settings().CONTACT_EMAIL is None
        assert Settings().ADMIN_EMAIL == "your_email"

    @pytest.mark.parametrize("address", ["me@localhost", "me@", "@example.com", "a b@example.com", "me@example..com"])
    def test_contact_that_openapi_would_refuse(self, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
        monkeypatch.setenv("CONTACT_EMAIL", address)
        with pytest.raises(SystemExit, match="CONTACT_EMAIL: value is not a valid email address"):
            load(Settings)
        monkeypatch.setenv("CONTACT_EMAIL", "me@example.com")
        assert load(Settings).CONTACT_EMAIL == "me@example.com"


class TestEnvironment:
    @pytest.mark.parametrize("name", ["local", "staging", "production"])
    def test_known(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setenv("ENVIRONMENT", name)
        assert str(Settings().ENVIRONMENT) == name

    @pytest.mark.parametrize("name", ["Local", "development", "prod"])
    def test_unknown(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setenv("ENVIRONMENT", name)
        with pytest.raises(ValidationError, match="ENVIRONMENT"):
            Settings()


class TestSecretKey:
    def test_local_makes_one_up_for_each_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SECRET_KEY")
        own = Settings().secret_key
        program = "from app.core.config import settings; print(settings.secret_key)"
        command = [sys.executable, "-c", program]
        other = subprocess.run(command, cwd=SRC, capture_output=True, text=True, check=True)  # noqa: S603
        assert other.stderr == ""
        assert len({own, Settings().secret_key, other.stdout.strip()}) == 2

    @pytest.mark.parametrize("environment", ["staging", "production"])
    @pytest.mark.parametrize(
        ("key", "reason"),
        [
            (None, "SECRET_KEY is missing"),
            ("", "SECRET_KEY is missing"),
            ("tooshrt", "SECRET_KEY is shorter than 32 bytes"),
            ("q7#" * 10, "SECRET_KEY is shorter than 32 bytes"),
            ("# result of openssl rand -hex 32", "SECRET_KEY is missing"),
            ("your-secret-key-goes-here-your-secret", "SECRET_KEY is a placeholder"),
            ("CHANGE-ME-change-me-CHANGE-ME-change-me", "SECRET_KEY is a placeholder"),
            ("0" * 64, "SECRET_KEY is a placeholder"),
            ("0123" * 16, "SECRET_KEY is a placeholder"),
        ],
    )
    def test_refused_outside_local(
        self, monkeypatch: pytest.MonkeyPatch, environment: str, key: str | None, reason: str
    ) -> None:
        monkeypatch.setenv("ENVIRONMENT", environment)
        if key is None:
            monkeypatch.delenv("SECRET_KEY")
        else:
            monkeypatch.setenv("SECRET_KEY", key)
        with pytest.raises(SystemExit) as refusal:
            load(Settings)
        assert reason in str(refusal.value)
        assert not key or key not in str(refusal.value)

    @pytest.mark.parametrize("environment", ["staging", "production"])
    def test_good_one(self, monkeypatch: pytest.MonkeyPatch, environment: str) -> None:
        monkeypatch.setenv("ENVIRONMENT", environment)
        assert load(Settings).secret_key == KEY


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("POSTGRES_PORT", "0"),
            ("POSTGRES_PORT", "65536"),
            ("POSTGRES_PORT", "port"),
            ("REDIS_CACHE_PORT", "-1"),
            ("REDIS_QUEUE_PORT", "x"),
            ("REDIS_RATE_LIMIT_DB", "-1"),
            ("ALGORITHM", "none"),
            ("ALGORITHM", "RS256"),
            ("ACCESS_TOKEN_EXPIRE_MINUTES", "0"),
            ("DEFAULT_RATE_LIMIT_LIMIT", "-1"),
            ("DEFAULT_RATE_LIMIT_PERIOD", "0"),
            ("CLIENT_CACHE_MAX_AGE", "-1"),
            ("POSTGRES_POOL_SIZE", "0"),
            ("POSTGRES_LOCK_TIMEOUT", "0"),
            ("BCRYPT_COST", "3"),
            ("MAX_BODY_BYTES", "0"),
            ("MAX_CONCURRENT_REQUESTS", "0"),
        ],
    )
    def test_names_the_variable_not_the_value(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
        monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as refusal:
            load(Settings)
        first, *lines = str(refusal.value).splitlines()
        assert first == "Settings refused, the service does not start:"
        assert [line.split(":")[0].strip() for line in lines] == [name]

    def test_several_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("POSTGRES_PORT", "x")
        monkeypatch.setenv("BCRYPT_COST", "x")
        with pytest.raises(SystemExit) as refusal:
            load(Settings)
        assert {line.split(":")[0].strip() for line in str(refusal.value).splitlines()[1:]} == {
            "POSTGRES_PORT",
            "BCRYPT_COST",
        }


class TestSecrets:
    def test_every_secret_is_listed(self) -> None:
        passwords = {name for name in Settings.model_fields if name.endswith(("PASSWORD", "_KEY"))}
        assert set(SECRETS) == passwords

    @pytest.mark.parametrize("name", SECRETS)
    def test_never_printed(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        value = "Zq8-unmistakable-value-of-a-setting-0451"
        monkeypatch.setenv(name, value)
        settings = Settings()
        assert plain(settings)[name] == value
        assert value not in f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()}"
        monkeypatch.setenv("POSTGRES_PORT", "x")
        with pytest.raises(SystemExit) as refusal:
            load(Settings)
        assert value not in str(refusal.value)
        with pytest.raises(ValidationError) as error:
            Settings()
        assert value not in str(error.value)


def test_default_admin_password_is_the_documented_one() -> None:
    assert DEFAULT_ADMIN_PASSWORD == "!Ch4ng3Th1sP4ssW0rd!"


class TestFiles:
    """The places of `.env`, tested with a copy of the module, because the real folders may contain one."""

    PROGRAM = "from app.core.config import settings; print(settings.APP_NAME, settings.TIER_NAME, settings.TEST_NAME)"

    @pytest.fixture
    def src(self, tmp_path: Path) -> Path:
        core = tmp_path / "clone" / "src" / "app" / "core"
        core.mkdir(parents=True)
        for name in ("config.py", "settings_group.py"):
            (core / name).write_text((SRC / "app" / "core" / name).read_text())
        return core.parents[1]

    def read(self, src: Path, **environment: str) -> list[str]:
        """Return the settings of a process that starts in another folder."""
        env = {"PYTHONPATH": str(src), "PATH": os.environ["PATH"], **environment}
        command = [sys.executable, "-c", self.PROGRAM]
        done = subprocess.run(command, cwd=src.parents[1], env=env, capture_output=True, text=True, check=True)  # noqa: S603
        return done.stdout.split()

    def test_file_beside_the_code_precedes_the_one_at_the_top(self, src: Path) -> None:
        (src / ".env").write_text("APP_NAME=src\n")
        (src.parent / ".env").write_text("APP_NAME=top\nTIER_NAME=top\n")
        (src.parents[1] / ".env").write_text("APP_NAME=cwd\nTIER_NAME=cwd\nTEST_NAME=cwd\n")
        assert self.read(src, TEST_NAME="environment") == ["src", "top", "environment"]

    def test_another_file_by_name(self, src: Path, tmp_path: Path) -> None:
        (src / ".env").write_text("APP_NAME=src\nTIER_NAME=src\n")
        file = tmp_path / "other"
        file.write_text("APP_NAME=other\nTEST_NAME=other\n")
        assert self.read(src, ENV_FILE=str(file)) == ["other", "free", "other"]

    @pytest.mark.parametrize("group", ["EnvironmentSettings", "AppSettings", "PostgresSettings", "CryptSettings"])
    def test_group_that_every_service_needs(self, src: Path, group: str) -> None:
        file = src / "app" / "core" / "config.py"
        before, start_of_class, bases = file.read_text().partition("class Settings(\n")
        assert f"    {group},\n" in bases
        file.write_text(before + start_of_class + bases.replace(f"    {group},\n", "", 1))
        assert self.refusal(src) == [f"{group} is needed here: let the class Settings inherit it"]

    def test_file_that_cannot_be_read(self, src: Path) -> None:
        (src / ".env").symlink_to("/proc/self/mem")  # a file whose reading fails for every user
        assert self.refusal(src) == [".env or src/.env cannot be read (Input/output error)"]

    def test_file_that_is_not_utf_8(self, src: Path) -> None:
        (src / ".env").write_bytes(b"APP_NAME=\xff\n")
        assert self.refusal(src) == [".env or src/.env is not UTF-8 (invalid start byte)"]

    def refusal(self, src: Path) -> list[str]:
        """Return the lines below the first that a process prints which does not start."""
        with pytest.raises(subprocess.CalledProcessError) as refused:
            self.read(src)
        first, *lines = refused.value.stderr.splitlines()
        assert first == "Settings refused, the service does not start:"
        return [line.strip() for line in lines]

    def test_none(self, src: Path) -> None:
        (src / ".env").write_text("APP_NAME=src\n")
        assert self.read(src, ENV_FILE="")[:2] == ["FastAPI", "app"]
