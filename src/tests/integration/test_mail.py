"""Mail that is sent to a real SMTP server."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from app.core.config import AppSettings, EnvironmentOption, EnvironmentSettings, MailSettings
from app.core.mail import Mail, Mailer, mailer_for
from scripts.servers import HOST

MAIL = Mail(to="jane@example.com", subject="Grüße", text="Hello Jane,\n\nYour tokén: abc\n")


class SomeSettings(EnvironmentSettings, MailSettings):
    pass


@dataclass
class Inbox:
    """The handler of an SMTP server, which accepts all mail and authenticates one user."""

    envelopes: list[Envelope] = field(default_factory=list)

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:  # noqa: N802
        self.envelopes.append(envelope)
        return "250 OK"

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=(data.login, data.password) == (b"app", b"s3cret"), handled=False)

    def read(self) -> EmailMessage:
        (envelope,) = self.envelopes
        content = envelope.original_content
        assert content
        message = message_from_bytes(content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        return message


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


def smtp(inbox: Inbox, **options: Any) -> SMTP:
    return SMTP(inbox, loop=asyncio.get_running_loop(), **options)


@asynccontextmanager
async def serve(make: Callable[[], asyncio.BaseProtocol], context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(make, HOST, 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "mail.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture
def context(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


async def send(mail: Mail, **settings: Any) -> None:
    mailer = mailer_for(MailSettings(SMTP_HOST=HOST, MAIL_FROM="Books <books@example.com>", **settings))
    assert mailer
    async with asyncio.timeout(30):
        await mailer.send(mail)


class TestSMTP:
    async def test_plain(self, inbox: Inbox) -> None:
        async with serve(lambda: smtp(inbox, enable_SMTPUTF8=True)) as port:
            await send(MAIL, SMTP_PORT=port, SMTP_SECURITY="none")
        (envelope,) = inbox.envelopes
        assert (envelope.mail_from, envelope.rcpt_tos) == ("books@example.com", ["jane@example.com"])
        message = inbox.read()
        assert message["From"] == "Books <books@example.com>"
        assert message["To"] == "jane@example.com"
        assert message["Subject"] == "Grüße"
        assert message["Message-ID"].endswith("@example.com>")
        assert message["Date"].datetime - datetime.now(UTC) < timedelta(minutes=1)
        assert message.get_content().replace("\r\n", "\n") == MAIL.text

    @pytest.mark.usefixtures("trusted")
    @pytest.mark.parametrize("security", ["starttls", "tls"])
    async def test_encrypted_with_a_password(self, inbox: Inbox, context: ssl.SSLContext, security: str) -> None:
        def make() -> SMTP:
            if security == "tls":
                return smtp(inbox, authenticator=inbox.authenticate, auth_require_tls=False)
            return smtp(inbox, authenticator=inbox.authenticate, tls_context=context, require_starttls=True)

        async with serve(make, context if security == "tls" else None) as port:
            server = {"SMTP_PORT": port, "SMTP_SECURITY": security, "SMTP_USER": "app"}
            await send(MAIL, **server, SMTP_PASSWORD="s3cret")
            assert inbox.read()["To"] == "jane@example.com"
            with pytest.raises(aiosmtplib.SMTPAuthenticationError) as caught:
                await send(MAIL, **server, SMTP_PASSWORD="gue55")
        assert "gue55" not in str(caught.value)
        assert len(inbox.envelopes) == 1

    async def test_server_that_nobody_vouches_for(self, inbox: Inbox, context: ssl.SSLContext) -> None:
        async with serve(lambda: smtp(inbox, tls_context=context)) as port:
            with pytest.raises(ssl.SSLCertVerificationError):
                await send(MAIL, SMTP_PORT=port)
        assert inbox.envelopes == []

    async def test_server_that_does_not_encrypt(self, inbox: Inbox) -> None:
        async with serve(lambda: smtp(inbox)) as port:
            with pytest.raises(aiosmtplib.SMTPException, match="STARTTLS"):
                await send(MAIL, SMTP_PORT=port)
        assert inbox.envelopes == []

    async def test_server_that_says_nothing(self) -> None:
        async with serve(asyncio.Protocol) as port:
            with pytest.raises(aiosmtplib.SMTPTimeoutError):
                await send(MAIL, SMTP_PORT=port, SMTP_TIMEOUT=0.1)

    async def test_server_that_is_away(self) -> None:
        async with serve(asyncio.Protocol) as port:
            pass
        with pytest.raises(aiosmtplib.SMTPConnectError):
            await send(MAIL, SMTP_PORT=port)

    @pytest.mark.parametrize("subject", ["x\nBcc: eve@example.com", "x\r\n\r\nx"])
    async def test_nobody_adds_a_header(self, inbox: Inbox, subject: str) -> None:
        async with serve(lambda: smtp(inbox)) as port:
            with pytest.raises(ValueError, match="linefeed"):
                await send(Mail(to="jane@example.com", subject=subject, text="x"), SMTP_PORT=port, SMTP_SECURITY="none")
        assert inbox.envelopes == []

    async def test_address_beyond_ascii(self, inbox: Inbox) -> None:
        async with serve(lambda: smtp(inbox, enable_SMTPUTF8=True)) as port:
            await send(Mail(to="jürgen@example.com", subject="x", text="x"), SMTP_PORT=port, SMTP_SECURITY="none")
        assert inbox.envelopes[0].rcpt_tos == ["jürgen@example.com"]

    async def test_dot_alone_on_a_line(self, inbox: Inbox) -> None:
        text = "first\n.\nMAIL FROM:<eve@example.com>\n"
        async with serve(lambda: smtp(inbox)) as port:
            await send(Mail(to="jane@example.com", subject="x", text=text), SMTP_PORT=port, SMTP_SECURITY="none")
        assert inbox.read().get_content().replace("\r\n", "\n") == text


@pytest.mark.parametrize(
    "to", ["", "jane", "jane@example.com\r\nBcc: eve@example.com", "jane@example.com, eve@example.com", "a@b@c.com"]
)
def test_nobody_adds_a_recipient(to: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Mail(to=to, subject="x", text="s3cret")
    assert "s3cret" not in str(caught.value)


class TestConsole:
    async def test_prints(self, capsys: pytest.CaptureFixture[str]) -> None:
        await Mailer(SomeSettings(MAIL_FROM="books@example.com")).send(MAIL)
        captured = capsys.readouterr()
        assert "To: jane@example.com\nSubject: Grüße\n" in captured.out
        assert MAIL.text in captured.out
        assert captured.err == ""

    async def test_refuses_what_smtp_refuses(self) -> None:
        with pytest.raises(ValueError, match="linefeed"):
            await Mailer(SomeSettings()).send(Mail(to="jane@example.com", subject="x\ny", text="x"))


class TestMailerFor:
    @pytest.mark.parametrize(
        ("settings", "sends"),
        [
            (SomeSettings(ENVIRONMENT=EnvironmentOption.LOCAL), True),
            (SomeSettings(ENVIRONMENT=EnvironmentOption.STAGING), False),
            (SomeSettings(ENVIRONMENT=EnvironmentOption.PRODUCTION), False),
            (SomeSettings(ENVIRONMENT=EnvironmentOption.LOCAL, SMTP_HOST="mail.example.com"), True),
            (SomeSettings(ENVIRONMENT=EnvironmentOption.PRODUCTION, SMTP_HOST="mail.example.com"), True),
            (AppSettings(), False),
        ],
    )
    def test_settings(self, settings: BaseSettings, sends: bool) -> None:
        assert (mailer_for(settings) is not None) is sends
