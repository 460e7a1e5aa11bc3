"""The Triton kernel. Importing this module imports triton, so :mod:`.` does it at the first launch."""

# Triton is no dependency, so it may be absent, and its language is untyped.
# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUntypedFunctionDecorator=false
# pyright: reportMissingParameterType=false, reportOperatorIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportIndexIssue=false

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention import IdentityEntry


class Tile(NamedTuple):
    """Size of the work of one program: powers of 2 from 16, but for the warps."""

    queries: int
    """Queries per program."""
    text: int
    """Tokens per block of the text."""
    warps: int


TILE = Tile(queries=64, text=128, warps=4)
"""The default: one block holds a prompt of 77 tokens."""

_MAX_IDENTITY = 64  # four references


def text_and_identity(
    query: Tensor, key: Tensor, value: Tensor, entry: IdentityEntry, out: Tensor, tile: Tile = TILE
) -> None:
    """Write the sum of text attention and identity attention to ``out``.

    Args:
        query: ``(B, N, C)``, of float16, bfloat16 or float32; the width of a head is a power of 2 from 16.
        key, value: ``(B, T, C)`` of the text, of the query's dtype. Channels are contiguous, as they are in the query.
        entry: keys and values ``(G, heads, T, d)`` with ``heads * d = C``, contiguous in ``d``. The ``B / G`` images of
            a chunk read the same ones.
        out: ``(B, N, C)``, with contiguous channels.
    """
    batch, num_queries, _ = query.shape
    id_key, id_value, scale = entry.key, entry.value, entry.scale
    chunks, num_heads, identity, head_dim = id_key.shape
    masked = isinstance(scale, Tensor)
    scale_rows = len(scale) if masked and scale.ndim else 1
    # Each program reads a tile of queries of one head of one image, and all tokens.
    grid = (-(-num_queries // tile.queries), num_heads, batch)
    with torch.cuda.device_of(query):
        _text_and_identity[grid](
            query,
            key,
            value,
            id_key,
            id_value,
            scale if masked else float(scale),
            out,
            num_queries,
            batch // chunks,
            scale_rows,
            math.log2(math.e) / math.sqrt(head_dim),
            *query.stride()[:2],
            *key.stride()[:2],
            *value.stride()[:2],
            *id_key.stride()[:3],
            *id_value.stride()[:3],
            *(scale.stride()[:2] if masked and scale.ndim else (0, 0)),
            *out.stride()[:2],
            TEXT=key.shape[1],
            IDENTITY=identity,
            MASKED=masked,
            HEAD_DIM=head_dim,
            QUERIES=tile.queries,
            TEXT_BLOCK=tile.text,
            IDENTITY_BLOCK=identity_block(identity),
            num_warps=tile.warps,
            num_stages=2,  # of a longer prompt; three need more shared memory than consumer GPUs have
        )


def identity_block(tokens: int) -> int:
    """Return the number of identity tokens per block."""
    return min(max(1 << (tokens - 1).bit_length(), 16), _MAX_IDENTITY)


@triton.jit
def _text_and_identity(
    query,
    key,
    value,
    id_key,
    id_value,
    scale,  # a number, or where MASKED is set, a tensor of weights
    out,
    num_queries,
    images,  # of a chunk
    scale_rows,
    factor,  # log2(e) / sqrt(d), since the hardware's exponential is that of base 2
    query_batch,  # strides
    query_row,
    key_batch,
    key_row,
    value_batch,
    value_row,
    id_key_chunk,
    id_key_head,
    id_key_row,
    id_value_chunk,
    id_value_head,
    id_value_row,
    scale_image,
    scale_row,
    out_batch,
    out_row,
    TEXT: tl.constexpr,
    IDENTITY: tl.constexpr,
    MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    TEXT_BLOCK: tl.constexpr,
    IDENTITY_BLOCK: tl.constexpr,
):
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    head = tl.program_id(1)
    columns = tl.arange(0, HEAD_DIM)
    image = tl.program_id(2).to(tl.int64)  # a batch may have more than 2^31 elements
    chunk = image // images
    valid = rows < num_queries

    of_head = head * HEAD_DIM  # the face's keys and values have a stride for heads instead
    places = rows[:, None] * query_row + of_head + columns[None, :]
    q = tl.load(query + image * query_batch + places, valid[:, None], 0.0)
    text_key, text_value = key + image * key_batch + of_head, value + image * value_batch + of_head
    text = _attention(q, text_key, key_row, text_value, value_row, columns, factor, TEXT, TEXT_BLOCK)
    face_key = id_key + chunk * id_key_chunk + head * id_key_head
    face_value = id_value + chunk * id_value_chunk + head * id_value_head
    face = _attention(q, face_key, id_key_row, face_value, id_value_row, columns, factor, IDENTITY, IDENTITY_BLOCK)
    if MASKED:
        weights = tl.load(scale + (image % scale_rows) * scale_image + rows * scale_row, valid, 0.0)
        face *= weights.to(tl.float32)[:, None]
    else:
        face *= scale
    to = out + image * out_batch + rows[:, None] * out_row + of_head + columns[None, :]
    tl.store(to, (text + face).to(q.dtype), valid[:, None])


@triton.jit
def _attention(q, key, key_row, value, value_row, columns, factor, LENGTH: tl.constexpr, BLOCK: tl.constexpr):
    """Return ``softmax(q K^T / sqrt(d)) V`` of a tile of queries, in float32.

    Loops over blocks of tokens with a running maximum (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022).
    A prompt of 77 tokens and a face of 16 are one block each, for which the compiler removes the loop.
    """
    highest = tl.full([q.shape[0]], float("-inf"), tl.float32)
    total = tl.zeros([q.shape[0]], tl.float32)
    attended = tl.zeros([q.shape[0], q.shape[1]], tl.float32)
    for start in range(0, LENGTH, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        valid = tokens < LENGTH
        k = tl.load(key + tokens[:, None] * key_row + columns[None, :], valid[:, None], 0.0)
        v = tl.load(value + tokens[:, None] * value_row + columns[None, :], valid[:, None], 0.0)
        # "ieee" keeps float32 from being rounded to TF32; it has no effect on smaller types.
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * factor
        scores = tl.where(valid[None, :], scores, float("-inf"))
        now_highest = tl.maximum(highest, tl.max(scores, 1))  # finite: each block has a token
        kept = tl.exp2(highest - now_highest)
        weights = tl.exp2(scores - now_highest[:, None])
        total = total * kept + tl.sum(weights, 1)
        attended = tl.dot(weights.to(v.dtype), v, attended * kept[:, None], input_precision="ieee")
        highest = now_highest
    return attended / total[:, None]
