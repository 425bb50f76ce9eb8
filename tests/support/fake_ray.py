"""Ray in one process: actors whose calls end in any order, and which are lost now and then."""

import pickle
import random
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class FakeRay:
    """What drexperts uses of the module `ray`.

    nodes_: the resources of each machine
    lossy: the chance that an actor is lost during a call
    losses: how many were
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, *nodes: dict[str, float], lossy: float = 0.0, seed: int = 0) -> None:
        self.nodes_ = nodes or ({"CPU": 2.0},)
        self.lossy, self.draw, self.losses = lossy, random.Random(seed), 0
        self.free: dict[str, float] | None = None
        self.actors: list[Any] = []
        self.taken: dict[str, float] = {}
        self.initialised = True

    def is_initialized(self) -> bool:
        return self.initialised

    def nodes(self) -> list[dict[str, Any]]:
        alive = [{"Alive": True, "Resources": node} for node in self.nodes_]
        return [*alive, {"Alive": False, "Resources": {"CPU": 1000.0, "GPU": 1000.0}}]

    def available_resources(self) -> dict[str, float]:
        names = {name for node in self.nodes_ for name in node}
        whole = {name: sum(node.get(name, 0) for node in self.nodes_) for name in names}
        return whole if self.free is None else self.free

    def remote(self, **taken: float) -> Any:
        self.taken = taken
        return lambda actor: SimpleNamespace(remote=lambda: self._made(actor()))

    def _made(self, actor: Any) -> "_Handle":
        handle = _Handle(self, actor)
        self.actors.append(handle)
        return handle

    def wait(self, references: list["_Reference"], timeout: float) -> tuple[list[Any], list[Any]]:
        ready = self.draw.choice(references)
        return [ready], [each for each in references if each is not ready]

    def get(self, reference: "_Reference") -> Any:
        return reference.value()

    def kill(self, handle: "_Handle") -> None:
        handle.alive = False

    def shutdown(self) -> None:
        self.initialised = False


class _Handle:
    def __init__(self, ray: FakeRay, actor: Any) -> None:
        self.ray, self.actor, self.alive = ray, actor, True

    def __getattr__(self, name: str) -> Any:
        # What is sent is pickled.
        return SimpleNamespace(
            remote=lambda *arguments: _Reference(self, name, pickle.dumps(arguments))
        )


class _Reference:
    def __init__(self, handle: _Handle, name: str, arguments: bytes) -> None:
        self.handle, self.name, self.arguments = handle, name, arguments

    def value(self) -> Any:
        ray = self.handle.ray
        if self.handle.alive and ray.draw.random() < ray.lossy:
            self.handle.alive, ray.losses = False, ray.losses + 1
        if not self.handle.alive:
            raise RayError("the actor died")
        try:
            return getattr(self.handle.actor, self.name)(*pickle.loads(self.arguments))
        except Exception as cause:
            raise RayTaskError(cause) from cause
