"""The fused kernel against float64: on a GPU, or else in Triton's interpreter where triton is installed."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fast_instantid.attention import IdentityEntry, identity_attention

if importlib.util.find_spec("triton") is None:
    pytest.skip(
        "triton is not installed (pip install triton), so the fused kernel is not tested", allow_module_level=True
    )

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and "triton" in sys.modules:
    pytest.skip("triton was imported before its interpreter could be asked for", allow_module_level=True)
with pytest.MonkeyPatch.context() as environment:
    if DEVICE == "cpu":
        environment.setenv("TRITON_INTERPRET", "1")
    from fast_instantid.fused.kernel import TILE, Tile, text_and_identity

HEADS, HEAD_DIM = 2, 64
CHANNELS = HEADS * HEAD_DIM
SMALL = Tile(queries=16, text=32, warps=4)
no_bfloat16 = pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter multiplies the bits of bfloat16")


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


class Layer:
    """Random inputs of one layer."""

    def __init__(
        self,
        batch: int = 4,
        queries: int = 40,
        text: int = 77,
        face: int = 16,
        chunks: int = 2,
        dtype: torch.dtype = torch.float16,
        scale: float | Tensor = 0.8,
        channels: int = CHANNELS,
        heads: int = HEADS,
    ) -> None:
        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, channels, device=DEVICE).to(dtype)

        self.heads = heads
        self.query = random(batch, queries)
        self.key, self.value = random(batch, text), random(batch, text)
        scale = scale.to(DEVICE, dtype) if isinstance(scale, Tensor) and scale.ndim else scale
        scale = scale.to(DEVICE) if isinstance(scale, Tensor) else scale
        self.entry = IdentityEntry.split(random(chunks, face), random(chunks, face), heads, scale)

    def fused(self, tile: Tile = SMALL) -> Tensor:
        out = torch.full_like(self.query, math.nan, memory_format=torch.contiguous_format)
        text_and_identity(self.query, self.key, self.value, self.entry, out, tile)
        return out

    def apart(self, dtype: torch.dtype | None = None) -> Tensor:
        """As the hosts do it without the kernel, in any precision."""
        query, key, value = (tensor.to(dtype or tensor.dtype) for tensor in (self.query, self.key, self.value))
        entry = [tensor.to(query.dtype) if isinstance(tensor, Tensor) else tensor for tensor in self.entry]
        split = (tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2) for tensor in (query, key, value))
        text = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        return identity_attention(query, [IdentityEntry(*entry)], onto=text)


def assert_exact(layer: Layer, out: Tensor) -> None:
    exact = layer.apart(torch.float64)
    assert out.dtype == layer.query.dtype
    steps = 8 if out.dtype == torch.float32 else 2  # of the type, at the largest number
    atol = steps * torch.finfo(out.dtype).eps * exact.abs().max().item()
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=no_bfloat16), torch.float32], ids=str
)
@pytest.mark.parametrize("text", [77, 154, 231])
@pytest.mark.parametrize("face", [16, 32, 48, 80])
def test_equals_the_formula(dtype: torch.dtype, text: int, face: int) -> None:
    layer = Layer(text=text, face=face, dtype=dtype)
    assert_exact(layer, layer.fused())


@pytest.mark.parametrize("queries", [1, 15, 16, 17, 64, 101])
def test_any_number_of_queries(queries: int) -> None:
    layer = Layer(queries=queries)
    assert_exact(layer, layer.fused())


@pytest.mark.parametrize("text", [1, 32, 33, 77])
@pytest.mark.parametrize("tile", [TILE, Tile(16, 16, 4), Tile(32, 64, 4), Tile(64, 32, 4)])
def test_any_tile(tile: Tile, text: int) -> None:
    layer = Layer(batch=2, text=text)
    assert_exact(layer, layer.fused(tile))


@pytest.mark.parametrize("head_dim", [16, 32, 128])
def test_other_heads(head_dim: int) -> None:
    layer = Layer(channels=3 * head_dim, heads=3)
    assert_exact(layer, layer.fused())


@pytest.mark.parametrize(("chunks", "batch"), [(1, 1), (1, 3), (2, 2), (2, 6), (3, 6), (4, 4)])
def test_chunks_share_the_keys_of_a_face(chunks: int, batch: int) -> None:
    layer = Layer(batch=batch, chunks=chunks)
    assert_exact(layer, layer.fused())


@pytest.mark.parametrize(
    "scale",
    [
        0.0,
        1,
        -0.4,
        torch.tensor(0.7),
        torch.rand(1, 40, 1),
        torch.rand(3, 40, 1),
        torch.rand(6, 40, 1),
        torch.rand(1, 40, 1).expand(3, 40, 1),
        (torch.arange(40) < 20).float().reshape(1, 40, 1),
    ],
    ids=["0", "1", "negative", "0-d", "one mask", "of images", "of the batch", "expanded", "region"],
)
def test_scales(scale: float | Tensor) -> None:
    layer = Layer(batch=6, scale=scale)
    assert_exact(layer, layer.fused())


def test_within_an_ulp_or_two_of_the_two_apart_and_nearer_to_the_truth() -> None:
    """Rounded once, where the two apart are rounded three times."""
    layer = Layer(queries=128)
    out, apart, exact = layer.fused().double(), layer.apart().double(), layer.apart(torch.float64)
    ulp = torch.finfo(torch.float16).eps * exact.abs().max()
    assert (out - apart).abs().max() <= 2 * ulp
    assert (out - exact).abs().mean() <= (apart - exact).abs().mean()


def test_large_scores_neither_overflow_nor_vanish() -> None:
    layer = Layer()
    layer.query *= 30
    out = layer.fused()
    assert out.isfinite().all()
    assert_exact(layer, out)


def test_reads_by_strides() -> None:
    """A projection of keys and values at once, and queries that are part of something."""
    layer = Layer()
    layer.key, layer.value = torch.cat([layer.key, layer.value], dim=-1).chunk(2, dim=-1)
    layer.query = torch.cat([layer.query, layer.query], dim=1)[:, 20:60]
    layer.entry = layer.entry._replace(key=torch.cat([layer.entry.key] * 2, dim=2)[:, :, 8:24])
    assert not layer.key.is_contiguous()
    assert_exact(layer, layer.fused())


@pytest.mark.parametrize("capability", [80, 86, 89, 90])
@pytest.mark.parametrize(("half", "text", "face", "scale"), [("fp16", 77, 16, "fp32"), ("bf16", 231, 96, "*bf16")])
def test_compiles_for_gpus_that_are_not_here(half: str, capability: int, text: int, face: int, scale: str) -> None:
    """To machine code without spilled registers, within the shared memory that a GPU of the kind has."""
    command = [sys.executable, "-c", COMPILE, str(capability), half, str(text), str(face), scale]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    shared, spills = map(int, done.stdout.split())
    assert shared <= {80: 163, 86: 99, 89: 99, 90: 227}[capability] * 1024
    assert spills == 0


COMPILE = """
import re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fast_instantid.fused.kernel import TILE, _text_and_identity as kernel, identity_block

capability, half, text, face, scale = sys.argv[1:]
constants = dict(
    TEXT=int(text), IDENTITY=int(face), MASKED="*" in scale, HEAD_DIM=64, QUERIES=TILE.queries,
    TEXT_BLOCK=TILE.text, IDENTITY_BLOCK=identity_block(int(face)),
)
signature, attributes = {}, {}
for place, name in enumerate(kernel.arg_names):
    if name in constants:
        signature[name] = "constexpr"
    elif name in ("scale", "factor"):
        signature[name] = scale if name == "scale" else "fp32"
    else:
        tensor = name in ("query", "key", "value", "id_key", "id_value", "out")
        signature[name] = "*" + half if tensor else "i32"
        if name not in ("images", "scale_rows", "num_queries", "scale_row"):
            attributes[(place,)] = [["tt.divisibility", 16]]
source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()}, attributes)
options = {"num_warps": TILE.warps, "num_stages": 2}
compiled = triton.compile(source, target=GPUTarget("cuda", int(capability), 32), options=options)
with tempfile.TemporaryDirectory() as folder:
    ptx = Path(folder, "kernel.ptx")
    ptx.write_text(compiled.asm["ptx"])
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    arch = "sm_" + capability + ("a" if int(capability) >= 90 else "")
    command = [ptxas, "-v", "-arch=" + arch, ptx, "-o", Path(folder, "kernel.cubin")]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
print(compiled.metadata.shared, re.search(r"(\\d+) bytes spill stores", log)[1])
"""
