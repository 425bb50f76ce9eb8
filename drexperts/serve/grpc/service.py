"""The Open Inference Protocol and the health service over gRPC."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import drexperts
from drexperts.serve.failures import RequestError
from drexperts.serve.grpc.descriptor import MESSAGES
from drexperts.serve.grpc.envelope import Method
from drexperts.serve.grpc.messages import decode, encode, parsed
from drexperts.serve.oip import VERSION, ModelSpec, OipError, metadata
from drexperts.serve.service import Service

_INFERENCE, _HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"
_SERVING, _NOT_SERVING, _UNKNOWN = 1, 2, 3
_DECODERS = 2  # requests that are decoded at once; a message takes many times its size in memory
_WATCHES = 64  # which need no token, and do not end by themselves
_LOOK = 0.2  # seconds between looks at the service's health


def methods(service: Service) -> dict[str, Method]:
    """What is answered over gRPC, by its path."""
    inference = {
        "ServerLive": _unary("ServerLive", lambda _: {"live": True}, open=True),
        "ServerReady": _unary("ServerReady", lambda _: {"ready": service.ready}, open=True),
        "ServerMetadata": _unary("ServerMetadata", _about),
        **_of_models(service),
        "ModelInfer": _infer(service),
    }
    health = {
        "Check": _unary("HealthCheck", lambda request: _checked(service, request), open=True),
        "Watch": _watch(service),
    }
    return {
        f"/{package}/{name}": method
        for package, named in ((_INFERENCE, inference), (_HEALTH, health))
        for name, method in named.items()
    }


def _unary(name: str, answer: Callable[[Any], dict[str, Any]], *, open: bool = False) -> Method:
    """A method with one answer.

    name: of its messages
    answer: the fields of the answer, for the request
    """

    async def replies(message: bytes) -> AsyncGenerator[bytes, None]:
        fields = answer(parsed(f"{name}Request", message))
        yield MESSAGES[f"{name}Response"](**fields).SerializeToString()

    return Method(replies, open)


def _about(_: object) -> dict[str, Any]:
    return {"name": "drexperts", "version": drexperts.__version__}


def _of_models(service: Service) -> dict[str, Method]:
    def ready(request: Any) -> dict[str, Any]:
        _model(service, request.name, request.version)
        return {"ready": service.ready}

    def describe(request: Any) -> dict[str, Any]:
        model = _model(service, request.name, request.version)
        return metadata(model, service.platform)

    return {
        "ModelReady": _unary("ModelReady", ready),
        "ModelMetadata": _unary("ModelMetadata", describe),
    }


def _infer(service: Service) -> Method:
    decoding = asyncio.Semaphore(_DECODERS)

    async def replies(message: bytes) -> AsyncGenerator[bytes, None]:
        async with decoding:
            asked = await asyncio.to_thread(decode, message)
        model = _model(service, asked.model, asked.version)
        found = await service.infer(model, asked.request)
        yield await asyncio.to_thread(encode, found, asked.raw)

    return Method(replies)


def _model(service: Service, name: str, version: str) -> ModelSpec:
    """A model; no version is the only one."""
    return service.model(name, version or VERSION)


def _status(service: Service, name: str) -> int:
    """The health of a service of ours, or of all of them, which has no name."""
    if name not in ("", _INFERENCE):
        return _UNKNOWN
    return _SERVING if service.ready else _NOT_SERVING


def _checked(service: Service, request: Any) -> dict[str, Any]:
    status = _status(service, request.service)
    if status == _UNKNOWN:
        raise OipError(f"there is no such service: ask for {_INFERENCE}", 404)
    return {"status": status}


def _watch(service: Service) -> Method:
    watches = asyncio.Semaphore(_WATCHES)

    async def replies(message: bytes) -> AsyncGenerator[bytes, None]:
        if watches.locked():
            raise RequestError(503, "busy", "too many watch: ask with Check", {"Retry-After": "5"})
        async with watches:
            async for status in _changes(service, parsed("HealthCheckRequest", message).service):
                yield MESSAGES["HealthCheckResponse"](status=status).SerializeToString()

    return Method(replies, open=True)


async def _changes(service: Service, name: str) -> AsyncGenerator[int, None]:
    """The health of a service, and whenever it changes, until the end of the server."""
    said = None
    while True:
        last, status = service.stopping, _status(service, name)
        if status != said:
            yield status
        if last:  # or the drain would wait for who watches
            return
        said = status
        await asyncio.sleep(_LOOK)
