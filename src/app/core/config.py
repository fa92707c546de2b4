"""Settings: one class per concern, combined in `Settings`. A group left out of it switches its feature off."""

import os
import secrets
from enum import StrEnum
from ipaddress import ip_network
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, BeforeValidator, EmailStr, Field, SecretStr, field_validator, model_validator

from app.core.settings_group import SettingsGroup, comma_separated, each_matches, load

DEFAULT_ADMIN_EMAIL = "admin@admin.com"
DEFAULT_ADMIN_PASSWORD = "!Ch4ng3Th1sP4ssW0rd!"  # noqa: S105
_RANDOM_KEY = secrets.token_hex(32)
_PLACEHOLDERS = ("openssl", "your", "change", "example", "placeholder", "secret", "password", "result of")

Port = Annotated[int, Field(ge=1, le=65535)]
# The type that OpenAPI has; a placeholder without an @ is none.
ContactEmail = Annotated[EmailStr | None, BeforeValidator(lambda text: text if "@" in (text or "") else None)]
Seconds = Annotated[float, Field(gt=0)]


class EnvironmentOption(StrEnum):
    LOCAL = "local"
    STAGING = "staging"
    PRODUCTION = "production"


class EnvironmentSettings(SettingsGroup):
    ENVIRONMENT: EnvironmentOption = EnvironmentOption.LOCAL


class AppSettings(SettingsGroup):
    APP_NAME: str = "FastAPI app"
    APP_DESCRIPTION: str | None = None
    APP_VERSION: str = "0.1.0"
    CONTACT_NAME: str | None = None
    CONTACT_EMAIL: ContactEmail = None
    LICENSE_NAME: str | None = Field(None, validation_alias=AliasChoices("LICENSE_NAME", "LICENSE"))
    MAX_BODY_BYTES: int = Field(1024 * 1024, gt=0)
    REQUEST_TIMEOUT: Seconds = 30
    MAX_CONCURRENT_REQUESTS: int = Field(100, gt=0)
    FORWARDED_ALLOW_IPS: str = ""
    """Trusted proxies, whose `X-Forwarded-For` is used, comma-separated: addresses, networks, or `*`."""

    @field_validator("FORWARDED_ALLOW_IPS")
    @classmethod
    def _refuse_names(cls, value: str) -> str:
        for proxy in comma_separated(value):
            if proxy != "*" and "FORWARDED_ALLOW_IPS" not in os.environ:  # uvicorn accepts more forms there
                ip_network(proxy, strict=False)
        return value

    @property
    def proxies_handled_by_server(self) -> bool:
        """Tell whether uvicorn and gunicorn use the same proxies: they read the variable from the environment only."""
        return "FORWARDED_ALLOW_IPS" in os.environ


class PostgresSettings(SettingsGroup):
    POSTGRES_USER: str = "postgres"
    POSTGRES_PASSWORD: SecretStr = SecretStr("postgres")
    POSTGRES_SERVER: str = "localhost"
    POSTGRES_PORT: Port = 5432
    POSTGRES_DB: str = "postgres"
    POSTGRES_REPLICA_SERVER: str | None = None
    POSTGRES_POOL_SIZE: int = Field(20, gt=0)
    # Together these bound a request that needs an absent server to three seconds.
    POSTGRES_CONNECT_TIMEOUT: Seconds = 1.5
    POSTGRES_POOL_TIMEOUT: Seconds = 1
    POSTGRES_STATEMENT_TIMEOUT: Seconds = 2
    POSTGRES_LOCK_TIMEOUT: Seconds = 1.5  # longer than deadlock_timeout, so that one side of a deadlock goes on
    POSTGRES_IDLE_TIMEOUT: Seconds = 60  # of a transaction, between two statements
    POSTGRES_STATEMENT_CACHE_SIZE: int = Field(100, ge=0)
    POSTGRES_PREPARED_READS: bool = True
    """Whether reads by primary key, of pages and counts run on the driver directly, which halves their cost."""


class CryptSettings(SettingsGroup):
    SECRET_KEY: SecretStr = SecretStr("")
    ALGORITHM: Literal["HS256", "HS384", "HS512"] = "HS256"
    ACCESS_TOKEN_EXPIRE_MINUTES: int = Field(30, gt=0)
    BCRYPT_COST: int = Field(12, ge=4, le=31)
    PASSWORD_HASH_QUEUE_SIZE: int = Field(128, gt=0)

    @property
    def secret_key(self) -> str:
        """The key that signs tokens: SECRET_KEY, or without one a key of this process."""
        return self.SECRET_KEY.get_secret_value() or _RANDOM_KEY

    @model_validator(mode="after")
    def _refuse_weak_key(self) -> Self:
        if getattr(self, "ENVIRONMENT", EnvironmentOption.LOCAL) is EnvironmentOption.LOCAL:
            return self
        key, fault = self.SECRET_KEY.get_secret_value(), None
        if not key:
            fault = "missing"
        elif len(key.encode()) < 32:
            fault = "shorter than 32 bytes"
        elif len(set(key)) < 8 or any(word in key.lower() for word in _PLACEHOLDERS):
            fault = "a placeholder"
        if fault is not None:
            raise ValueError(f"SECRET_KEY is {fault}: put the output of `openssl rand -hex 32` there")
        return self


class SessionSettings(SettingsGroup):
    REFRESH_TOKEN_EXPIRE_DAYS: int = Field(7, gt=0)
    REFRESH_GRACE_SECONDS: float = Field(10, ge=0)
    """How long a spent refresh token gets the same answer again: the first one may have been lost."""
    REAUTHENTICATION_MINUTES: int = Field(15, ge=0)
    """Age of a session from which changes of e-mail address and account need the password again."""


class AbuseLimitSettings(SettingsGroup):
    """Limits on sign-ins, sign-ups and resets; they need the rate limiter's group. Periods are in seconds."""

    LOGIN_LIMIT: int = Field(10, gt=0)
    LOGIN_PERIOD: int = Field(300, gt=0)
    LOGIN_LIMIT_PER_ACCOUNT: int = Field(100, gt=0)
    LOGIN_PERIOD_PER_ACCOUNT: int = Field(3600, gt=0)
    LOGIN_LIMIT_PER_ADDRESS: int = Field(100, gt=0)
    LOGIN_PERIOD_PER_ADDRESS: int = Field(3600, gt=0)
    SIGN_UP_LIMIT: int = Field(100, gt=0)
    SIGN_UP_PERIOD: int = Field(3600, gt=0)
    PASSWORD_RESET_LIMIT: int = Field(20, gt=0)
    PASSWORD_RESET_LIMIT_PER_ACCOUNT: int = Field(3, gt=0)
    PASSWORD_RESET_PERIOD: int = Field(3600, gt=0)


class WebSecuritySettings(SettingsGroup):
    CORS_ORIGINS: Annotated[
        str, each_matches(r"\*|https?://[^/\s*]+", "origins without a path, such as https://app.example.com, and *")
    ] = ""
    """Origins whose pages may call the API, comma-separated, or `*`; empty: no other origin."""
    ALLOWED_HOSTS: Annotated[
        str, each_matches(r"\*|(\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", "names without scheme and port, and *")
    ] = ""
    """Accepted Host names, comma-separated; `*.example.com` for all names below; empty: any."""
    HSTS_MAX_AGE: int = Field(365 * 24 * 3600, ge=0)
    """Seconds for which browsers use HTTPS only (Strict-Transport-Security), outside `local`."""

    @property
    def cors_origins(self) -> list[str]:
        return comma_separated(self.CORS_ORIGINS)

    @property
    def allowed_hosts(self) -> list[str]:
        return comma_separated(self.ALLOWED_HOSTS.lower())


class MailSettings(SettingsGroup):
    """Mail settings. Without SMTP_HOST, `local` prints mail; elsewhere there is no mail, and no password reset."""

    SMTP_HOST: str | None = None
    SMTP_PORT: Port = 587
    SMTP_USER: str | None = None
    SMTP_PASSWORD: SecretStr | None = None
    SMTP_SECURITY: Literal["starttls", "tls", "none"] = "starttls"
    SMTP_TIMEOUT: Seconds = 10
    MAIL_FROM: str = "noreply@localhost"
    PASSWORD_RESET_MINUTES: int = Field(30, gt=0)
    PASSWORD_RESET_URL: str | None = None
    """URL of your page for new passwords, opened with `?token=…`; empty: the mail holds the token itself."""

    @property
    def sends_mail(self) -> bool:
        local = getattr(self, "ENVIRONMENT", EnvironmentOption.LOCAL) is EnvironmentOption.LOCAL
        return local or self.SMTP_HOST is not None


class FirstUserSettings(SettingsGroup):
    ADMIN_NAME: str = "admin"
    ADMIN_EMAIL: str = DEFAULT_ADMIN_EMAIL
    ADMIN_USERNAME: str = "admin"
    ADMIN_PASSWORD: SecretStr = SecretStr(DEFAULT_ADMIN_PASSWORD)
    TIER_NAME: str = "free"


class TestSettings(SettingsGroup):
    TEST_NAME: str = "Tester User"
    TEST_EMAIL: str = "test@tester.com"
    TEST_USERNAME: str = "testeruser"
    TEST_PASSWORD: SecretStr = SecretStr("Str1ng$t")


class RedisCacheSettings(SettingsGroup):
    REDIS_CACHE_HOST: str = "localhost"
    REDIS_CACHE_PORT: Port = 6379
    REDIS_CACHE_DB: int = Field(0, ge=0)
    REDIS_CACHE_PASSWORD: SecretStr | None = None
    REDIS_CACHE_TIMEOUT: Seconds = 0.2
    REDIS_CACHE_REMOVAL_TIMEOUT: Seconds = 2
    """Longer than for reads: a read can use the database instead, a failed removal clears the whole cache."""


class ClientSideCacheSettings(SettingsGroup):
    CLIENT_CACHE_MAX_AGE: int = Field(60, ge=0)


class RedisQueueSettings(SettingsGroup):
    REDIS_QUEUE_HOST: str = "localhost"
    REDIS_QUEUE_PORT: Port = 6379
    REDIS_QUEUE_DB: int = Field(0, ge=0)
    REDIS_QUEUE_PASSWORD: SecretStr | None = None
    REDIS_QUEUE_TIMEOUT: Seconds = 1
    JOB_TIMEOUT: int = Field(300, gt=0)
    JOB_STATEMENT_TIMEOUT: Seconds = 30
    JOB_MAX_TRIES: int = Field(5, gt=0)
    JOB_RETRY_DELAY: Seconds = 5
    """Seconds until a failed job runs again, doubled for each try."""


class RedisRateLimiterSettings(SettingsGroup):
    REDIS_RATE_LIMIT_HOST: str = "localhost"
    REDIS_RATE_LIMIT_PORT: Port = 6379
    REDIS_RATE_LIMIT_DB: int = Field(0, ge=0)
    REDIS_RATE_LIMIT_PASSWORD: SecretStr | None = None
    REDIS_RATE_LIMIT_TIMEOUT: Seconds = 1
    RATE_LIMIT_FAIL_OPEN: bool = True
    """Whether requests pass while the server is away; otherwise they are refused with 503."""


class DefaultRateLimitSettings(SettingsGroup):
    DEFAULT_RATE_LIMIT_LIMIT: int = Field(10, ge=0)
    DEFAULT_RATE_LIMIT_PERIOD: int = Field(3600, ge=1)


class Settings(
    EnvironmentSettings,
    AppSettings,
    PostgresSettings,
    CryptSettings,
    SessionSettings,
    AbuseLimitSettings,
    WebSecuritySettings,
    MailSettings,
    FirstUserSettings,
    TestSettings,
    RedisCacheSettings,
    ClientSideCacheSettings,
    RedisQueueSettings,
    RedisRateLimiterSettings,
    DefaultRateLimitSettings,
):
    """All settings. Remove a base class to switch its feature off."""


settings = load(Settings, EnvironmentSettings, AppSettings, PostgresSettings, CryptSettings)
