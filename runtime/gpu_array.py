"""Results that stay on the GPU, for any library that reads DLPack or `__cuda_array_interface__`.

Tested with capsules read back on the host; nothing here has been executed on a GPU.
"""

import ctypes
import math
from typing import Any

from drexperts.runtime.cuda import DeviceBuffer, Event, on_device

_CUDA = 2  # kDLCUDA
_FLOAT = 2  # kDLFloat
_LEGACY_DEFAULT_STREAM = 1  # as DLPack and CUDA number it


class GpuArray:
    """A C-contiguous float32 array on a GPU. Its memory lives as long as the array or a reader.

    shape: sizes of the dimensions
    device: the GPU's index
    stream: handle of the stream that writes it; None if it is already written

    A reader on another stream passes that stream to the protocol, as CuPy and PyTorch do.
    """

    def __init__(
        self,
        memory: DeviceBuffer,
        shape: tuple[int, ...],
        device: int,
        stream: int | None,
        ready: Event,
    ) -> None:
        self._memory = memory
        self._ready = ready
        self.shape = shape
        self.device = device
        self.stream = stream

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": "<f4",
            "data": (self._memory.address, False),
            "strides": None,
            "stream": self.stream,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule of the unversioned kind, which every reader accepts.

        stream: the reader's; -1 if the reader synchronises by itself
        """
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("a result can only be exported on its own GPU and without a copy")
        if stream != -1:
            with on_device(self.device):  # each GPU has its own default stream
                self._ready.hold_back(_LEGACY_DEFAULT_STREAM if stream is None else stream)
        return _capsule(self)


class _Tensor(ctypes.Structure):
    """DLManagedTensor of dlpack.h with its inner structures flattened; the layouts are equal."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("type_code", ctypes.c_uint8),
        ("type_bits", ctypes.c_uint8),
        ("type_lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_NAME = b"dltensor"
# What must stay alive until a reader calls the deleter, by the address of its tensor.
_exported: dict[int, tuple[Any, ...]] = {}


def _delete(address: int) -> None:
    _exported.pop(address, None)


def _delete_unread(capsule: int) -> None:
    # A reader renames the capsule and then owns the tensor.
    if _is_valid(capsule, _NAME):
        _delete(_pointer(capsule, _NAME))


# C callbacks, which must outlive every capsule.
_on_delete = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_delete)
_on_capsule_end = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_delete_unread)

# They take an address: a capsule that is being destroyed must not be referenced again.
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", ctypes.pythonapi))


def _capsule(array: GpuArray) -> Any:
    sizes = ctypes.c_int64 * len(array.shape)
    shape = sizes(*array.shape)
    # In elements. Newer versions of DLPack require strides of contiguous arrays as well.
    strides = sizes(*(math.prod(array.shape[axis:]) for axis in range(1, len(array.shape) + 1)))
    pointer = ctypes.POINTER(ctypes.c_int64)
    tensor = _Tensor(
        data=array.__cuda_array_interface__["data"][0],
        device_type=_CUDA,
        device_id=array.device,
        ndim=len(array.shape),
        type_code=_FLOAT,
        type_bits=32,
        type_lanes=1,
        shape=ctypes.cast(shape, pointer),
        strides=ctypes.cast(strides, pointer),
        deleter=ctypes.cast(_on_delete, ctypes.c_void_p),
    )
    address = ctypes.addressof(tensor)
    _exported[address] = (tensor, shape, strides, array)
    return _new_capsule(address, _NAME, ctypes.cast(_on_capsule_end, ctypes.c_void_p))
