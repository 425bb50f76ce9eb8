"""The messages of two protocols over gRPC, from tables instead of generated code.

Names, numbers and types are those of the Open Inference Protocol, version 2, and of gRPC's health
service, as far as they are needed here and sent by clients. What is not here is skipped when a
message is read, as protobuf does. The messages have a pool of their own, so that a client's
generated code may live in the same process.
"""

from typing import Any, TypeAlias

from google.protobuf import message_factory  # type: ignore[import-untyped]
from google.protobuf.descriptor_pb2 import (  # type: ignore[import-untyped]
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool  # type: ignore[import-untyped]

# Number, name and type. A type with `*` is repeated, one with `|` is a choice: a message holds one
# of them at most. `map` is a map from names to InferParameter.
_Field: TypeAlias = tuple[int, str, str]

_NAME_AND_VERSION: tuple[_Field, ...] = ((1, "name", "string"), (2, "version", "string"))
_FORM: tuple[_Field, ...] = (
    (1, "name", "string"),
    (2, "datatype", "string"),
    (3, "shape", "int64*"),
)
_TENSOR: tuple[_Field, ...] = (
    *_FORM,
    (4, "parameters", "map"),
    (5, "contents", "InferTensorContents"),
)

_INFERENCE: dict[str, tuple[_Field, ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": ((1, "live", "bool"),),
    "ServerReadyRequest": (),
    "ServerReadyResponse": ((1, "ready", "bool"),),
    "ModelReadyRequest": _NAME_AND_VERSION,
    "ModelReadyResponse": ((1, "ready", "bool"),),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": (*_NAME_AND_VERSION, (3, "extensions", "string*")),
    "ModelMetadataRequest": _NAME_AND_VERSION,
    "TensorMetadata": _FORM,
    "ModelMetadataResponse": (
        (1, "name", "string"),
        (2, "versions", "string*"),
        (3, "platform", "string"),
        (4, "inputs", "TensorMetadata*"),
        (5, "outputs", "TensorMetadata*"),
    ),
    "InferParameter": (
        (1, "bool_param", "bool|"),
        (2, "int64_param", "int64|"),
        (3, "string_param", "string|"),
        (4, "double_param", "double|"),
        (5, "uint64_param", "uint64|"),
    ),
    "InferTensorContents": (
        (1, "bool_contents", "bool*"),
        (2, "int_contents", "int32*"),
        (3, "int64_contents", "int64*"),
        (4, "uint_contents", "uint32*"),
        (5, "uint64_contents", "uint64*"),
        (6, "fp32_contents", "float*"),
        (7, "fp64_contents", "double*"),
        (8, "bytes_contents", "bytes*"),
    ),
    "InferInputTensor": _TENSOR,
    "InferRequestedOutputTensor": ((1, "name", "string"), (2, "parameters", "map")),
    "InferOutputTensor": _TENSOR,
    "ModelInferRequest": (
        (1, "model_name", "string"),
        (2, "model_version", "string"),
        (3, "id", "string"),
        (4, "parameters", "map"),
        (5, "inputs", "InferInputTensor*"),
        (6, "outputs", "InferRequestedOutputTensor*"),
        (7, "raw_input_contents", "bytes*"),
    ),
    "ModelInferResponse": (
        (1, "model_name", "string"),
        (2, "model_version", "string"),
        (3, "id", "string"),
        (4, "parameters", "map"),
        (5, "outputs", "InferOutputTensor*"),
        (6, "raw_output_contents", "bytes*"),
    ),
}
_HEALTH: dict[str, tuple[_Field, ...]] = {
    "HealthCheckRequest": ((1, "service", "string"),),
    # An enumeration, which is sent as this type: 1 is serving, 2 not serving, 3 unknown.
    "HealthCheckResponse": ((1, "status", "int32"),),
}
_SCALARS = {
    name: getattr(FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("bool", "bytes", "double", "float", "int32", "int64", "string", "uint32", "uint64")
}


def _file(package: str, messages: dict[str, tuple[_Field, ...]]) -> Any:
    file = FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field in fields:
            _add(message, field, f".{package}.")
    return file


def _add(message: DescriptorProto, field: _Field, scope: str) -> None:
    number, name, kind = field
    base = kind.rstrip("*|")
    added = message.field.add(name=name, number=number)
    repeated = base == "map" or kind.endswith("*")
    added.label = added.LABEL_REPEATED if repeated else added.LABEL_OPTIONAL
    if base in _SCALARS:
        added.type = _SCALARS[base]
    elif base == "map":
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add(entry, (1, "key", "string"), scope)
        _add(entry, (2, "value", "InferParameter"), scope)
        added.type, added.type_name = added.TYPE_MESSAGE, f"{scope}{message.name}.{entry.name}"
    else:
        added.type, added.type_name = added.TYPE_MESSAGE, scope + base
    if kind.endswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        added.oneof_index = 0


def _classes(package: str, messages: dict[str, tuple[_Field, ...]]) -> dict[str, Any]:
    pool = DescriptorPool()
    pool.AddSerializedFile(_file(package, messages).SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in messages
    }


# The class of each message, by its name.
MESSAGES = _classes("inference", _INFERENCE) | _classes("grpc.health.v1", _HEALTH)
