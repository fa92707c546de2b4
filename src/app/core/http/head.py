"""Answer HEAD as GET without its body: FastAPI's routes answer 405."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadRequests:
    """Pass HEAD on as GET; the bytes of the response are dropped, its headers stay."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        scope["method"] = "GET"  # RequestContext has copied the server's scope
        await self.app(scope, receive, send_without_body)
