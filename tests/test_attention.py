from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch.utils._python_dispatch import TorchDispatchMode

from fast_instantid.attention import IdentityEntry, identity_attention, region_mask

HEADS, CHANNELS, TOKENS = 4, 32, 16


def random_entry(chunks: int, seed: int = 0, tokens: int = TOKENS, **options: Any) -> IdentityEntry:
    generator = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, chunks, tokens, CHANNELS, generator=generator)
    return IdentityEntry.split(key, value, HEADS, **options)


def random_query(batch: int, num_tokens: int = 48) -> Tensor:
    return torch.randn(batch, num_tokens, CHANNELS, generator=torch.Generator().manual_seed(99))


def attention_by_hand(query: Tensor, entries: list[IdentityEntry]) -> Tensor:
    """Image by image and head by head, in float64."""
    out = torch.zeros_like(query, dtype=torch.float64)
    for entry in entries:
        images = len(query) // len(entry.key)
        for b, image in enumerate(query.double()):
            key, value = entry.key[b // images].double(), entry.value[b // images].double()
            per_head = [
                torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1) @ v
                for q, k, v in zip(image.chunk(HEADS, dim=-1), key, value, strict=True)
            ]
            scale = torch.as_tensor(entry.scale, dtype=torch.float64)
            out[b] += torch.cat(per_head, dim=-1) * (scale[b % len(scale)] if scale.ndim else scale)
    return out


def reference_mask(mask: Tensor, latent: tuple[int, int], num_tokens: int, batch: int) -> Tensor:
    """cubiq/ComfyUI_InstantID, CrossAttentionPatch.py, spelt out; ``(batch, num_tokens)``."""
    height, width = latent
    rows = height / math.sqrt(height * width / num_tokens)
    rows = int(rows) + int((num_tokens % int(rows)) != 0)
    columns = num_tokens // rows
    resized = F.interpolate(mask.unsqueeze(1), size=(rows, columns), mode="bilinear").squeeze(1)
    while len(resized) < batch:
        resized = torch.cat([resized, resized[-1:]])
    flat = resized[:batch].reshape(batch, -1)
    missing = num_tokens - rows * columns
    left = torch.zeros(batch, missing // 2)
    return torch.cat([left, flat, torch.zeros(batch, missing - missing // 2)], dim=1)


class OpCounts(TorchDispatchMode):
    """How often each operation ran, and how many tensors of at least ``size`` elements were newly allocated."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.calls: Counter[str] = Counter()
        self.allocated = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        if isinstance(out, Tensor) and out.numel() >= self.size:
            storages = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
            self.allocated += out.untyped_storage().data_ptr() not in storages
        return out


@pytest.mark.parametrize("images", [1, 2, 3, 4])
@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("faces", [1, 2, 3])
def test_attention_equals_the_formula(images: int, chunks: int, faces: int) -> None:
    query = random_query(chunks * images)
    entries = [random_entry(chunks, seed, scale=0.8 - seed) for seed in range(faces)]
    torch.testing.assert_close(
        identity_attention(query, entries), attention_by_hand(query, entries).float(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("rows", ["one", "image", "batch"])
def test_masks_for_all_for_each_image_and_for_the_whole_batch(rows: str) -> None:
    chunks, images, num_tokens = 2, 3, 48
    masks = torch.rand({"one": 1, "image": images, "batch": chunks * images}[rows], num_tokens, 1)
    query = random_query(chunks * images, num_tokens)
    entries = [
        random_entry(chunks, 0, scale=0.7 * masks),
        random_entry(chunks, 1, scale=torch.tensor(-0.4)),
        random_entry(chunks, 2, scale=1 - masks),
    ]
    torch.testing.assert_close(
        identity_attention(query, entries), attention_by_hand(query, entries).float(), rtol=0, atol=1e-5
    )


def test_tokens_of_several_references_and_of_several_faces_may_differ_in_number() -> None:
    query = random_query(2)
    entries = [random_entry(2, 0, tokens=3 * TOKENS), random_entry(2, 1)]
    torch.testing.assert_close(
        identity_attention(query, entries), attention_by_hand(query, entries).float(), rtol=0, atol=1e-5
    )


def test_regions_keep_faces_apart() -> None:
    left = torch.zeros(1, 48, 1)
    left[:, :24] = 1
    query = random_query(2)
    one, other = random_entry(1, 0), random_entry(1, 1)
    out = identity_attention(query, [one._replace(scale=left), other._replace(scale=1 - left)])
    assert torch.equal(out[:, :24], identity_attention(query, [one])[:, :24])
    assert torch.equal(out[:, 24:], identity_attention(query, [other])[:, 24:])


def test_weight_zero_adds_nothing() -> None:
    assert not identity_attention(random_query(2), [random_entry(2, scale=0.0)]).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half_and_close(dtype: torch.dtype) -> None:
    query = random_query(4)
    entry = random_entry(2)
    half = IdentityEntry(entry.key.to(dtype), entry.value.to(dtype), 0.8 * torch.rand(1, 48, 1, dtype=dtype))
    out = identity_attention(query.to(dtype), [half])
    assert out.dtype == dtype
    exact = attention_by_hand(query.to(dtype), [half])
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_attention_of_the_host_is_used_as_it_is_given() -> None:
    seen: list[tuple[torch.Size, ...]] = []

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen.append((query.shape, key.shape, value.shape))
        return torch.softmax(query @ key.mT * query.shape[-1] ** -0.5, dim=-1) @ value

    query, entries = random_query(6), [random_entry(2, 0), random_entry(2, 1)]
    out = identity_attention(query, entries, attend)
    torch.testing.assert_close(out, identity_attention(query, entries))
    head_dim = CHANNELS // HEADS
    face = torch.Size([2, HEADS, TOKENS, head_dim])
    assert seen == [(torch.Size([2, HEADS, 3 * 48, head_dim]), face, face)] * 2


@pytest.mark.parametrize("faces", [1, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("onto", [False, True])
def test_a_layer_costs_two_operations_per_face(faces: int, masked: bool, onto: bool) -> None:
    """An attention, and a product that is a sum as well; alone, the first product is just that."""
    chunks, images, num_tokens = 2, 4, 1024
    query = random_query(chunks * images, num_tokens)
    scale = torch.rand(1, num_tokens, 1) if masked else 0.8
    entries = [random_entry(chunks, seed, scale=scale) for seed in range(faces)]

    with OpCounts(size=query.numel()) as counts:
        identity_attention(query, entries, onto=query if onto else None)

    attentions = {name: calls for name, calls in counts.calls.items() if name.startswith("_scaled_dot_product")}
    assert sum(attentions.values()) == faces
    assert counts.calls["mul"] == 1 - onto
    assert counts.calls["addcmul" if masked else "add"] == faces - 1 + onto
    assert counts.allocated <= 2 * faces  # nothing of the size of the result but the results of these
    views = {"view", "_unsafe_view", "transpose", "unsqueeze", "detach", "slice"}
    assert set(counts.calls) - set(attentions) - views <= {"mul", "add", "addcmul"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "scale",
    [0.8, -2, torch.tensor(0.7), torch.rand(1, 48, 1), torch.rand(3, 48, 1), torch.rand(6, 48, 1)],
    ids=["number", "negative", "0-d", "one mask", "of images", "of the batch"],
)
def test_what_it_is_added_to_stays_as_it_is(scale: float | Tensor, dtype: torch.dtype) -> None:
    query, text = random_query(6).to(dtype), torch.randn(6, 48, CHANNELS).to(dtype)
    scale = scale.to(dtype) if isinstance(scale, Tensor) and scale.ndim else scale  # a weight is in float32
    entries = [random_entry(2, seed)._replace(scale=scale) for seed in range(2)]
    entries = [entry._replace(key=entry.key.to(dtype), value=entry.value.to(dtype)) for entry in entries]
    before = text.clone()
    out = identity_attention(query, entries, onto=text)
    assert torch.equal(text, before)
    assert out.dtype == dtype
    exact = before.double() + attention_by_hand(query, entries)
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=32 * torch.finfo(dtype).eps)


def test_no_value_is_looked_at_and_nothing_depends_on_one() -> None:
    """On the meta device there are no values to look at."""
    query = random_query(4).to("meta")
    mask = torch.rand(1, 48, 1, device="meta")
    entry = random_entry(2)
    entries = [IdentityEntry(entry.key.to("meta"), entry.value.to("meta"), mask)] * 2
    assert identity_attention(query, entries).shape == query.shape
    assert region_mask(torch.rand(2, 64, 64, device="meta"), (32, 32), 256, batch=3).shape == (3, 256, 1)


def test_one_graph_without_a_break_serves_every_face() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(identity_attention, backend=backend, fullgraph=True, dynamic=False)
    query = random_query(4)
    for seed in range(3):
        entry = random_entry(2, seed)
        torch.testing.assert_close(compiled(query, [entry]), identity_attention(query, [entry]))
    assert len(graphs) == 1


def test_a_graph_serves_every_weight() -> None:
    """The second one takes any number; ``alpha`` of torch.add would be compiled anew for each."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(identity_attention, backend=backend, fullgraph=True)
    query, entry = random_query(4), random_entry(2)
    with torch.no_grad():
        for weight in (0.1, 0.2, 0.3, 0.4, 0.5):
            entries = [entry._replace(scale=weight)]
            expected = identity_attention(query, entries, onto=query)
            torch.testing.assert_close(compiled(query, entries, onto=query), expected)
    assert len(graphs) <= 2


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("masks", [1, 2, 3, 6])
@pytest.mark.parametrize(
    "latent", [(32, 32), (16, 64), (128, 16), (33, 47), (13, 101), (101, 13), (9, 233), (233, 9), (5, 250), (255, 5)]
)
def test_region_mask_is_the_references_to_the_bit(latent: tuple[int, int], masks: int, batch: int) -> None:
    height, width = latent
    pixels = torch.rand(masks, 3 * height + 1, 5 * width, generator=torch.Generator().manual_seed(masks))
    for _ in range(2):  # the two resolutions at which SDXL attends
        height, width = -(-height // 2), -(-width // 2)
        num_tokens = height * width
        tokens = region_mask(pixels, latent, num_tokens, batch)
        assert tokens.shape == (1 if masks == 1 else batch, num_tokens, 1)
        expected = reference_mask(pixels, latent, num_tokens, batch)
        assert torch.equal(tokens.squeeze(-1).expand(batch, -1), expected)


def test_a_grid_that_is_guessed_too_small_is_padded_at_both_ends() -> None:
    """140 rows of 2 for the 128 rows of 3 that there are."""
    tokens = region_mask(torch.ones(1, 510, 10), (255, 5), 128 * 3, batch=1)
    assert torch.equal(tokens.flatten(), F.pad(torch.ones(280), (52, 52)))


def test_a_latent_of_a_single_row_has_a_mask() -> None:
    """The reference divides by zero here."""
    assert torch.equal(region_mask(torch.ones(1, 8, 800), (1, 100), 25, batch=1), torch.ones(1, 25, 1))


def test_a_region_is_where_it_was_drawn() -> None:
    pixels = torch.zeros(1, 64, 128)
    pixels[:, :32, 64:] = 1
    grid = region_mask(pixels, (64, 128), 32 * 64, batch=1).reshape(32, 64)
    assert grid[:16, 32:].all()
    assert grid.sum() == 16 * 32
