from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from examples.tiny_adapter import write_tiny_adapter
from fast_instantid.cache import Cache
from fast_instantid.errors import BackendError, FastInstantIDError, ModelFileError
from fast_instantid.identity import Adapter, Identity
from fast_instantid.identity.bank import IdentityBank, project_bank
from fast_instantid.identity.embeddings import combine_embeddings, unconditional_embedding
from fast_instantid.identity.linear import linear
from fast_instantid.identity.resampler import Resampler
from fast_instantid.recorder import Recorder
from tests.adversity import needs_posix
from tests.live_bytes import LiveBytes

CHANNELS = [16] * 4 + [32] * 20 + [32] * 30 + [16] * 6 + [32] * 10
SDXL_CHANNELS = [640] * 4 + [1280] * 20 + [1280] * 30 + [640] * 6 + [1280] * 10


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    path = write_tiny_adapter(tmp_path / "ip-adapter.bin", channels=CHANNELS)
    return Adapter.load(path, "cpu", torch.float32, Cache())


def embeddings(count: int = 1, seed: int = 0) -> Tensor:
    """``(count, 512)``: as large as ArcFace's, whose norm is about 20."""
    return torch.randn(count, 512, generator=torch.Generator().manual_seed(seed))


@contextmanager
def resampler_runs() -> Iterator[list[int]]:
    """The batch size of each run of a resampler."""
    batches: list[int] = []

    def note(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, Resampler):
            batches.append(len(inputs[0]))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield batches
    finally:
        handle.remove()


def assert_same(one: Identity, other: Identity) -> None:
    assert one.num_references == other.num_references
    assert torch.equal(one.tokens, other.tokens)
    for mine, theirs in ((one.bank.keys, other.bank.keys), (one.bank.values, other.bank.values)):
        assert len(mine) == len(theirs)
        assert all(map(torch.equal, mine, theirs))


# The reference's formulas, spelt out (cubiq/ComfyUI_InstantID, InstantID.py and resampler.py), cond and uncond apart.


def reference_combined(stacked: Tensor, how: str) -> Tensor:
    """``(N, 1, 512)`` to ``(M, 1, 512)``"""
    if len(stacked) > 1 and how == "average":
        return torch.mean(stacked, dim=0).unsqueeze(0)
    if len(stacked) > 1 and how == "norm average":
        return torch.mean(stacked / torch.norm(stacked, dim=0, keepdim=True), dim=0).unsqueeze(0)
    return stacked


def reference_noise(combined: Tensor, noise: float) -> Tensor:
    """Seeds the global generator."""
    if noise > 0:
        torch.manual_seed(int(torch.sum(combined).item()) % 1000000007)
        return noise * torch.rand_like(combined)
    return torch.zeros_like(combined)


def reference_tokens(weights: dict[str, Tensor], embedding: Tensor, depth: int = 2, head_dim: int = 64) -> Tensor:
    """``(M, 1, 512)`` to ``(M, 16, width)``"""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def heads(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], -1, head_dim).transpose(1, 2)

    x = F.linear(embedding, weights["proj_in.weight"], weights["proj_in.bias"])
    latents = weights["latents"].repeat(len(embedding), 1, 1)
    for i in range(depth):
        normed = norm(f"layers.{i}.0.norm2", latents)
        both = torch.cat([norm(f"layers.{i}.0.norm1", x), normed], dim=-2)
        key, value = F.linear(both, weights[f"layers.{i}.0.to_kv.weight"]).chunk(2, dim=-1)
        query = F.linear(normed, weights[f"layers.{i}.0.to_q.weight"])
        scores = torch.softmax(heads(query) @ heads(key).mT / head_dim**0.5, dim=-1)
        attended = (scores @ heads(value)).transpose(1, 2).flatten(2)
        latents = latents + F.linear(attended, weights[f"layers.{i}.0.to_out.weight"])
        hidden = F.gelu(F.linear(norm(f"layers.{i}.1.0", latents), weights[f"layers.{i}.1.1.weight"]))
        latents = latents + F.linear(hidden, weights[f"layers.{i}.1.3.weight"])
    return norm("norm_out", F.linear(latents, weights["proj_out.weight"], weights["proj_out.bias"]))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("how", ["average", "norm average", "concat"])
@pytest.mark.parametrize("noise", [0.0, 0.35, 1.0])
def test_combination_and_noise_are_the_references_to_the_bit(count: int, how: Any, noise: float) -> None:
    for seed in range(20):
        faces = embeddings(count, seed)
        combined = combine_embeddings(faces, how)
        assert torch.equal(combined, reference_combined(faces.unsqueeze(1), how))
        assert torch.equal(unconditional_embedding(combined, noise), reference_noise(combined, noise))


def test_noise_of_an_embedding_with_a_negative_sum_is_the_references() -> None:
    combined = -embeddings().abs().unsqueeze(1)
    assert torch.equal(unconditional_embedding(combined, 0.5), reference_noise(combined, 0.5))


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.array, torch.tensor])
def test_noise_of_any_kind_of_number_is_the_same(kind: Any) -> None:
    combined = embeddings().unsqueeze(1)
    made = unconditional_embedding(combined, kind(0.5))
    assert made.dtype == torch.float32
    assert torch.equal(made, unconditional_embedding(combined, 0.5))


def test_global_random_state_is_left_alone(adapter: Adapter) -> None:
    before = torch.get_rng_state()
    adapter.identity(embeddings(3), combine="norm average", noise=0.35)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("how", ["average", "norm average", "concat"])
def test_identity_equals_the_reference_computed_step_by_step(adapter: Adapter, how: Any) -> None:
    faces = embeddings(3)
    identity = adapter.identity(faces, combine=how, noise=0.35)

    weights = {name: tensor.double() for name, tensor in adapter.weights.image_proj.items()}
    combined = reference_combined(faces.unsqueeze(1), how)
    cond = reference_tokens(weights, combined.double()).flatten(0, 1)
    uncond = reference_tokens(weights, reference_noise(combined, 0.35).double()).flatten(0, 1)
    references = 3 if how == "concat" else 1
    assert identity.num_references == references
    assert identity.tokens.shape == (2, 16 * references, 64)
    assert identity.num_layers == len(CHANNELS)
    for row, tokens in enumerate((uncond, cond)):
        torch.testing.assert_close(identity.tokens[row].double(), tokens, rtol=0, atol=1e-5)
        for i, (to_key, to_value) in enumerate(adapter.weights.layers):
            for got, projection in ((identity.bank.keys[i], to_key), (identity.bank.values[i], to_value)):
                torch.testing.assert_close(got[row].double(), tokens @ projection.double().mT, rtol=0, atol=1e-5)


def test_tokens_of_concatenated_references_are_those_of_each(adapter: Adapter) -> None:
    faces = embeddings(3)
    together = adapter.identity(faces, combine="concat").tokens[1].unflatten(0, (3, 16))
    for face, tokens in zip(faces, together, strict=True):
        torch.testing.assert_close(adapter.identity(face).tokens[1], tokens)


def test_cond_and_uncond_in_one_pass_equal_two_passes(adapter: Adapter) -> None:
    resampler = Resampler.from_state_dict(adapter.weights.image_proj)
    combined = embeddings().unsqueeze(1)
    with resampler_runs() as batches:
        tokens = adapter.identity(embeddings(), noise=0.5).tokens
    assert batches == [2]
    torch.testing.assert_close(tokens[1:], resampler(combined))
    torch.testing.assert_close(tokens[:1], resampler(unconditional_embedding(combined, 0.5)))


def test_asking_again_runs_no_resampler_and_gives_the_same_to_the_bit(adapter: Adapter) -> None:
    with resampler_runs() as batches:
        first = adapter.identity(embeddings(), noise=0.2)
        again = adapter.identity(embeddings().numpy(), noise=0.2)
        assert batches == [2]
        uncached = Adapter(adapter.weights, adapter.placement, Cache(max_bytes=0)).identity(embeddings(), noise=0.2)
        assert batches == [2, 2]
    assert_same(first, again)
    assert_same(first, uncached)


def test_the_disk_tier_gives_the_same_to_the_bit(adapter: Adapter, tmp_path: Path) -> None:
    def fresh() -> Adapter:
        return Adapter(adapter.weights, adapter.placement, Cache(directory=tmp_path / "cache"))

    first = fresh().identity(embeddings(2), combine="concat", noise=0.2)
    with resampler_runs() as batches:
        again = fresh().identity(embeddings(2), combine="concat", noise=0.2)
    assert batches == []
    assert_same(first, again)


def test_the_adapter_is_hashed_only_where_other_processes_look(adapter: Adapter, tmp_path: Path) -> None:
    copy = tmp_path / "a copy.bin"
    copy.write_bytes(adapter.weights.path.read_bytes())

    def spans(cache: Cache) -> list[str]:
        with Recorder() as recorded:
            for path in (adapter.weights.path, adapter.weights.path, copy):
                Adapter.load(path, "cpu", torch.float32, cache).identity(embeddings())
        return [span.name for span in recorded.spans if span.name in ("fingerprint", "project")]

    assert spans(Cache()) == ["project", "project"]
    told = spans(Cache(directory=tmp_path / "cache"))
    assert told == ["fingerprint", "project", "fingerprint"], "the same content is one adapter"
    assert spans(Cache(directory=tmp_path / "cache")) == [], "another process knows these files"


def test_whatever_shapes_an_identity_is_part_of_its_key(adapter: Adapter, tmp_path: Path) -> None:
    other_path = write_tiny_adapter(tmp_path / "other.bin", channels=CHANNELS, seed=1)
    other_weights = Adapter.load(other_path, "cpu", torch.float32, adapter.cache)
    other_dtype = Adapter.load(adapter.weights.path, "cpu", torch.bfloat16, adapter.cache)
    faces = embeddings(2)
    one_bit = faces.clone()
    one_bit[1, 511] = torch.nextafter(one_bit[1, 511], torch.tensor(9.0))
    with resampler_runs() as batches:
        identities = [
            adapter.identity(faces),
            adapter.identity(faces, combine="norm average"),
            adapter.identity(faces, combine="concat"),
            adapter.identity(faces, combine="concat", noise=0.1),
            adapter.identity(faces.flip(0), combine="concat"),
            adapter.identity(one_bit, combine="concat"),
            other_weights.identity(faces),
            other_dtype.identity(faces),
        ]
    assert len(batches) == len(identities)
    assert other_dtype.identity(faces).bank.values[0].dtype == torch.bfloat16


def test_an_adapter_edited_in_place_under_its_old_name_misses(tmp_path: Path) -> None:
    cache, path = Cache(), tmp_path / "ip-adapter.bin"
    made = [
        Adapter.load(write_tiny_adapter(path, channels=CHANNELS, seed=seed), "cpu", torch.float32, cache).identity(
            embeddings()
        )
        for seed in (0, 1)
    ]
    assert not torch.equal(made[0].tokens, made[1].tokens)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_projection_holds_one_weight_at_a_time(dtype: torch.dtype) -> None:
    layers = [(torch.randn(width, 256), torch.randn(width, 256)) for width in [64] * 4 + [128] * 20]
    tokens = torch.randn(2, 16, 256)
    with LiveBytes() as live:
        bank = project_bank(layers, tokens, torch.device("cpu"), dtype)
    largest = 128 * 256 * dtype.itemsize
    whole = sum(key.numel() + value.numel() for key, value in layers) * dtype.itemsize
    transient = live.peak - bank.nbytes - tokens.numel() * dtype.itemsize
    assert largest / 2 < transient <= largest  # a lower bound too: the count must see what it is there to see
    assert whole > 30 * largest
    assert live.conversions == 2 * len(layers) + 1  # each weight once, and the tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_resampler_holds_one_weight_in_another_dtype_and_gives_what_it_would_as_a_whole(
    adapter: Adapter, dtype: torch.dtype
) -> None:
    weights = adapter.weights.image_proj
    resampler = Resampler.from_state_dict(weights)
    pair = torch.stack([embeddings(), embeddings() * 0.5]).to(dtype)
    with torch.no_grad(), LiveBytes() as live:
        tokens = resampler(pair)
    whole = sum(tensor.numel() for tensor in weights.values()) * dtype.itemsize
    largest = max(tensor.numel() for tensor in weights.values()) * dtype.itemsize
    activations = 3 * 2 * 16 * 256 * dtype.itemsize  # of two rows of 16 latents, 256 wide inside the feed-forward
    assert largest < live.peak < largest + activations < whole
    assert sum(live.alive.values()) == tokens.nbytes
    assert all(tensor.dtype == torch.float32 for tensor in resampler.parameters())
    assert torch.equal(tokens, resampler.to(dtype)(pair))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(2, 16), (34,), (1,), (2, 96)])
@pytest.mark.parametrize("library", ["oneDNN, if it is there", "MKL"])
def test_a_converted_weight_is_multiplied_in_blocks_to_the_same_as_a_whole(
    dtype: torch.dtype, shape: tuple[int, ...], library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block has 1280 rows of 1024 weights: two of them, one and a part, a part."""
    if library == "MKL":
        monkeypatch.setattr("fast_instantid.identity.linear.has_onednn", lambda dtype: False)
    inputs = torch.randn(*shape, 1024)
    for width in (2560, 1400, 64):
        weight, bias = torch.randn(width, 1024).to(dtype), torch.randn(width).to(dtype)
        with LiveBytes() as live:
            product = linear(inputs, weight, bias)
        assert torch.equal(product, linear(inputs, weight.float(), bias.float()))
        assert product.shape == (*shape, width)
        assert product.is_contiguous()
        torch.testing.assert_close(product, F.linear(inputs, weight.float(), bias.float()), rtol=1e-4, atol=1e-4)
        block = min(1280, width) * 1024 * 4
        assert block <= live.peak <= block + 3 * product.nbytes + inputs.nbytes


def test_products_have_gradients() -> None:
    """Training goes through them."""
    inputs, weight = torch.randn(2, 16, 64, requires_grad=True), torch.randn(32, 64, requires_grad=True)
    both = [inputs, weight]
    expected = torch.autograd.grad((F.linear(*both) ** 2).sum(), both)
    for found, value in zip(torch.autograd.grad((linear(*both) ** 2).sum(), both), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-4)
    alone = torch.autograd.grad((linear(inputs.detach(), weight) ** 2).sum(), weight)
    torch.testing.assert_close(alone[0], expected[1], rtol=1e-4, atol=1e-4)


def test_the_adapter_keeps_neither_resampler_nor_weights_in_another_dtype(adapter: Adapter) -> None:
    half = Adapter(adapter.weights, Adapter.load(adapter.weights.path, "cpu", torch.float16).placement, Cache())
    with LiveBytes() as live:
        identity = half.identity(embeddings())
    assert sum(live.alive.values()) == identity.nbytes
    assert all(tensor.dtype == torch.float32 for tensor in adapter.weights.image_proj.values())


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("loaded_in", [True, False])
@pytest.mark.parametrize("used_in", [True, False])
def test_works_in_and_out_of_inference_mode(tmp_path: Path, suffix: str, loaded_in: bool, used_in: bool) -> None:
    """ComfyUI runs nodes under it; an identity made there is used anywhere."""
    path = write_tiny_adapter(tmp_path / f"ip-adapter{suffix}", channels=CHANNELS)
    with torch.inference_mode(loaded_in):
        adapter = Adapter.load(path, "cpu", torch.float32, Cache())
    with torch.inference_mode(used_in):
        identity = adapter.identity(embeddings())
        identity.save(tmp_path / "identity.safetensors")
        loaded = Identity.load(tmp_path / "identity.safetensors")
    for one in (identity, loaded):
        assert not any(tensor.is_inference() for tensor in (one.tokens, *one.bank.keys, *one.bank.values))
    expected = Adapter.load(path, "cpu", torch.float32, Cache()).identity(embeddings())
    assert torch.equal(identity.bank.keys[-1], expected.bank.keys[-1])


@pytest.mark.parametrize("kept_on_disk", [False, True])
def test_an_adapter_file_replaced_under_a_loaded_adapter_does_not_mix_them_up(
    tmp_path: Path, kept_on_disk: bool
) -> None:
    path, cache = tmp_path / "ip-adapter.bin", Cache(directory=tmp_path / "cache" if kept_on_disk else None)
    old = Adapter.load(write_tiny_adapter(path, channels=CHANNELS, seed=0), "cpu", torch.float32, cache)
    write_tiny_adapter(tmp_path / "new.bin", channels=CHANNELS, seed=1).replace(path)
    from_old, from_new = old.identity(embeddings()), Adapter.load(path, "cpu", None, cache).identity(embeddings())
    assert not torch.equal(from_old.tokens, from_new.tokens)
    assert torch.equal(from_new.tokens, Adapter.load(path, "cpu", None, Cache()).identity(embeddings()).tokens)


@pytest.mark.parametrize("mapped_from", [0, 64 << 20], ids=["mapped", "in memory"])
@pytest.mark.parametrize("change", ["shortened", "emptied", "other weights", "replaced", "removed"])
def test_an_adapter_file_that_changes_kills_nothing_and_gives_no_wrong_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped_from: int, change: str
) -> None:
    monkeypatch.setattr("fast_instantid.weights.MAPPED_FROM", mapped_from)
    path, other = (write_tiny_adapter(tmp_path / f"{seed}.bin", channels=CHANNELS, seed=seed) for seed in range(2))
    expected = Adapter.load(path, "cpu", None, Cache()).identity(embeddings())
    caches = [Cache(), Cache(directory=tmp_path)]
    loaded = [Adapter.load(path, "cpu", None, cache) for cache in caches]
    times = path.stat()
    {
        "shortened": lambda: os.truncate(path, 5000),
        "emptied": lambda: os.truncate(path, 0),
        "other weights": lambda: path.write_bytes(other.read_bytes()),
        "replaced": lambda: shutil.copy(other, tmp_path / "new").replace(path),
        "removed": path.unlink,
    }[change]()
    if path.exists():
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for cache, adapter in zip(caches, loaded, strict=True):
        if mapped_from == 0 and change in ("shortened", "emptied", "other weights"):
            with pytest.raises(ModelFileError, match="changed while it was in use; load it again"):
                adapter.identity(embeddings())
            assert cache.stats.entries == 0
        else:
            assert torch.equal(adapter.identity(embeddings()).bank.keys[-1], expected.bank.keys[-1])
    assert len([*tmp_path.rglob("fast-instantid-cache/*")]) == caches[1].stats.entries + 1, "and what the file is"


def test_projecting_twice_gives_the_same_to_the_bit() -> None:
    layers = [(torch.randn(width, 64), torch.randn(width, 64)) for width in CHANNELS]
    tokens = torch.randn(2, 16, 64)
    one, other = (project_bank(layers, tokens, torch.device("cpu"), torch.float32) for _ in range(2))
    assert all(map(torch.equal, one.keys + one.values, other.keys + other.values))
    for (to_key, _), key in zip(layers, one.keys, strict=True):
        torch.testing.assert_close(key, tokens @ to_key.mT)


def test_an_identity_of_real_size_is_below_eleven_megabytes() -> None:
    def empty(width: int) -> Tensor:
        return torch.empty(2, 16, width, dtype=torch.float16, device="meta")

    bank = IdentityBank(tuple(map(empty, SDXL_CHANNELS)), tuple(map(empty, SDXL_CHANNELS)))
    identity = Identity(empty(2048), bank)
    assert identity.num_layers == 70
    assert bank.nbytes == 2 * 16 * sum(SDXL_CHANNELS) * 2 * 2 == 10_649_600
    assert identity.nbytes == bank.nbytes + 2 * 16 * 2048 * 2
    # What the published method keeps in its place: the weights of all layers, and the resampler.
    weights = 2 * 2048 * sum(SDXL_CHANNELS) * 2
    assert weights / bank.nbytes == 64
    with torch.device("meta"):
        resampler = Resampler(
            dim=1280, depth=4, inner_dim=1280, feed_forward_dim=5120, num_queries=16, embedding_dim=512, output_dim=2048
        ).half()
    kept = weights + sum(parameter.nbytes for parameter in resampler.parameters())
    assert kept / 1e6 == pytest.approx(845.5, abs=0.05)


def test_to_moves_everything_and_returns_itself_where_nothing_changes(adapter: Adapter) -> None:
    identity = adapter.identity(embeddings(2), combine="concat")
    assert identity.to() is identity
    assert identity.to("cpu", torch.float32) is identity
    half = identity.to(dtype=torch.float16)
    assert {t.dtype for t in (half.tokens, *half.bank.keys, *half.bank.values)} == {torch.float16}
    assert half.nbytes == identity.nbytes / 2
    assert half.num_references == 2
    assert identity.to("meta").tokens.is_meta
    assert identity.tokens.dtype == torch.float32


def test_to_takes_what_a_tensors_to_takes(adapter: Adapter) -> None:
    identity = adapter.identity(embeddings())
    meta, half = torch.device("meta"), torch.float16
    for given, named, device, dtype in (
        ((half,), {}, "cpu", half),
        (("meta",), {}, "meta", torch.float32),
        ((meta, half), {}, "meta", half),
        ((half, meta), {}, "meta", half),
        ((None, half), {}, "cpu", half),
        (("meta",), {"dtype": half}, "meta", half),
        (("float16",), {"device": meta}, "meta", half),
    ):
        moved = identity.to(*given, **named)
        assert {t.dtype for t in (moved.tokens, *moved.bank.values)} == {dtype}
        assert moved.bank.keys[0].device.type == device
        if device == "meta":
            with pytest.raises(BackendError, match="device 'meta' is not known to torch, or cannot be used"):
                adapter.to(*given, **named)
        else:
            assert adapter.to(*given, **named).placement.dtype == dtype
    for given, named in (((half, torch.float32), {}), (("cpu", "meta"), {}), ((half,), {"dtype": half})):
        for thing in (identity, adapter):
            with pytest.raises(TypeError, match="one device or dtype too many"):
                thing.to(*given, **named)


def test_an_identity_changed_in_place_is_made_again(adapter: Adapter) -> None:
    expected = Adapter(adapter.weights, adapter.placement, Cache()).identity(embeddings())
    adapter.identity(embeddings()).tokens.mul_(2)
    adapter.identity(embeddings()).bank.values[3].zero_()
    assert_same(adapter.identity(embeddings()), expected)


@needs_posix
def test_a_saved_identity_is_for_its_owner_alone(adapter: Adapter, tmp_path: Path) -> None:
    path = tmp_path / "anna.safetensors"
    path.touch(0o644)
    adapter.identity(embeddings()).save(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_identity_is_immutable_and_says_what_it_is(adapter: Adapter) -> None:
    identity = adapter.identity(embeddings(2), combine="concat")
    with pytest.raises(FrozenInstanceError):
        identity.tokens = torch.zeros(1)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(FrozenInstanceError):
        identity.bank.keys = ()  # pyright: ignore[reportAttributeAccessIssue]
    for said in ("70 layers", "2 x 16 tokens", "MB", "float32", "cpu"):
        assert said in repr(identity)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_saved_identity_loads_as_it_was(adapter: Adapter, tmp_path: Path, dtype: torch.dtype) -> None:
    identity = adapter.identity(embeddings(3), combine="concat", noise=0.1).to(dtype=dtype)
    path = tmp_path / "face.safetensors"
    identity.save(path)
    loaded = Identity.load(path)
    path.unlink()
    assert_same(identity, loaded)
    assert loaded.tokens.dtype == dtype


def test_what_is_no_identity_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(ModelFileError, match="no such file"):
        Identity.load(path)
    with pytest.raises(ModelFileError, match="not an identity"):
        Identity.load(adapter.weights.path)
    save_file({"tokens": torch.zeros(2, 1, 16, 64)}, path)
    with pytest.raises(ModelFileError, match="not an identity"):
        Identity.load(path)
    save_file({"tokens": torch.zeros(2, 1, 16, 64)}, path, {"format": "fast-instantid identity", "version": "99"})
    with pytest.raises(ModelFileError, match="Update fast-instantid"):
        Identity.load(path)
    identity = adapter.identity(embeddings())
    incomplete = dict(identity.to_record())
    del incomplete["3.value"]
    save_file(incomplete, path, {"format": "fast-instantid identity", "version": "2"})
    with pytest.raises(ModelFileError, match="damaged identity: layer 3 has"):
        Identity.load(path)
    identity.save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="incomplete download"):
        Identity.load(path)
    with pytest.raises(OSError, match="missing"):
        identity.save(tmp_path / "missing" / "face.safetensors")


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (np.zeros(256), {}, "(256,)"),
        (np.zeros((0, 512)), {}, "(0, 512)"),
        (np.zeros((2, 1, 512)), {}, "(2, 1, 512)"),
        (np.full(512, np.nan), {}, "NaN or infinity"),
        (torch.full((2, 512), torch.inf), {"combine": "concat"}, "NaN or infinity"),
        (np.zeros((2, 512)), {"combine": "norm average"}, "NaN or infinity"),
        (np.ones(512), {"combine": "median"}, "average, norm average, concat"),
        (np.ones(512), {"noise": -0.1}, "noise -0.1"),
        (np.ones(512), {"noise": 1.5}, "noise 1.5"),
        (np.ones(512), {"noise": float("nan")}, "noise nan"),
    ],
)
def test_unusable_embeddings_and_options_are_refused(adapter: Adapter, given: Any, options: Any, said: str) -> None:
    with pytest.raises(FastInstantIDError) as error:
        adapter.identity(given, **options)
    assert said in str(error.value)


def test_any_array_of_embeddings_will_do(adapter: Adapter) -> None:
    expected = adapter.identity(embeddings())
    read_only = embeddings()[0].numpy().copy()
    read_only.flags.writeable = False
    for given in (embeddings()[0], embeddings().double(), read_only, read_only[::-1].copy()[::-1], read_only.tolist()):
        assert_same(adapter.identity(given), expected)
