"""ONNX files, read without the onnx package: the graph as dataclasses, large weights still in the memory-mapped file.

The reader walks over the protobuf wire format (protobuf.dev, "Encoding") with the few field numbers of onnx.proto that
face networks use. It saves a dependency, and identifying a file reads its header instead of its 260 MB.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ModelFileError
from ...recorder import stage
from ...records import fast_hash
from ...weights import MAPPED_FROM, FileVersion, existing_file, file_version

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# numpy dtypes by their number in onnx.proto.
DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}
_DOMAINS = ("", "ai.onnx")  # of the standard operators


@dataclass(frozen=True, eq=False)
class Node:
    """One operation, with the names of its inputs and outputs."""

    op: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: dict[str, Any]
    """Integers, floats, texts, lists of numbers, and arrays."""

    def __str__(self) -> str:
        return f"{self.op[:40]} {self.outputs[0][:80] if self.outputs else ''!r}"


@dataclass(frozen=True)
class Value:
    """An input or output of the graph; a free dimension is None."""

    name: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Graph:
    """A network as stored in its file, nodes in topological order."""

    path: Path
    nodes: tuple[Node, ...]
    initializers: dict[str, np.ndarray]
    """Weights by name, copy-on-write: a write never reaches the file."""
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    content: memoryview
    """The whole file, memory-mapped if it is large; it stays valid if the file is replaced."""
    version: FileVersion
    """Of the file when it was opened. Check the mapping around every use of content and initializers."""

    @cached_property
    def scales_itself(self) -> bool:
        """Whether it starts with a subtraction and a multiplication, as networks exported from MXNet do."""
        return {"Sub", "Mul"} <= {node.op for node in self.nodes[:8]}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the file's content, as :func:`fast_instantid.weights.fingerprint`; computing it reads the file."""
        with stage("fingerprint", nbytes=len(self.content)):
            self.version.check_mapping()
            digest = fast_hash()
            digest.update(self.content)
            self.version.check_mapping()
            return digest.hexdigest()[:32]


def read_graph(path: str | Path) -> Graph:
    """Read the graph of an ONNX file; weights stay in the file until they are used.

    Raises:
        ModelFileError: missing, empty, truncated, not ONNX, or with its weights in a second file.
    """
    path = existing_file(path, "an ONNX network")
    version = file_version(path)
    if version.nbytes < MAPPED_FROM:
        buffer = memoryview(np.fromfile(path, np.uint8))  # pyright: ignore[reportArgumentType]
    else:
        with open(path, "rb") as file:
            # Copy-on-write, because torch accepts writable buffers only; the file itself is never written.
            buffer = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    try:
        if buffer[:23] == b"version https://git-lfs":
            raise ValueError("a Git LFS pointer, not the file it points to")
        if bytes(buffer[:64]).lstrip().startswith(b"<"):
            raise ValueError("a web page saved in place of the file")
        model = _message(buffer)
        if len(model[7]) != 1:
            raise ValueError("it holds no graph")
        fields = _message(model[7][0])
        if model[25] or fields[15]:
            raise ValueError("it holds functions or sparse weights, which no face network has")
        opsets = [_integers(opset[2]) for opset in map(_message, model[8]) if _name(opset[1]) in _DOMAINS]
        if not opsets or min(map(max, opsets)) < 7:
            raise ValueError("its opset is older than 7, where operators mean something else")
        initializers = dict(map(_tensor, fields[5]))
        if len(initializers) != len(fields[5]):
            raise ValueError("two weights have one name")
        # Older exporters list the weights among the inputs too.
        inputs = tuple(value for value in map(_value, fields[11]) if value.name not in initializers)
        nodes, outputs = tuple(map(_node, fields[1])), tuple(map(_value, fields[12]))
        if file_version(path) != version:
            raise ValueError("it changed while it was read")
        return Graph(path, nodes, initializers, inputs, outputs, buffer, version)
    except (struct.error, ArithmeticError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{path}: not a complete ONNX file ({error}; {len(buffer):,} bytes); download it again"
        ) from error


def _node(node: Any) -> Node:
    fields = _message(node)
    inputs, outputs = tuple(map(_text, fields[1])), tuple(map(_text, fields[2]))
    domain = _name(fields[7])
    op = _name(fields[4]) if domain in _DOMAINS else f"{domain}.{_name(fields[4])}"
    return Node(op, inputs, outputs, dict(map(_attribute, fields[5])))


def _attribute(attribute: Any) -> tuple[str, Any]:
    fields = _message(attribute)
    name, kind = _name(fields[1]), _integers(fields[20])
    if fields[6] or fields[11]:
        raise ValueError(f"attribute {name!r} is a graph, which no face network has")
    if kind == [6]:
        return name, [number for data in fields[7] for number in np.frombuffer(data, "<f4").tolist()]
    if kind == [7]:
        return name, _integers(fields[8])
    if fields[2]:
        return name, struct.unpack("<f", fields[2][-1])[0]
    if fields[4]:
        return name, str(fields[4][-1], "utf-8", "replace")
    if fields[5]:
        return name, _tensor(fields[5][-1])[1]
    return name, [0, *_integers(fields[3])][-1]


def _tensor(tensor: Any) -> tuple[str, np.ndarray]:
    fields = _message(tensor)
    name, dims, element = _name(fields[8]), _integers(fields[1]), [0, *_integers(fields[2])][-1]
    if fields[13]:
        raise ValueError("it keeps its weights in a second file, which is not supported")
    if element not in DTYPES:
        raise ValueError(f"tensor {name!r} has an unknown element type {element}")
    dtype = DTYPES[element]
    if fields[9]:  # raw_data
        array = np.frombuffer(fields[9][-1], dtype)
    elif fields[5] or fields[7]:  # int32_data, int64_data
        array = np.array(_integers(fields[5] + fields[7]), dtype)
    else:  # float_data, double_data
        parts = [np.frombuffer(data, "<f4") for data in fields[4]]
        parts += [np.frombuffer(data, "<f8") for data in fields[10]]
        array = np.concatenate(parts or [np.empty(0)]).astype(dtype)
    if len(dims) > 8 or min(dims, default=0) < 0 or array.size != math.prod(dims):
        raise ValueError(f"tensor {name!r} of shape {dims[:9]} has {array.size} values")
    return name, array.reshape(dims)


def _value(value: Any) -> Value:
    fields = _message(value)
    shape: list[int | None] = []
    for kind in fields[2]:  # TypeProto . tensor_type . shape . dim . dim_value
        for tensor_type in _message(kind)[1]:
            for dims in _message(tensor_type)[2]:
                for dim in _message(dims)[1]:
                    size = _integers(_message(dim)[1])
                    shape.append(size[0] if size and size[0] > 0 else None)
    return Value(_name(fields[1]), tuple(shape))


def _message(message: Any) -> defaultdict[int, list[Any]]:
    """The values of a message by field number.

    Raises:
        ValueError: more than 65,536. Each takes 200 bytes of memory, and as few as two in the file.
    """
    fields: defaultdict[int, list[Any]] = defaultdict(list)
    for count, (number, value) in enumerate(_fields(message)):
        if count >> 16:
            raise ValueError("a part of it has more than 65,536 fields")
        fields[number].append(value)
    return fields


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Field numbers and values of a message: an int for a varint, a memoryview for anything else.

    A value of the wrong kind raises TypeError where it is used.
    """
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        wire = tag & 7
        if wire == _VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            length, position = _varint(message, position)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {wire}")
        if position + length > end:
            raise ValueError(f"{position + length - end:,} bytes are missing at its end")
        yield tag >> 3, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise ValueError("it ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _text(value: Any) -> str:
    return str(value, "utf-8")


def _name(values: Sequence[Any]) -> str:
    return _text(values[-1]) if values else ""


def _integers(values: Sequence[Any]) -> list[int]:
    """A repeated integer field, in its packed or its one-by-one form."""
    numbers: list[int] = []
    for value in values:
        if isinstance(value, int):
            numbers.append(value)
            continue
        position = 0
        while position < len(value):
            number, position = _varint(value, position)
            numbers.append(number)
    return [number - (1 << 64) if number >= 1 << 63 else number for number in numbers]
