"""Mail: `mailer_for(settings)` returns the mailer; `await mailer.send(Mail(to, subject, text))`."""

import sys
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import localtime, make_msgid
from typing import Annotated

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


class Mailer:
    """Send mail by SMTP, or print it where the settings name no server."""

    def __init__(self, settings: MailSettings) -> None:
        self._settings = settings

    async def send(self, mail: Mail) -> None:
        """Hand the mail over; raises when the server refuses it, so that the job is retried."""
        settings = self._settings
        message = _message(mail, settings.MAIL_FROM)
        if not settings.SMTP_HOST:
            # Standard output, not the log: mail may hold secrets.
            headers = "".join(f"{name}: {value}\n" for name, value in message.items())
            sys.stdout.write(f"\n{headers}\n{mail.text}\n\n")
            sys.stdout.flush()
            return
        await aiosmtplib.send(
            message,
            hostname=settings.SMTP_HOST,
            port=settings.SMTP_PORT,
            username=settings.SMTP_USER,
            password=settings.SMTP_PASSWORD.get_secret_value() if settings.SMTP_PASSWORD else None,
            use_tls=settings.SMTP_SECURITY == "tls",
            start_tls=settings.SMTP_SECURITY == "starttls",
            timeout=settings.SMTP_TIMEOUT,
        )


def mailer_for(settings: BaseSettings) -> Mailer | None:
    """Return the mailer, or None where no mail can be sent."""
    return Mailer(settings) if isinstance(settings, MailSettings) and settings.sends_mail else None


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
