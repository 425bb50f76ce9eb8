"""The routes of the server, as one ASGI application."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router

from drexperts.runtime.errors import ImageError
from drexperts.serve.failures import RequestError
from drexperts.serve.guard import Guard
from drexperts.serve.http.bodies import Intake, is_form
from drexperts.serve.http.disconnects import unless_gone
from drexperts.serve.http.envelope import Envelope
from drexperts.serve.http.oip_routes import oip_routes
from drexperts.serve.http.page import page_routes
from drexperts.serve.http.rows import row_of
from drexperts.serve.requests import OnRequest
from drexperts.serve.service import Service


def _nobody(route: str, outcome: str, seconds: float) -> None: ...


def application(
    service: Service, on_request: OnRequest = _nobody, more: Sequence[BaseRoute] = ()
) -> Envelope:
    """The routes that answer with a Service.

    more: routes beside those for scores and health
    """
    settings = service.settings
    page = page_routes(service) if settings.page else []
    routes = [
        *_score_routes(service),
        *_health_routes(service),
        *oip_routes(service),
        *page,
        *more,
    ]
    router = Router(routes, redirect_slashes=False)
    open_paths = tuple(route.path for route in page)
    return Envelope(router, Guard(settings.tokens, settings.hosts, open_paths), on_request)


def _score_routes(service: Service) -> list[Route]:
    settings = service.settings

    async def score(request: Request) -> Response:
        maps = _flag(request, "maps")
        with Intake(request, service.bodies, settings.max_body, settings.timeout) as intake:
            if is_form(request):
                images = await intake.files(settings.max_images)
                return await unless_gone(request, _of_form(service, images, maps))
            image = await intake.raw()
            name = f"<{len(image)} bytes>"
            scored = await unless_gone(request, service.score(name, image, maps=maps))
            return JSONResponse(row_of(name, scored))

    return [Route("/v1/score", score, methods=["POST"])]


async def _of_form(service: Service, images: list[tuple[str, bytes]], maps: bool) -> Response:
    """One row per image, in their order; 422 if none could be read."""
    scores = await service.score_all(images, maps=maps)
    rows = [row_of(name, score) for (name, _), score in zip(images, scores, strict=True)]
    failed = all(isinstance(score, ImageError) for score in scores)
    return JSONResponse({"images": rows}, 422 if failed else 200)


def _health_routes(service: Service) -> list[Route]:
    async def live(_: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(_: Request) -> Response:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    return [Route("/v2/health/live", live), Route("/v2/health/ready", ready)]


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false")
    if value not in ("true", "false"):
        raise RequestError(400, "bad_query", f"{name} must be true or false")
    return value == "true"
