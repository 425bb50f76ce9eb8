"""The page of `drx serve`: a person drops photographs and sees their scores and maps.

Its files are data of this package and are read once. The browser talks to nobody but the server
that the page came from, and runs no script but the page's own: the policy below says so.
"""

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from drexperts.serve.service import Service

_Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]

_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}

# `trusted-types 'none'` makes every way of turning a string into markup an error.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page_routes(service: Service) -> list[Route]:
    """The page at `/`, and its files beside it. They are the same for everybody.

    The page asks for maps where the bundle has them, and for a token where the server does; it
    refuses what is larger than the server's largest body before it sends it.
    """
    folder = files("drexperts.serve.http") / "page_files"
    contents = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    html = contents.pop("index.html")
    has_maps = "maps" in service.batcher.scorer.manifest.outputs
    settings = service.settings
    for name, value in (
        ("maps", str(has_maps).lower()),
        ("token", str(bool(settings.tokens)).lower()),
        ("max-body", str(settings.max_body)),
    ):
        html = html.replace(f"{{{name}}}", value)
    return [
        Route("/", _answering(html, "html")),
        *(
            Route(f"/{name}", _answering(content, name.rpartition(".")[2]))
            for name, content in sorted(contents.items())
        ),
    ]


def _answering(text: str, suffix: str) -> _Endpoint:
    content = text.encode()

    async def page(_: Request) -> Response:
        return Response(content, media_type=_TYPES[suffix], headers=_HEADERS)

    return page
