"""A connection to Ray, and how many engines have room there."""

import importlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from drexperts.runtime.errors import MissingDependencyError, UserError
from drexperts.runtime.installing import install_command
from drexperts.runtime.quoting import quoted
from drexperts.runtime.wording import remedy

# Nothing is sent to Ray's makers; and workers are not to build an environment of uv's again.
_ALWAYS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
# Ray reads this when it is imported, and then listens on the loopback only, as on macOS.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_CPUS = 4  # of an engine, where the machines have so many


@dataclass(frozen=True)
class Share:
    """What an engine takes of a machine."""

    cpus: int
    gpus: int

    def __str__(self) -> str:
        return f"{self.cpus} CPUs" + f" and {self.gpus} GPU" * (self.gpus > 0)


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Yield the module `ray` with a connection, which is closed at the end if it was opened here.

    address: of a cluster; None is the one that this process is connected to, or the one in
        RAY_ADDRESS, or else Ray is started on this machine until the end, unreachable from others.
        A process that did so takes part in no cluster of several machines afterwards

    Raises MissingDependencyError without Ray, and UserError if there is no connection.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    ray = _imported(alone=address is None)
    if ray.is_initialized():
        yield ray
        return
    with _own_sigterm():
        _connect(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown()


def _imported(alone: bool) -> Any:
    for name, value in (_ALWAYS | (_LOOPBACK if alone else {})).items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError as cause:
        raise MissingDependencyError(
            f"scoring on Ray needs Ray: {install_command('ray')}"
        ) from cause


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what SIGTERM does: Ray makes it end the process as if the work had ended badly."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if address is not None:
            _check_somebody_listens(address)
            ray.init(address=address, **quiet)
            return
        ray.init(address="local", include_dashboard=False, **quiet)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as cause:
        reason = " ".join(str(cause).split())
        raise UserError(
            f"cannot connect to Ray at {address or 'this machine'}: {reason}; check that it runs, "
            "and that its versions of Ray and Python are those here"
        ) from cause
    if not ray.util.get_node_ip_address().startswith("127."):
        ray.shutdown()
        raise UserError(
            "Ray was imported before it could be told to listen to this machine only: import "
            "drexperts.scale.ray before it, or call ray.init yourself"
        )


def _check_somebody_listens(address: str) -> None:
    """Raise OSError at once where Ray would try for minutes, and end the process."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=10).close()


def share_of(ray: Any, device: str, cpus: int | None) -> Share:
    """What each engine takes: a GPU where there are any, and CPUs.

    cpus: None is 4, or fewer where no machine has so many, or a GPU's part of them

    Raises UserError for another device, and for a number of CPUs below 1.
    """
    machines = _machines(ray)
    gpus = max((machine.get("GPU", 0) for machine in machines), default=0)
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"Ray chooses the GPUs: the device is auto, cpu or cuda, not {device!r}")
    gpu = int(device == "cuda" or (device == "auto" and gpus >= 1))
    if cpus is None:
        parts = [_part(machine, gpu) for machine in machines]
        cpus = min(_CPUS, max(1, *parts, 1))
    check_count(remedy("--threads", "cpus"), cpus)
    return Share(cpus, gpu)


def check_count(name: str, count: int) -> None:
    """Raise UserError for what is no number of things of which there must be one."""
    if type(count) is not int or count < 1:
        raise UserError(f"{name} must be a whole number of at least 1, got {quoted(count)}")


def _part(machine: dict[str, float], gpu: int) -> int:
    """The CPUs of a machine for each of its GPUs, or all of them."""
    if not gpu:
        return int(machine.get("CPU", 0))
    return int(machine.get("CPU", 0) // max(1, machine.get("GPU", 0))) if "GPU" in machine else 0


def room_for(ray: Any, share: Share) -> int:
    """How many engines have room on all machines. Raises UserError if now there is none."""
    machines = _machines(ray)
    engines = sum(_room(machine, share) for machine in machines)
    fewer = remedy("pass a smaller --threads", "pass fewer cpus=")
    if engines == 0:
        largest = max((machine.get("CPU", 0) for machine in machines), default=0)
        raise UserError(
            f"no machine of this Ray has {share}, which an engine takes; the largest of "
            f"{len(machines)} has {largest:g} CPUs: {fewer}, or choose another device"
        )
    free = ray.available_resources()
    if _room(free, share) == 0:
        raise UserError(
            f"an engine takes {share}, and {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} "
            f"GPUs of this Ray are free: wait for its other work to end, or {fewer}"
        )
    return engines


def _room(resources: dict[str, float], share: Share) -> int:
    engines = resources.get("CPU", 0) // share.cpus
    return int(min(engines, resources.get("GPU", 0)) if share.gpus else engines)


def _machines(ray: Any) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
