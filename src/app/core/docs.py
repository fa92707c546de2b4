"""The OpenAPI document, Swagger UI and ReDoc, with scripts and styles from the application itself rather than a CDN."""

import json
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.staticfiles import StaticFiles

DOCS_ASSETS = "/docs/assets"


def add_docs(app: FastAPI, dependencies: list[Any]) -> None:
    """Serve the docs behind these dependencies; the scripts and styles need none."""
    docs = APIRouter(dependencies=dependencies)

    @docs.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        prefix, document = _prefix(request), app.openapi()
        if prefix:
            document = {**document, "servers": [{"url": prefix}]}
        text = json.dumps(document).replace('"tokenUrl": "/', f'"tokenUrl": "{prefix}/')
        return Response(text, media_type="application/json")

    @docs.get("/docs", include_in_schema=False)
    async def swagger_ui(request: Request) -> Response:
        prefix = _prefix(request)
        return get_swagger_ui_html(
            openapi_url=f"{prefix}/openapi.json",
            title=app.title,
            swagger_js_url=f"{prefix}{DOCS_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{prefix}{DOCS_ASSETS}/swagger-ui.css",
            swagger_favicon_url="data:,",
        )

    @docs.get("/redoc", include_in_schema=False)
    async def redoc(request: Request) -> Response:
        prefix = _prefix(request)
        return get_redoc_html(
            openapi_url=f"{prefix}/openapi.json",
            title=app.title,
            redoc_js_url=f"{prefix}{DOCS_ASSETS}/redoc.standalone.js",
            redoc_favicon_url="data:,",
            with_google_fonts=False,
        )

    app.include_router(docs)
    app.mount(DOCS_ASSETS, StaticFiles(directory=str(files("fastapi_offline") / "static")), name="docs_assets")


def _prefix(request: Request) -> str:
    """The part of the path that a proxy strips, from the server's `--root-path`."""
    return str(request.scope["root_path"]).rstrip("/")
