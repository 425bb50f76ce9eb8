"""The Open Inference Protocol over HTTP."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import drexperts
from drexperts.serve.http import oip_json
from drexperts.serve.http.bodies import Intake
from drexperts.serve.http.disconnects import unless_gone
from drexperts.serve.oip import VERSION, ModelSpec, OipError, metadata
from drexperts.serve.service import Service

_DECODERS = 2  # requests that are decoded at once; JSON takes many times its size in memory
_HEAD = "inference-header-content-length"


def oip_routes(service: Service) -> list[Route]:
    """Metadata, readiness and inference of the two models, with and without their version."""
    settings = service.settings
    decoding = asyncio.Semaphore(_DECODERS)

    async def server(_: Request) -> Response:
        extensions = ["binary_tensor_data"]
        about = {"name": "drexperts", "version": drexperts.__version__, "extensions": extensions}
        return JSONResponse(about)

    async def model(request: Request) -> Response:
        return JSONResponse(metadata(_model(service, request), service.platform))

    async def model_ready(request: Request) -> Response:
        name = _model(service, request).name
        answer = {"name": name, "ready": service.ready}
        return JSONResponse(answer, 200 if service.ready else 503)

    async def infer(request: Request) -> Response:
        wanted = _model(service, request)
        with Intake(request, service.bodies, settings.max_body, settings.timeout) as intake:
            body = await intake.raw()
            async with decoding:
                inference, binary = await asyncio.to_thread(oip_json.decode, body, _head(request))
            found = await unless_gone(request, service.infer(wanted, inference))
        content, head = await asyncio.to_thread(oip_json.encode, found, binary)
        if head is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={_HEAD: str(head)}, media_type="application/octet-stream")

    def both(suffix: str, endpoint: Any, method: str) -> list[Route]:
        paths = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        return [Route(path + suffix, endpoint, methods=[method]) for path in paths]

    return [
        Route("/v2", server),
        *both("", model, "GET"),
        *both("/ready", model_ready, "GET"),
        *both("/infer", infer, "POST"),
    ]


def _model(service: Service, request: Request) -> ModelSpec:
    return service.model(request.path_params["model"], request.path_params.get("version", VERSION))


def _head(request: Request) -> int | None:
    text = request.headers.get(_HEAD)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 12):
        raise OipError("Inference-Header-Content-Length must be a whole number")
    return int(text)
