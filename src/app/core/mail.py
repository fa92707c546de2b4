"""Mail: `mailer_for(settings)` returns the mailer; `await mailer.send(Mail(to, subject, text))`."""

import sys
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import localtime, make_msgid
from typing import Annotated, Protocol

import aiosmtplib
from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_settings import BaseSettings

from app.core.config import MailSettings
from app.core.models import normalized_email


class Mail(BaseModel):
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    to: Annotated[str, AfterValidator(normalized_email)]
    subject: str
    text: str


class Mailer(Protocol):
    async def send(self, mail: Mail) -> None:
        """Hand the mail over; raises when the server refuses it, so that the job is retried."""


class SMTPMailer:
    def __init__(self, host: str, settings: MailSettings) -> None:
        self._host = host
        self._settings = settings

    async def send(self, mail: Mail) -> None:
        settings = self._settings
        await aiosmtplib.send(
            _message(mail, settings.MAIL_FROM),
            hostname=self._host,
            port=settings.SMTP_PORT,
            username=settings.SMTP_USER,
            password=settings.SMTP_PASSWORD.get_secret_value() if settings.SMTP_PASSWORD else None,
            use_tls=settings.SMTP_SECURITY == "tls",
            start_tls=settings.SMTP_SECURITY == "starttls",
            timeout=settings.SMTP_TIMEOUT,
        )


class ConsoleMailer:
    """Print mail to standard output instead of sending it. The log gets none, since mail may hold secrets."""

    def __init__(self, sender: str) -> None:
        self._sender = sender

    async def send(self, mail: Mail) -> None:
        message = _message(mail, self._sender)
        headers = "".join(f"{name}: {value}\n" for name, value in message.items())
        sys.stdout.write(f"\n{headers}\n{mail.text}\n\n")
        sys.stdout.flush()


def mailer_for(settings: BaseSettings) -> Mailer | None:
    """SMTP where a server is named, else the console in `local`; None where no mail can be sent."""
    if not isinstance(settings, MailSettings) or not settings.sends_mail:
        return None
    if settings.SMTP_HOST:
        return SMTPMailer(settings.SMTP_HOST, settings)
    return ConsoleMailer(settings.MAIL_FROM)


def _message(mail: Mail, sender: str) -> EmailMessage:
    message = EmailMessage()  # refuses line breaks in a header
    message["From"] = sender
    username, _, domain = mail.to.rpartition("@")
    message["To"] = Address(username=username, domain=domain)
    message["Subject"] = mail.subject
    message["Date"] = localtime()
    message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2].rstrip("> ") or None)
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(mail.text)
    return message
