"""Numbers: what a caller has set does not reach cached results, and NaN and infinity are refused where they come in."""

from __future__ import annotations

import copy
import json
import math
import shutil
from contextlib import contextmanager
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import load_file, save_file

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_faces import write_tiny_pack
from examples.tiny_sdxl import LAYER_CHANNELS, TOKEN_WIDTH
from fast_instantid import Cache, FaceAnalyzer, Identity, InstantID, Subject
from fast_instantid.cli import main
from fast_instantid.errors import BackendError, ModelFileError, NotFiniteError
from fast_instantid.faces.onnx.network import TorchNetwork
from fast_instantid.identity import Adapter
from fast_instantid.people.person import cosine
from fast_instantid.placement import in_batches, numeric_settings
from fast_instantid.reuse import Reuse
from tests.tiny_pipelines import KEYPOINTS, sample

pytest_plugins = ["tests.tiny_pipelines"]


@contextmanager
def setting(change, value, before):
    change(value)
    try:
        yield
    finally:
        change(before)


def deterministic():
    return setting(torch.use_deterministic_algorithms, True, False)


AROUND = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "a default dtype of 64 bits": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "a default dtype of 16 bits": lambda: setting(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "another default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "less precise products": lambda: setting(torch.set_float32_matmul_precision, "medium", "highest"),
    "deterministic algorithms": deterministic,
    "another attention": lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    return write_tiny_adapter(folder / "ip-adapter.bin", channels=LAYER_CHANNELS, token_width=TOKEN_WIDTH)


@pytest.fixture(scope="module")
def tiny_pack(tmp_path_factory):
    return write_tiny_pack(tmp_path_factory.mktemp("pack") / "antelopev2")


EMBEDDING = np.random.default_rng(0).standard_normal(512).astype(np.float32)


def made(file, pack, photo, cache):
    """Everything that is cached of a face: keypoints, embedding, and identities without and with noise."""
    adapter = Adapter.load(file, "cpu", torch.float32, cache)
    analyzer = FaceAnalyzer.load(pack, device="cpu", cache=cache)
    [faces] = analyzer.detect(photo)
    rows = [analyzer.embed(photo, faces[0].kps), *(face.kps for face in faces[:3])]
    identities = [adapter.identity(EMBEDDING, noise=noise) for noise in (0.0, 0.35)]
    tensors = [tensor for identity in identities for tensor in identity.to_record().values()]
    with torch.inference_mode(False):
        return [*map(torch.from_numpy, map(np.array, rows)), *tensors]


@pytest.fixture(scope="module")
def expected(file, tiny_pack, astronaut):
    return made(file, tiny_pack, astronaut, Cache())


@pytest.mark.parametrize("around", AROUND)
def test_a_hit_is_what_a_miss_would_have_been_whatever_was_set_at_the_miss(
    around, file, tiny_pack, astronaut, expected
):
    cache = Cache()
    with AROUND[around]():
        inside = made(file, tiny_pack, astronaut, cache)
    assert all(map(torch.equal, made(file, tiny_pack, astronaut, cache), expected))
    assert all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in inside)
    assert not any(tensor.requires_grad or tensor.is_inference() for tensor in inside)


def test_the_settings_that_change_numbers_are_told():
    plain = numeric_settings()
    for around in ("less precise products", "deterministic algorithms", "another attention", "no oneDNN"):
        with AROUND[around]():
            assert numeric_settings() != plain, around
    assert numeric_settings() == plain


def test_what_a_run_reuses_is_computed_anew_under_other_settings():
    layer, text = torch.nn.Linear(4, 4), torch.randn(2, 4)
    reuse = Reuse()
    with torch.no_grad():
        reuse.begin(text)
        first = reuse(layer, text)
        reuse.begin(text)
        assert reuse(layer, text) is first
        with deterministic():
            reuse.begin(text)
            assert reuse(layer, text) is not first


def test_a_run_in_inference_mode_leaves_nothing_that_cannot_be_trained_with(pipe, identity):
    """What is laid out for a run is kept for the next one, which may train the networks."""
    region = Subject(identity.to(dtype=torch.float64), 0.7, torch.ones(16, 16))  # its keys are laid out as a copy
    with torch.inference_mode():
        instantid = InstantID(pipe, identity_net=0)
        instantid.attach(region)
        sample(pipe, steps=1)
    noisy, text = torch.randn(2, 4, 16, 16), torch.randn(2, 8, TOKEN_WIDTH)
    added = {"text_embeds": torch.zeros(2, TOKEN_WIDTH), "time_ids": torch.zeros(2, 6)}
    for _ in range(2):
        down, mid = pipe.controlnet(
            noisy, 500, text, torch.zeros(2, 3, 128, 128), added_cond_kwargs=added, return_dict=False
        )
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        pipe.unet(noisy, 500, text, added_cond_kwargs=added, **residuals).sample.sum().backward()
    instantid.detach()
    for network in (pipe.unet, pipe.controlnet):
        weight = network.mid_block.attentions[0].transformer_blocks[0].attn2.to_q.weight
        assert weight.grad.abs().max() > 0
        network.zero_grad()


def damage(file, value, name=""):
    """Replace a number of the first floating weight of this name in an ONNX file; return the weight's name."""
    model = onnx.load(str(file))
    floats = (tensor for tensor in model.graph.initializer if numpy_helper.to_array(tensor).dtype == np.float32)
    weight = next(tensor for tensor in floats if name in tensor.name)
    array = numpy_helper.to_array(weight).copy()
    array.flat[0] = value
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, str(file))
    return weight.name


@pytest.fixture
def own_pack(tiny_pack, tmp_path):
    return shutil.copytree(tiny_pack, tmp_path / "antelopev2")


@pytest.mark.parametrize(
    ("backend", "which", "value"),
    [
        ("torch", "scrfd_10g_bnkps.onnx", math.nan),
        ("torch", "scrfd_10g_bnkps.onnx", -math.inf),
        ("torch", "glintr100.onnx", math.nan),
        ("torch", "glintr100.onnx", -math.inf),
        ("onnxruntime", "glintr100.onnx", math.inf),
    ],
)
def test_a_face_network_with_one_damaged_weight_is_refused(backend, which, value, own_pack, astronaut):
    name = damage(own_pack / which, value)
    with pytest.raises(ModelFileError, match=rf"{which}: its tensor '{name}' holds NaN or infinity"):
        FaceAnalyzer.load(own_pack, backend, "cpu", cache=Cache()).embed(astronaut)


def test_json_holds_no_nan_and_no_file_is_written(own_pack, astronaut, tmp_path, capsys):
    damage(own_pack / "glintr100.onnx", math.nan)
    Image.fromarray(astronaut).save(tmp_path / "photo.png")
    output = tmp_path / "faces.safetensors"
    command = ["embed", str(tmp_path / "photo.png"), "--pack", str(own_pack), "--device", "cpu"]
    assert main([*command, "--json", "-o", str(output)]) == 1
    printed = capsys.readouterr()
    assert "NaN" not in printed.out
    assert "holds NaN or infinity; download it again" in printed.err
    assert not output.exists()


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_network_of_finite_weights_with_infinite_results_is_refused(backend, own_pack, astronaut):
    model = onnx.load(str(own_pack / "glintr100.onnx"))
    variance = next(node for node in model.graph.node if node.op_type == "BatchNormalization").input[4]
    damage(own_pack / "glintr100.onnx", -4.0, variance)
    analyzer = FaceAnalyzer.load(own_pack, backend, "cpu", cache=Cache())
    with pytest.raises(ModelFileError, match=r"glintr100.onnx: its results hold NaN or infinity"):
        analyzer.embed(astronaut)


def test_half_precision_that_overflows_is_told(own_pack, astronaut):
    damage(own_pack / "glintr100.onnx", 1e6)
    FaceAnalyzer.load(own_pack, device="cpu", cache=Cache()).embed(astronaut)
    with pytest.raises(ModelFileError, match="compute in float32"):
        FaceAnalyzer.load(own_pack, device="cpu", dtype="float16", cache=Cache()).embed(astronaut)


def with_width(pack, width, declared):
    model = onnx.load(str(pack / "glintr100.onnx"))
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if 512 in array.shape:
            axis = array.shape.index(512)
            tensor.CopyFrom(numpy_helper.from_array(np.take(array, range(width), axis), tensor.name))
    assert gemm
    dimension = model.graph.output[0].type.tensor_type.shape.dim[1]
    dimension.ClearField("dim_value") if declared is None else setattr(dimension, "dim_value", declared)
    onnx.save(model, str(pack / "glintr100.onnx"))


def test_a_recogniser_of_another_width_is_refused(own_pack, astronaut):
    with_width(own_pack, 256, 256)
    with pytest.raises(ModelFileError, match=r"glintr100.onnx: its embeddings have 256 numbers, InstantID reads 512"):
        FaceAnalyzer.load(own_pack, device="cpu")


@pytest.mark.parametrize("declared", [None, 512])
def test_a_recogniser_that_does_not_say_its_width_or_a_wrong_one_is_refused_when_it_runs(declared, own_pack, astronaut):
    with_width(own_pack, 256, declared)
    with pytest.raises(BackendError, match=r"embeddings of \[256\] numbers.*InstantID needs 512"):
        FaceAnalyzer.load(own_pack, device="cpu", cache=Cache()).embed(astronaut)


def test_a_threshold_of_nan_is_refused_and_not_no_face(tiny_pack):
    with pytest.raises(ValueError, match="threshold NaN"):
        FaceAnalyzer.load(tiny_pack, device="cpu").prepare(det_thresh=math.nan)


@pytest.mark.parametrize("embedding", [np.full(512, np.nan), np.zeros(256), np.full(512, np.inf)])
def test_the_embeddings_of_a_foreign_analysis_are_checked_too(embedding, astronaut):
    class Analysis:
        def get(self, image):
            return [{"bbox": np.array([0, 0, 9, 9]), "kps": np.ones((5, 2)), "det_score": 1, "embedding": embedding}]

    with pytest.raises(BackendError, match=r"NaN or infinity|of \[256\] numbers"):
        FaceAnalyzer.wrap(Analysis()).embed(astronaut)


class SmallGPU(TorchNetwork):
    """A network on a device that holds ``room`` pictures at once."""

    room = 0

    def __init__(self, network):
        super().__init__(network._graph, network.device)
        self.on_cpu, self.backend, self.batches = False, "torch (cuda:0)", []

    def result_id(self, lasting=True):
        return f"{super().result_id(lasting)} on a GPU"

    def run(self, images, *options):
        self.batches.append(len(images))
        if len(images) > self.room:
            raise getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)("CUDA out of memory. Tried to ...")
        return super().run(images, *options)


@pytest.mark.parametrize("room", [3, 0])
def test_a_gpu_without_memory_gets_smaller_batches_and_then_the_cpu(room, tiny_pack, astronaut, caplog, monkeypatch):
    monkeypatch.setattr(SmallGPU, "room", room)
    photos = [np.roll(astronaut, 8 * i, axis=0) for i in range(5)]
    expected = FaceAnalyzer.load(tiny_pack, device="cpu", cache=Cache())
    analyzer = FaceAnalyzer.load(tiny_pack, device="cpu", cache=Cache())
    networks = analyzer.networks
    small = [SmallGPU(model.network) for model in (networks.detector, networks.recognizer)]
    networks.detector.network, networks.recognizer.network = small
    np.testing.assert_allclose(analyzer.embed(photos), expected.embed(photos), atol=1e-4)
    assert small[0].batches == small[1].batches == {3: [5, 2, 2, 1], 0: [5, 2, 1]}[room]
    told = caplog.text.count("it runs on the CPU this time")
    assert told == (0 if room else 2)
    assert "no memory for 5 pictures at once: going on with 2" in caplog.text
    monkeypatch.setattr(SmallGPU, "room", 8)
    analyzer.embed(photos)
    assert small[0].batches[-1] == (1 if room else 5), (
        "what the CPU made has keys of its own, and the GPU is tried again"
    )


def test_other_errors_are_no_lack_of_memory():
    with pytest.raises(RuntimeError, match="something else"):
        in_batches(4, 4, lambda part: (_ for _ in ()).throw(RuntimeError("something else")))


def test_a_network_without_memory_on_the_cpu_too_says_so(tiny_pack, astronaut, monkeypatch):
    def run(self, images, *options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(TorchNetwork, "run", run)
    with pytest.raises(RuntimeError, match="allocate memory"):
        FaceAnalyzer.load(tiny_pack, device="cpu", cache=Cache()).embed(astronaut)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64])
@pytest.mark.parametrize("name", ["image_proj.latents", "ip_adapter.3.to_v_ip.weight"])
def test_an_adapter_of_other_numbers_than_floats_is_refused(name, dtype, file, tmp_path):
    nested = torch.load(file)
    tensors = {f"{part}.{key}": tensor for part, inside in nested.items() for key, tensor in inside.items()}
    tensors[name] = tensors[name].to(dtype)
    torch.save(tensors, tmp_path / "ip-adapter.bin")
    with pytest.raises(ModelFileError, match=rf"{name} is of {dtype}"):
        Adapter.load(tmp_path / "ip-adapter.bin", "cpu")


def test_an_adapter_with_one_damaged_weight_makes_no_identity(file, tmp_path):
    nested = torch.load(file)
    for part, name, value in (
        ("image_proj", "latents", math.nan),
        ("image_proj", "layers.0.0.to_kv.weight", -math.inf),
        ("image_proj", "layers.1.1.1.weight", math.inf),
        ("ip_adapter", "1.to_k_ip.weight", math.nan),
        ("ip_adapter", "139.to_v_ip.weight", -math.inf),
    ):
        tensors = copy.deepcopy(nested)
        tensors[part][name].view(-1)[7] = value
        torch.save(tensors, tmp_path / "ip-adapter.bin")
        adapter = Adapter.load(tmp_path / "ip-adapter.bin", "cpu", cache=Cache())
        with pytest.raises(ModelFileError, match=rf"{part}.{name} holds NaN or infinity"):
            adapter.identity(EMBEDDING)
    assert main(["convert", str(tmp_path / "ip-adapter.bin")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ip-adapter.bin"]


def test_an_identity_that_half_precision_cannot_hold_says_so(file, tmp_path):
    nested = torch.load(file)
    nested["ip_adapter"]["3.to_v_ip.weight"] *= 1e6
    torch.save(nested, tmp_path / "ip-adapter.bin")
    with pytest.raises(NotFiniteError, match=r"torch.float16 cannot hold.*use dtype bfloat16 or float32"):
        Adapter.load(tmp_path / "ip-adapter.bin", "cpu", torch.float16, Cache()).identity(EMBEDDING)
    Adapter.load(tmp_path / "ip-adapter.bin", "cpu", torch.bfloat16, Cache()).identity(EMBEDDING)


@pytest.fixture(scope="module")
def saved(file, tmp_path_factory):
    path = tmp_path_factory.mktemp("identity") / "anna.safetensors"
    Adapter.load(file, "cpu", torch.float32).identity(EMBEDDING).save(path)
    return path


HEAD = {"format": "fast-instantid identity", "version": "2"}


def test_a_changed_bit_of_an_identity_file_is_noticed(saved, tmp_path):
    content = bytearray(saved.read_bytes())
    content[-4] ^= 1
    (tmp_path / "changed.safetensors").write_bytes(content)
    with pytest.raises(ModelFileError, match="damaged identity: its checksum does not fit"):
        Identity.load(tmp_path / "changed.safetensors")


def test_an_identity_file_from_before_the_checksum_is_read(saved, tmp_path):
    save_file(load_file(saved), tmp_path / "old.safetensors", HEAD)
    old, new = Identity.load(tmp_path / "old.safetensors"), Identity.load(saved)
    assert all(map(torch.equal, old.to_record().values(), new.to_record().values()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["5.key"].fill_(math.nan), "5.key holds NaN or infinity"),
        (lambda t: t["tokens"][0, 0, 0, :1].fill_(math.inf), "tokens holds NaN or infinity"),
        (lambda t: t.update({"5.key": t["5.key"].int()}), "5.key is of torch.int32"),
        (lambda t: t.update({"5.key": t["5.key"].half()}), "5.key is of torch.float16"),
        (lambda t: t.update({"5.key": t["5.key"][:, 1:].clone()}), "layer 5 has a key and a value of shape"),
        (lambda t: t.update({name: t[name][:, 1:].clone() for name in ("5.key", "5.value")}), "layer 5 has a key"),
        (lambda t: t.update({"tokens": t["tokens"][:1]}), "tokens of shape"),
        (lambda t: t.pop("tokens"), "tokens of shape"),
        (lambda t: t.update({"more": torch.zeros(1)}), "layer 70 has a key"),
        (lambda t: [t.pop(name) for name in [*t] if name != "tokens"], "1 tensors"),
    ],
)
def test_an_identity_file_of_other_tensors_says_why(change, said, saved, tmp_path):
    tensors = load_file(saved)
    change(tensors)
    save_file(tensors, tmp_path / "other.safetensors", HEAD)
    with pytest.raises(ModelFileError, match=f"damaged identity: .*{said}"):
        Identity.load(tmp_path / "other.safetensors")


def test_the_likeness_to_nothing_is_a_number():
    assert cosine(np.zeros(512, np.float32), EMBEDDING) == 0
    assert json.dumps(cosine(EMBEDDING, EMBEDDING), allow_nan=False)


@contextmanager
def nan_in(network):
    """One weight of a network is NaN."""
    weight = [*network.parameters()][-1].data.view(-1)[:1]
    before = weight.clone()
    weight.fill_(math.nan)
    try:
        yield
    finally:
        weight.copy_(before)


def test_a_picture_of_nan_is_an_error_and_not_black(pipe, identity):
    instantid = InstantID(pipe, identity_net=0)
    before = vars(pipe.image_processor).copy()
    draw = partial(instantid, "a man", identity, keypoints=KEYPOINTS, num_inference_steps=1)
    for network in (pipe.unet, pipe.controlnet, pipe.text_encoder_2, pipe.vae.decoder):
        with nan_in(network), pytest.raises(NotFiniteError, match=r"picture 1 of 1 holds NaN.*bfloat16 or float32"):
            draw()
    with nan_in(pipe.vae.decoder):
        with instantid.attached(identity), pytest.raises(NotFiniteError):
            pipe("a man", image=KEYPOINTS, num_inference_steps=1)
        assert torch.isnan(draw(output_type="pt").images).any(), "the caller sees it"
    assert vars(pipe.image_processor) == before
    assert draw().images[0].size == KEYPOINTS.size
