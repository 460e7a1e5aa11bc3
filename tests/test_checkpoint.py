from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from examples.tiny_adapter import write_tiny_adapter
from fast_instantid.errors import ModelFileError
from fast_instantid.identity.checkpoint import read_adapter
from fast_instantid.identity.resampler import Resampler
from fast_instantid.weights import read_tensors

CHANNELS = [32] * 4 + [64] * 20 + [64] * 30 + [32] * 6 + [64] * 10

# What the published ip-adapter.bin holds beside its projections, with its 4 resampler layers.
PUBLISHED_RESAMPLER_KEYS = {
    "latents",
    *(f"{part}.{kind}" for part in ("proj_in", "proj_out", "norm_out") for kind in ("weight", "bias")),
    *(f"layers.{i}.0.{part}.weight" for i in range(4) for part in ("norm1", "norm2", "to_q", "to_kv", "to_out")),
    *(f"layers.{i}.0.{part}.bias" for i in range(4) for part in ("norm1", "norm2")),
    *(f"layers.{i}.1.{part}" for i in range(4) for part in ("0.weight", "0.bias", "1.weight", "3.weight")),
}


@pytest.fixture(params=["ip-adapter.bin", "ip-adapter.safetensors"])
def adapter_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_tiny_adapter(tmp_path / request.param, channels=CHANNELS)


def save(path: Path, tensors: dict[str, torch.Tensor], nested: bool = False) -> Path:
    """Write dotted keys to either format; ``nested`` makes dictionaries of the first part of each."""
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    elif nested:
        tree: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            head, _, tail = name.partition(".")
            tree.setdefault(head, {})[tail] = tensor
        torch.save(tree, path)
    else:
        torch.save(tensors, path)
    return path


def test_parameter_names_are_those_of_the_published_file() -> None:
    with torch.device("meta"):
        resampler = Resampler(
            dim=1280, depth=4, inner_dim=1280, feed_forward_dim=5120, num_queries=16, embedding_dim=512, output_dim=2048
        )
    assert set(resampler.state_dict()) == PUBLISHED_RESAMPLER_KEYS
    assert sum(p.numel() for p in resampler.parameters()) == pytest.approx(82.0e6, rel=1e-3)  # research, section 2.2


def test_layers_come_in_the_order_of_the_checkpoint(adapter_path: Path) -> None:
    weights = read_adapter(adapter_path)
    tensors = read_tensors(adapter_path)
    assert [len(key) for key, _ in weights.layers] == CHANNELS
    for i, (key, value) in enumerate(weights.layers):
        assert torch.equal(key, tensors[f"ip_adapter.{2 * i + 1}.to_k_ip.weight"])
        assert torch.equal(value, tensors[f"ip_adapter.{2 * i + 1}.to_v_ip.weight"])


def test_a_fingerprint_is_of_the_tensors_whatever_the_file(tmp_path: Path) -> None:
    def write(name: str, seed: int = 0) -> Path:
        return write_tiny_adapter(tmp_path / name, channels=CHANNELS, seed=seed)

    pickle, safetensors = read_adapter(write("one.bin")), read_adapter(write("two.safetensors"))
    assert pickle.fingerprint == safetensors.fingerprint
    assert pickle.version != safetensors.version
    seen = {pickle.fingerprint, read_adapter(write("other.bin", seed=1)).fingerprint}
    tensors = read_tensors(tmp_path / "two.safetensors")
    for name in ("image_proj.latents", "ip_adapter.1.to_k_ip.weight", "ip_adapter.3.to_v_ip.weight"):
        last_bit = tensors[name].clone()
        last_bit.view(torch.int32).view(-1)[-1] ^= 1
        save_file(tensors | {name: last_bit}, tmp_path / "changed.safetensors")
        seen.add(read_adapter(tmp_path / "changed.safetensors").fingerprint)
    assert len(seen) == 5


def test_a_version_tells_files_apart_that_lay_in_one_place(tmp_path: Path) -> None:
    path = tmp_path / "ip-adapter.safetensors"
    before = read_adapter(write_tiny_adapter(path, channels=CHANNELS))
    assert read_adapter(path).version == before.version
    times = path.stat()
    write_tiny_adapter(tmp_path / "new.safetensors", channels=CHANNELS, seed=1).replace(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert read_adapter(path).version != before.version


def test_nested_and_dotted_keys_read_alike(tmp_path: Path) -> None:
    tensors = read_tensors(write_tiny_adapter(tmp_path / "a.safetensors", channels=CHANNELS))
    nested = read_adapter(save(tmp_path / "nested.bin", tensors, nested=True))
    dotted = read_adapter(save(tmp_path / "dotted.bin", tensors))
    reordered = read_adapter(save(tmp_path / "reordered.bin", dict(reversed(tensors.items()))))
    for other in (dotted, reordered):
        assert other.image_proj.keys() == nested.image_proj.keys()
        assert all(torch.equal(other.image_proj[name], tensor) for name, tensor in nested.image_proj.items())
        for pair, other_pair in zip(nested.layers, other.layers, strict=True):
            assert all(map(torch.equal, pair, other_pair))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory map, which only Linux shows as a file")
def test_every_tensor_lies_in_the_mapped_file_and_building_the_resampler_copies_none(
    adapter_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fast_instantid.weights.MAPPED_FROM", 0)  # as for a large file
    weights = read_adapter(adapter_path)
    resampler = Resampler.from_state_dict(weights.image_proj)
    mapped = [
        range(*(int(end, 16) for end in line.split()[0].split("-")))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(adapter_path))
    ]
    tensors = [*weights.image_proj.values(), *(t for pair in weights.layers for t in pair), *resampler.parameters()]
    assert mapped
    assert all(any(tensor.data_ptr() in part for part in mapped) for tensor in tensors)


def test_resampler_dimensions_are_deduced() -> None:
    made = Resampler(
        dim=48, depth=3, inner_dim=128, feed_forward_dim=96, num_queries=5, embedding_dim=24, output_dim=40
    )
    again = Resampler.from_state_dict(made.state_dict())
    embeddings = torch.randn(2, 3, 24)
    with torch.no_grad():  # with gradients, the products are another library's
        assert again(embeddings).shape == (2, 5, 40)
        assert torch.equal(again(embeddings), made(embeddings))


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("image_proj.layers.1.0.to_kv.weight", None, "layers.1.0.to_kv.weight"),
        ("image_proj.layers.0.0.to_q.weight", None, "layers.0.0.to_q.weight"),
        ("image_proj.layers.0.0.to_q.weight", (96, 64), "96"),
        ("image_proj.layers.0.1.3.weight", (64, 100), "layers.0.1.3.weight"),
        ("image_proj.extra.weight", (3, 3), "extra.weight"),
        ("image_proj.latents", (16, 64), "resampler"),
        ("ip_adapter.3.to_v_ip.weight", None, "layer 3 lacks"),
        ("ip_adapter.3.to_v_ip.weight", (31, 64), "[31, 64]"),
        ("ip_adapter.5.to_k_ip.weight", (32, 63), "[32, 63]"),
    ],
)
def test_a_damaged_adapter_says_where(tmp_path: Path, name: str, shape: tuple[int, ...] | None, said: str) -> None:
    tensors = dict(read_tensors(write_tiny_adapter(tmp_path / "a.bin", channels=CHANNELS)))
    tensors.pop(name, None)
    if shape is not None:
        tensors[name] = torch.zeros(shape)
    path = save(tmp_path / "damaged.safetensors", tensors)
    with pytest.raises(ModelFileError) as error:
        read_adapter(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "damaged InstantID adapter" in str(error.value)


@pytest.mark.parametrize("name", ["ip-adapter.bin", "ip-adapter.safetensors"])
def test_a_truncated_download_says_so(tmp_path: Path, name: str) -> None:
    path = write_tiny_adapter(tmp_path / name, channels=CHANNELS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelFileError, match="incomplete download"):
        read_adapter(path)


def shapes(**named: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {name.replace("__", "."): shape for name, shape in named.items()}


PLAIN = shapes(image_proj__proj__weight=(30, 1024), image_proj__norm__weight=(30,))
PLUS = shapes(image_proj__latents=(1, 16, 64), image_proj__proj_in__weight=(64, 1280))
FACE_ID = shapes(image_proj__proj__0__weight=(64, 512), ip_adapter__0__to_q_lora__down__weight=(4, 32))
PORTRAIT = shapes(image_proj__proj__0__weight=(64, 512))
PLUS_FACE_ID = shapes(image_proj__perceiver_resampler__proj_in__weight=(64, 1280), image_proj__proj__0__weight=(9, 9))
SD15, SDXL = shapes(ip_adapter__1__to_k_ip__weight=(32, 768)), shapes(ip_adapter__1__to_k_ip__weight=(64, 2048))
DOWN = shapes(conv_in__weight=(8, 4, 3, 3), down_blocks__0__resnets__0__conv1__weight=(8, 8, 3, 3))
INPUT = shapes(input_blocks__0__0__weight=(8, 4, 3, 3), time_embed__0__weight=(8, 8))
KOHYA = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_"

FOREIGN = [
    ("an IP-Adapter for SD 1.5", PLAIN | SD15),
    ("an IP-Adapter for SDXL", PLAIN | SDXL),
    ("an IP-Adapter Plus for SD 1.5", PLUS | SD15),
    ("an IP-Adapter Plus for SDXL", PLUS | SDXL),
    ("an IP-Adapter FaceID for SD 1.5", FACE_ID | SD15),
    ("an IP-Adapter FaceID for SDXL", FACE_ID | SDXL),
    ("an IP-Adapter FaceID for SD 1.5", PORTRAIT | SD15),
    ("an IP-Adapter FaceID for SDXL", PLUS_FACE_ID | SDXL),
    ("an IP-Adapter of another kind", PLAIN | shapes(ip_adapter__1__to_k_ip__weight=(32, 1024))),
    ("a ControlNet, which", DOWN | shapes(controlnet_cond_embedding__conv_in__weight=(8, 3, 3, 3))),
    ("a ControlNet in ComfyUI's layout", INPUT | shapes(input_hint_block__0__weight=(8, 3, 3, 3))),
    ("a ControlNet in ComfyUI's layout", {f"control_model.{name}": shape for name, shape in INPUT.items()}),
    ("a LoRA", {f"{KOHYA}down.weight": (4, 32), f"{KOHYA}up.weight": (32, 4)}),
    ("a LoRA", {"unet.down_blocks.1.attentions.0.to_q.lora_A.weight": (4, 32)}),
    (
        "a whole checkpoint",
        {f"model.diffusion_model.{name}": shape for name, shape in INPUT.items()}
        | {
            "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
            "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": (9, 8),
        },
    ),
    ("a UNet", DOWN),
    ("a UNet", INPUT),
    ("a VAE", {"encoder.down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3), "decoder.conv_in.weight": (8, 4, 3, 3)}),
    ("a VAE", {"encoder.down.0.block.0.conv1.weight": (8, 8, 3, 3), "decoder.conv_in.weight": (8, 4, 3, 3)}),
    ("a CLIP model", {"vision_model.embeddings.class_embedding": (8,)}),
    ("a CLIP model", {"text_model.encoder.layers.0.self_attn.k_proj.weight": (8, 8)}),
    ("a saved identity", {"tokens": (2, 1, 16, 64), "0.key": (2, 16, 32), "0.value": (2, 16, 32)}),
    ("an unknown model (2 tensors: a, b", {"a": (1,), "b": (1,)}),
]


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize(("kind", "named"), FOREIGN)
def test_a_file_of_another_kind_is_named_for_what_it_is(
    tmp_path: Path, kind: str, named: dict[str, tuple[int, ...]], suffix: str
) -> None:
    tensors = {name: torch.zeros(shape) for name, shape in named.items()}
    path = save(tmp_path / f"model{suffix}", tensors, nested="IP-Adapter" in kind)
    with pytest.raises(ModelFileError) as error:
        read_adapter(path)
    assert str(error.value).startswith(f"{path}: this is {kind}")
    assert "expected InstantID's adapter" in str(error.value)


def test_real_networks_of_another_kind_are_named(tmp_path: Path) -> None:
    from examples.tiny_sdxl import write_tiny_identitynet, write_tiny_sdxl

    identitynet = write_tiny_identitynet(tmp_path / "identitynet")
    sdxl = write_tiny_sdxl(tmp_path / "sdxl")
    for path, kind in {
        identitynet: "a ControlNet, which InstantID's IdentityNet is too",
        sdxl / "unet": "a UNet",
        sdxl / "vae": "a VAE",
        sdxl / "text_encoder": "a CLIP model",
    }.items():
        (weights,) = path.glob("*.safetensors")
        with pytest.raises(ModelFileError, match=kind):
            read_adapter(weights)


def test_an_onnx_file_is_named(tmp_path: Path) -> None:
    import onnx.helper

    graph = onnx.helper.make_graph([], "empty", [], [], [onnx.numpy_helper.from_array(np.zeros(3, np.float32), "w")])
    path = tmp_path / "glintr100.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    with pytest.raises(ModelFileError, match="an ONNX network"):
        read_adapter(path)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        read_adapter(tmp_path / "ip-adapter.bin")


@pytest.mark.parametrize("missing", ["3.to_k_ip.weight", "3.to_v_ip.weight", "3.", "1."])
def test_a_missing_layer_is_named(tmp_path: Path, missing: str) -> None:
    tensors = read_tensors(write_tiny_adapter(tmp_path / "whole.safetensors", channels=CHANNELS))
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"ip_adapter.{missing}")}
    save_file(kept, tmp_path / "cut.safetensors")
    expected = "damaged InstantID adapter|expected InstantID's adapter"
    with pytest.raises(ModelFileError, match=expected):
        read_adapter(tmp_path / "cut.safetensors")
