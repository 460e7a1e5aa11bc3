"""ONNX files, read without the onnx package: the graph as dataclasses, the weights still in the memory-mapped file.

The reader walks over the protobuf wire format (protobuf.dev, "Encoding") with the few field numbers of onnx.proto that
face networks use. It saves a dependency, and identifying a file reads its header instead of its 260 MB.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import xxhash

from ...errors import ModelFileError
from ...recorder import stage
from ...weights import existing_file

Attribute: TypeAlias = int | float | str | list[int] | list[float] | np.ndarray

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

DTYPES = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
}
"""numpy dtypes by their number in onnx.proto."""
_TYPED_DATA_FIELDS = {4: "<f4", 10: "<f8"}  # float_data, double_data; the integer fields hold varints


@dataclass(frozen=True, eq=False)
class Node:
    """One operation, with the names of its inputs and outputs."""

    op: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: dict[str, Attribute]


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
    """The whole file, memory-mapped; it stays valid if the file is replaced."""

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the file's content, as :func:`fast_instantid.weights.fingerprint`; computing it reads the file."""
        with stage("fingerprint", nbytes=len(self.content)):
            return xxhash.xxh3_128(self.content).hexdigest()


def read_graph(path: str | Path) -> Graph:
    """Read the graph of an ONNX file; weights stay in the file until they are used.

    Raises:
        ModelFileError: missing, empty, truncated, not ONNX, or with its weights in a second file.
    """
    path = existing_file(path, "an ONNX network")
    with open(path, "rb") as file:
        # Copy-on-write, because torch accepts writable buffers only; the file itself is never written.
        buffer = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    try:
        graphs = [value for field, value in _fields(buffer) if field == 7]
        if len(graphs) != 1:
            raise _Malformed("it holds no graph")
        return _graph(path, _submessage(graphs[0]), buffer)
    except (_Malformed, struct.error, KeyError, ValueError) as error:
        raise ModelFileError(
            f"{path}: not a complete ONNX file ({error}; {len(buffer):,} bytes); download it again"
        ) from error


class _Malformed(Exception):
    pass


def _graph(path: Path, message: memoryview, content: memoryview) -> Graph:
    nodes: list[Node] = []
    initializers: dict[str, np.ndarray] = {}
    inputs: list[Value] = []
    outputs: list[Value] = []
    for field, value in _fields(message):
        if field == 1:
            nodes.append(_node(_submessage(value)))
        elif field == 5:
            name, array = _tensor(_submessage(value))
            initializers[name] = array
        elif field == 11:
            inputs.append(_value(_submessage(value)))
        elif field == 12:
            outputs.append(_value(_submessage(value)))
    # Older exporters list the weights among the inputs too.
    inputs = [value for value in inputs if value.name not in initializers]
    return Graph(path, tuple(nodes), initializers, tuple(inputs), tuple(outputs), content)


def _node(message: memoryview) -> Node:
    op = ""
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: dict[str, Attribute] = {}
    for field, value in _fields(message):
        if field == 1:
            inputs.append(_text(value))
        elif field == 2:
            outputs.append(_text(value))
        elif field == 4:
            op = _text(value)
        elif field == 5:
            name, attribute = _attribute(_submessage(value))
            attributes[name] = attribute
    return Node(op, tuple(inputs), tuple(outputs), attributes)


def _attribute(message: memoryview) -> tuple[str, Attribute]:
    name = ""
    single: Attribute = 0
    floats: list[float] = []
    ints: list[int] = []
    kind = 0
    for field, value in _fields(message):
        if field == 1:
            name = _text(value)
        elif field == 2:
            single = struct.unpack("<f", _submessage(value))[0]
        elif field == 3:
            single = _signed(value)
        elif field == 4:
            single = bytes(_submessage(value)).decode("utf-8", "replace")
        elif field == 5:
            single = _tensor(_submessage(value))[1]
        elif field == 7:
            data = _submessage(value)
            floats.extend(struct.unpack(f"<{len(data) // 4}f", data))
        elif field == 8:
            ints.extend(_varints(value))
        elif field == 20:
            kind = _signed(value)
    return name, floats if kind == 6 else ints if kind == 7 else single


def _tensor(message: memoryview) -> tuple[str, np.ndarray]:
    name = ""
    dims: list[int] = []
    dtype = 0
    raw: memoryview | None = None
    integers: list[int] = []
    typed: list[np.ndarray] = []
    for field, value in _fields(message):
        if field == 1:
            dims.extend(_varints(value))
        elif field == 2:
            dtype = _signed(value)
        elif field in _TYPED_DATA_FIELDS:
            typed.append(np.frombuffer(_submessage(value), _TYPED_DATA_FIELDS[field]))
        elif field in (5, 7):
            integers.extend(_varints(value))
        elif field == 8:
            name = _text(value)
        elif field == 9:
            raw = _submessage(value)
        elif field == 13:
            raise _Malformed("it keeps its weights in a second file, which is not supported")
    if dtype not in DTYPES:
        raise _Malformed(f"tensor {name!r} has an unknown element type {dtype}")
    if raw is not None:
        array = np.frombuffer(raw, DTYPES[dtype])
    elif integers:
        array = np.array(integers, DTYPES[dtype])
    else:
        array = np.concatenate(typed).astype(DTYPES[dtype]) if typed else np.empty(0, DTYPES[dtype])
    count = int(np.prod(dims, dtype=np.int64))
    if array.size != count:
        raise _Malformed(f"tensor {name!r} of shape {dims} has {array.size} values")
    return name, array.reshape(dims)


def _value(message: memoryview) -> Value:
    name = ""
    shape: list[int | None] = []
    for field, value in _fields(message):
        if field == 1:
            name = _text(value)
        elif field == 2:  # TypeProto . tensor_type . shape . dim . dim_value
            for tensor_type in _children(_submessage(value), 1):
                for dims in _children(tensor_type, 2):
                    for dim in _children(dims, 1):
                        sizes = [_signed(size) for number, size in _fields(dim) if number == 1]
                        shape.append(sizes[0] if sizes and sizes[0] > 0 else None)
    return Value(name, tuple(shape))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values of a message: an int for a varint, the bytes for anything else."""
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
            raise _Malformed(f"unknown wire type {wire}")
        if position + length > end:
            raise _Malformed(f"{position + length - end:,} bytes are missing at its end")
        yield tag >> 3, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise _Malformed("it ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _children(message: memoryview, field: int) -> Iterator[memoryview]:
    return (_submessage(value) for number, value in _fields(message) if number == field)


def _submessage(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _Malformed("a number stands where a message should")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_submessage(value)).decode("utf-8")


def _varints(value: int | memoryview) -> list[int]:
    """A repeated integer field, in its packed or its one-by-one form."""
    if isinstance(value, int):
        return [_signed(value)]
    numbers: list[int] = []
    position = 0
    while position < len(value):
        number, position = _varint(value, position)
        numbers.append(_signed(number))
    return numbers


def _signed(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise _Malformed("bytes stand where a number should")
    return value - (1 << 64) if value >= 1 << 63 else value
