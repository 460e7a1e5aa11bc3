"""The training of the miniature, in seconds: all parts run, resume, and write files that production reads."""

from __future__ import annotations

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fast_instantid import Adapter, Face, FaceAnalyzer, miniature
from fast_instantid.faces import draw_keypoints
from fast_instantid.faces.align import align
from fast_instantid.faces.onnx.graph import read_graph
from fast_instantid.faces.onnx.network import load_network
from fast_instantid.faces.recognizer import Recognizer
from fast_instantid.pipelines import InstantIDFiles, Sampling, generate, load_pipeline
from fast_instantid.pipelines.load import load_lora
from training import autoencoder, diffusion, few_steps, recognizer, together
from training.conditions import Batch, Conditions
from training.data import TEST, TRAINING, Portraits, draw_portraits, person
from training.diffusion import Stack, _apart, _together
from training.export import export
from training.half import store_half
from training.networks import TEXT_LENGTH, tokenizer
from training.pairs import Pairs, draw_pairs
from training.prepare import make_pack, prepare, start_from
from training.recognizer_export import write_onnx
from training.run import Run
from training.world import SIZE, Pose, Scene, draw

PEOPLE = 20


@pytest.fixture(scope="module", autouse=True)
def _small():
    """UNet and IdentityNet with 17 of their 70 cross-attention layers, and batches of a few pictures."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("unet", "identitynet"):
            patch.setattr(diffusion, name, partial(getattr(diffusion, name), (1, 1, 2)))
        patch.setattr(recognizer, "_PEOPLE", 8)
        patch.setattr(autoencoder, "_BATCH", 2)
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    draw_portraits(folder / "train", TRAINING, people=PEOPLE, each=3, processes=1)
    draw_pairs(folder / "pairs", TRAINING, people=PEOPLE, processes=1)
    return folder


@pytest.fixture(scope="module")
def portraits(work):
    return Portraits.load(work / "train")


@pytest.fixture(scope="module")
def trained(work, portraits):
    """Everything but the detector, a step of each and four of the networks that draw."""
    recognizer.train(work, portraits, steps=1)
    autoencoder.train(work, portraits, steps=1)
    shutil.copy(miniature.files().pack / "scrfd_10g_bnkps.onnx", work)
    make_pack(work)
    prepare(work, processes=1)
    together.train(work, together.Plan(steps=4, batch=2, processes=1, resampler_steps=20))  # the fourth is of pairs
    autoencoder.refine(work, portraits, steps=1)
    return work


def test_the_same_numbers_draw_the_same_portrait():
    def portrait(number: int, seed: int):
        random = np.random.default_rng(seed)
        return draw(person(TEST, number), Pose.random(random), Scene.random(random), seed)

    one, again, other = portrait(3, 5), portrait(3, 5), portrait(4, 5)
    assert np.array_equal(one.picture, again.picture)
    assert np.array_equal(one.keypoints, other.keypoints) is False
    assert np.abs(one.picture.astype(int) - other.picture).mean() > 1
    assert one.picture.shape == (SIZE, SIZE, 3)


def test_people_of_the_two_sets_are_not_the_same():
    assert {person(TRAINING, i) for i in range(200)}.isdisjoint(person(TEST, i) for i in range(200))


def test_portraits_of_one_person_stand_together(portraits):
    assert portraits.each == 3
    assert len(portraits.pictures) == len(portraits.scenes) == 3 * PEOPLE
    analyzer = FaceAnalyzer.load(miniature.files().pack, device="cpu")
    where = [Face(np.zeros(4, np.float32), np.array(points), 1.0) for points in portraits.keypoints[:60]]
    embeddings = analyzer.embed(list(portraits.pictures[:60]), where)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = embeddings @ embeddings.T - 2 * np.eye(60)
    assert (cosines.argmax(1) // 3 == np.arange(60) // 3).mean() >= 0.95


def test_every_word_of_the_world_is_one_token(tmp_path):
    words = tokenizer(tmp_path)
    random = np.random.default_rng(0)
    for _ in range(50):
        caption = Scene.random(random).caption
        spoken = caption.replace(",", " ,").split()
        assert [token.removesuffix("</w>") for token in words.tokenize(caption)] == spoken
        assert len(spoken) + 2 <= TEXT_LENGTH
    assert len(words.tokenize("zebra")) > 1


def test_normalised_latents_draw_the_same_pictures(portraits):
    torch.manual_seed(0)
    vae = autoencoder.autoencoder().eval()
    pictures = autoencoder.to_tensor(portraits.pictures[:2])
    with torch.no_grad():
        before = vae.decode(vae.encode(pictures).latent_dist.mean).sample
        autoencoder.normalise_latents(vae, portraits)
        after = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    latents = autoencoder.encode(vae, portraits.pictures)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_a_run_goes_on_where_it_was_stopped(tmp_path):
    def parts():
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 2)
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), 0.1)}

    def train(run, stop=None):
        for step in run:
            loss = (run.parts["model"](torch.full((1, 2), float(step))) - 1).square().mean()
            run.anneal(run.parts["optimizer"], 0.1)
            run.parts["optimizer"].zero_grad()
            loss.backward()
            run.parts["optimizer"].step()
            if step == stop:
                return
        assert run.step == run.steps

    train(straight := Run(tmp_path / "straight.pt", 20, parts(), every=5))
    train(Run(tmp_path / "stopped.pt", 20, parts(), every=5), stop=12)
    train(resumed := Run(tmp_path / "stopped.pt", 20, parts(), every=5))
    torch.testing.assert_close(resumed.parts["model"].weight, straight.parts["model"].weight)


def test_the_exported_recogniser_is_the_trained_one(trained, portraits, tmp_path):
    model = recognizer.load(trained)
    pack = tmp_path / "pack"
    pack.mkdir()
    write_onnx(model, pack / "glintr100.onnx")
    whole = (pack / "glintr100.onnx").stat().st_size
    faces = [align([portraits.pictures[i]], [portraits.keypoints[i]])[0] for i in range(4)]
    expected = recognizer.embed(model, portraits.pictures[:4], portraits.keypoints[:4]).numpy()
    for tolerance in (1e-4, 2e-2):  # as written, and with weights at half precision
        network = _recognizer(pack / "glintr100.onnx")
        assert np.abs(network.embed(faces) - expected).max() <= tolerance * np.abs(expected).max()
        store_half(pack / "glintr100.onnx")
    assert (pack / "glintr100.onnx").stat().st_size < 0.6 * whole


def test_a_new_stack_lets_the_keypoints_and_the_person_through(trained, portraits):
    """What the initialisation is for: swapping either changes what an untrained stack predicts."""
    words = tokenizer(trained / "tokenizer")
    torch.manual_seed(0)
    stack = Stack(words).eval()
    batch = Conditions(trained, words, [0]).batch(4)
    ones, timesteps = torch.ones(4), torch.full((4,), 900)
    with torch.no_grad():
        plain = stack(batch.latents, timesteps, batch, ones, ones)
        batch.keypoints = batch.keypoints.flip(0)
        moved = stack(batch.latents, timesteps, batch, ones, ones)
        batch.embeddings = batch.embeddings.flip(0) + 1
        other = stack(batch.latents, timesteps, batch, ones, ones)
    assert (moved - plain).std() > 0.01 * plain.std()
    assert (other - moved).std() > 0.001 * plain.std()


class Crossings(TorchDispatchMode):
    """Names of operators that read numbers of a tensor, or whose tensors lie on several devices."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        reads = func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "lift_fresh")
        if reads or len({tensor.device for tensor in tensors}) > 1:
            self.found.add(str(func))
        return result


@pytest.mark.parametrize("faces", [1, 2])
def test_a_step_on_another_device_never_looks_back(trained, faces):
    """On a GPU a step is recorded as a CUDA graph, in which nothing may be read or copied over."""
    stack = Stack(tokenizer(trained / "tokenizer")).to("meta")
    conditions = Conditions(trained, tokenizer(trained / "tokenizer"), [0])
    batch = conditions.batch(4) if faces == 1 else conditions.pairs(4)
    elsewhere = Batch(**{name: value.to("meta") for name, value in vars(batch).items()})
    with Crossings() as crossings:
        losses = stack.loss(elsewhere)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(stack.parameters(), 1.0)
    assert not crossings.found
    assert losses.high_noise.device.type == "meta"
    with Crossings() as crossings:
        torch.zeros(1).item()
    assert crossings.found


def test_pictures_of_two_are_told_apart_by_their_squares():
    """A query in the left square is answered by the left face's tokens, and comes back to where it was."""
    queries = torch.randn(3, 2, 4 * 8, 5)
    apart = _apart(queries, 2)
    assert torch.equal(_together(apart, 2), queries)
    assert torch.equal(apart[4].unflatten(1, (4, 4)), queries[2].unflatten(1, (4, 8))[:, :, :4])
    assert torch.equal(apart[5].unflatten(1, (4, 4)), queries[2].unflatten(1, (4, 8))[:, :, 4:])


def test_pairs_show_both_people(work):
    pairs = Pairs.load(work / "pairs")
    assert pairs.pictures.shape == (PEOPLE, SIZE, 2 * SIZE, 3)
    assert sorted(pairs.people[:, 0]) == list(range(PEOPLE))
    analyzer = FaceAnalyzer.load(miniature.files().pack, device="cpu")
    for picture, keypoints in zip(pairs.pictures[:5], pairs.keypoints[:5], strict=True):
        faces = sorted(analyzer.detect(picture)[0], key=lambda face: face.kps[0, 0])
        assert len(faces) == 2
        assert np.abs(np.stack([face.kps for face in faces]) - keypoints).mean() < 3


def test_what_is_exported_is_read_by_production(trained, portraits, tmp_path):
    export(trained, tmp_path)
    analyzer = FaceAnalyzer.load(tmp_path / "antelopev2", device="cpu")
    adapter = Adapter.load(InstantIDFiles.find(tmp_path / "instantid").adapter, "cpu", torch.float32)
    pipe = load_pipeline(tmp_path / "base", tmp_path / "instantid", "cpu", torch.float32)
    face = analyzer.detect(portraits.pictures[0])[0][0]
    identity = adapter.identity(analyzer.embed(portraits.pictures[0], face))
    control = Image.fromarray(draw_keypoints((SIZE, SIZE), face.kps))
    [picture] = generate(pipe, identity, control, portraits.scenes[0].caption, Sampling(num_inference_steps=2))
    assert picture.size == (SIZE, SIZE)
    expected = together.averaged(trained).unet.state_dict()
    for name, value in pipe.unet.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-2, rtol=1e-2)


def test_training_goes_on_from_what_was_exported(trained, tmp_path):
    export(trained, tmp_path / "weights")
    work = tmp_path / "work"
    work.mkdir()
    for path in (trained / "train", trained / "pairs", *trained.glob("*_*.*")):
        (work / path.name).symlink_to(path)
    start_from(tmp_path / "weights", work)
    prepare(work, processes=1)
    stack = Stack(tokenizer(work / "tokenizer"))
    stack.load_files(work / "start")
    expected = together.averaged(trained).state_dict()
    for name, value in stack.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-3, rtol=1e-3)
    together.train(work, together.Plan(steps=1, batch=2, processes=1))
    autoencoder.load(work)


def test_a_lora_for_few_steps_is_one_of_the_networks(trained, tmp_path, monkeypatch):
    draw_ways = few_steps.draw_ways
    export(trained, tmp_path)
    seen = []
    monkeypatch.setattr(few_steps, "draw_ways", lambda *given: seen.extend(draw_ways(*given)) or seen)
    few_steps.distil(trained, tmp_path, tmp_path, few_steps.Plan(ways=1, teacher_steps=2, steps=1, batch=2))
    assert seen[0].noisy.shape == (2, 2, 4, 16, 16)
    assert seen[0].timesteps[0] == 999
    assert not torch.equal(seen[0].end.latents, seen[0].noisy[1])
    pipe = load_pipeline(tmp_path / "base", tmp_path / "instantid", "cpu", torch.float32)
    load_lora(pipe, tmp_path / few_steps.FILE, "lcm")
    assert pipe.get_active_adapters() == ["lcm"]


def _recognizer(path):
    graph = read_graph(path)
    return Recognizer(load_network(graph, "torch", "cpu"), graph)
