"""From a photograph to a picture in a handful of lines, on the miniature and on tiny networks."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLControlNetPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import are_progress_bars_disabled
from PIL import Image
from transformers.utils import logging as transformers_logging

from fast_instantid import Adapter, FaceAnalyzer, miniature
from fast_instantid.errors import BackendError, FastInstantIDError, ImageError, ModelFileError, NoFaceError
from fast_instantid.pipelines import (
    InstantID,
    InstantIDFiles,
    Sampling,
    Subject,
    generate,
    generate as generate_function,
    load_pipeline,
)
from tests.tiny_pipelines import EDGES, KEYPOINTS, SIZE, make, picture

pytest_plugins = ["tests.tiny_pipelines"]

PROMPT = "flat portrait, plain red background"


@pytest.fixture(scope="module")
def instantid():
    return InstantID.from_pretrained("miniature", device="cpu")


@pytest.fixture(scope="module")
def people(instantid):
    return [instantid.person(portrait) for portrait in miniature.files().portraits[:3]]


def seeded(number=0):
    return torch.Generator().manual_seed(number)


class TestMiniature:
    def test_a_photograph_becomes_a_picture_of_its_person(self, instantid, people):
        anna, bob, _ = people
        image = instantid(PROMPT, anna, num_inference_steps=8, generator=seeded()).images[0]
        assert image.size == (128, 128)  # what the miniature draws, not SDXL's megapixel
        drawn = instantid.person(image)
        assert anna.likeness(drawn) > 0.6 > 0.4 > bob.likeness(drawn)

    def test_each_argument_of_the_pipeline_is_the_callers(self, instantid, people):
        usual, other = (
            instantid(PROMPT, people[0], scale=scale, width=192, height=128, num_inference_steps=2, output_type="np")
            for scale in (0.8, 0.1)
        )
        assert usual.images.shape == (1, 128, 192, 3)
        assert np.abs(usual.images - other.images).max() > 0.01

    def test_an_argument_that_would_be_ignored_is_refused(self, instantid, people):
        with pytest.raises(FastInstantIDError, match=r"takes no steps=: did you mean num_inference_steps=\?"):
            instantid(PROMPT, people[0], steps=2)
        for ours, theirs in {"weight": "scale", "person": "people"}.items():
            with pytest.raises(FastInstantIDError, match=rf"takes no {ours}=: did you mean {theirs}=\?"):
                instantid(PROMPT, **{ours: 1})
        with pytest.raises(FastInstantIDError, match=r"PosixPath.*instantid.person\(photo\)"):
            instantid(PROMPT, miniature.files().portraits[0])
        with pytest.raises(ImageError, match=r"a\.jpg: a URL, not a file"):
            instantid.person("https://example.com/a.jpg")

    @pytest.mark.parametrize("name", ["prompt", "prompt_2", "negative_prompt", "negative_prompt_2"])
    @pytest.mark.parametrize("text", ["\udce9", ["a", "b\ud800"]], ids=["one", "list"])
    def test_text_that_no_tokenizer_reads_is_refused(self, instantid, people, name, text):
        """As on a command line of another encoding, or in JSON of a picture."""
        with pytest.raises(FastInstantIDError, match=rf"{name} holds a lone surrogate"):
            instantid(**({"prompt": PROMPT} | {name: text}), people=people[0])

    def test_a_seed_is_a_generator(self, instantid, people):
        options = {"num_inference_steps": 1, "output_type": "np"}
        by_seed = instantid(PROMPT, people[0], seed=3, **options).images
        assert np.array_equal(by_seed, instantid(PROMPT, people[0], generator=seeded(3), **options).images)
        several = {"prompt": [PROMPT] * 2, "people": [[people[0]]] * 2, **options}
        by_seeds = instantid(seed=(3, 4), **several).images
        assert np.array_equal(by_seeds, instantid(generator=[seeded(3), seeded(4)], **several).images)
        assert not np.array_equal(*by_seeds)

    def test_it_moves_as_a_pipeline_does(self, people):
        moved = InstantID.from_pretrained("miniature", device="cpu")
        plain = moved(PROMPT, people[0], seed=3, num_inference_steps=2, output_type="np").images
        assert moved.to("cpu", torch.bfloat16) is moved
        assert moved.pipe.dtype == moved.adapter.placement.dtype == torch.bfloat16
        assert moved.faces.backend == "torch (cpu)"
        with pytest.raises(BackendError, match="device 'meta' is not known to torch, or cannot be used"):
            moved.to("meta")
        with pytest.raises(BackendError, match="device 'nowhere'"):
            moved.to("nowhere")
        half = InstantID.from_pretrained("miniature", device="cpu", dtype="bfloat16").to(torch.float32)
        again = half(
            PROMPT, half.person(miniature.files().portraits[0]), seed=3, num_inference_steps=2, output_type="np"
        )
        assert again.images.shape == plain.shape
        assert again.images.dtype == np.float32

    def test_loading_prints_nothing_and_leaves_the_hosts_settings(self, capfd):
        level = logging.getLogger("transformers").level
        try:
            for wanted, switch in ((True, "enable_progress_bar"), (False, "disable_progress_bar")):
                for library in (transformers_logging, diffusers_logging):
                    getattr(library, switch)()
                transformers_logging.set_verbosity_info()
                load_pipeline(miniature.files().base, miniature.files().instantid, "cpu")
                assert transformers_logging.get_verbosity() == logging.INFO
                assert transformers_logging.is_progress_bar_enabled() == wanted
                assert diffusers_logging.is_progress_bar_enabled() == wanted
                assert are_progress_bars_disabled() != wanted
        finally:
            logging.getLogger("transformers").setLevel(level)
            transformers_logging.enable_progress_bar()
            diffusers_logging.enable_progress_bar()
        assert capfd.readouterr().err == ""

    def test_a_person_is_what_its_photographs_say(self, instantid, people):
        portrait = miniature.files().portraits[0]
        person = instantid.person([portrait, portrait], name="Anna")
        assert person.name == "Anna"
        assert person.embeddings.shape == (2, 512)
        assert np.allclose(person.embedding, people[0].embedding)
        assert person.keypoints.shape == (5, 2)
        assert person.picture.size == (112, 112)
        assert person.photo_size == Image.open(portrait).size
        assert person.likeness(people[0]) == pytest.approx(1)
        with pytest.raises(ValueError, match="read-only"):
            person.embeddings[0] = 0

    def test_different_people_given_as_one_are_named(self, instantid, caplog):
        portraits = miniature.files().portraits[:3]
        instantid.person(portraits)
        assert "look like two people" in caplog.text
        assert "and 2 more pairs" in caplog.text
        caplog.clear()
        instantid.person([portraits[0]] * 3)
        assert not caplog.text

    def test_a_photograph_without_a_face_is_named(self, instantid):
        with pytest.raises(NoFaceError, match=r"no face found in image 1"):
            instantid.person([Image.open(miniature.files().portraits[0]), Image.new("RGB", (128, 128))])

    def test_a_face_beside_the_middle_of_a_wide_photograph_is_drawn(self, instantid, people):
        """Cropped to its middle, the keypoint picture would be black."""
        wide = Image.new("RGB", (512, 128), "gray")
        wide.paste(Image.open(miniature.files().portraits[0]).convert("RGB"), (384, 0))
        person = instantid.person(wide)
        image = instantid(
            PROMPT, person, width=128, height=128, num_inference_steps=8, guidance_scale=2.0, generator=seeded()
        ).images[0]
        assert people[0].likeness(instantid.person(image)) > 0.6

    def test_two_people_each_in_a_region(self, instantid, people):
        left = torch.zeros(128, 192)
        left[:, :96] = 1
        subjects = [Subject(people[0], region=left), Subject(people[1], 0.7, region=1 - left)]
        image = instantid("two portraits", subjects, width=192, height=128, num_inference_steps=2).images[0]
        assert image.size == (192, 128)


class TestSources:
    def test_files_folders_and_names_by_one_rule(self, tmp_path, monkeypatch):
        files = miniature.files()
        by_folder, by_file = (Adapter.load(source, "cpu") for source in (files.instantid, *files.instantid.glob("ip*")))
        assert by_folder.weights.path == by_file.weights.path
        monkeypatch.setenv("FAST_INSTANTID_MODELS", str(tmp_path))
        (tmp_path / "instantid").symlink_to(files.instantid)
        (tmp_path / "antelopev2").symlink_to(files.pack)
        for name in ("instantid", "InstantX/InstantID"):
            assert Adapter.load(name, "cpu").weights.path.name == by_file.weights.path.name
            assert InstantIDFiles.find(name).controlnet.is_dir()
        assert FaceAnalyzer.load("antelopev2", device="cpu").detect(files.portraits[0])[0]
        for load in (Adapter.load, FaceAnalyzer.load, load_pipeline):
            with pytest.raises(ModelFileError, match=r"nothing/here: neither a file nor a folder"):
                load("nothing/here")

    def test_a_pipeline_without_an_identitynet(self):
        pipe = load_pipeline(miniature.files().base, device="cpu")
        assert type(pipe) is StableDiffusionXLPipeline

    def test_what_is_missing_is_said(self, pipe, people):
        bare = InstantID(pipe)
        with pytest.raises(BackendError, match="no face analyzer"):
            bare.person("anna.jpg")
        with pytest.raises(BackendError, match="no adapter"), bare.attached(people[0]):
            pass


class TestCall:
    """Which pictures and strengths the ControlNets get."""

    @pytest.fixture
    def seen(self, monkeypatch):
        return []

    def pipe_that_tells(self, components, controlnet, seen):
        pipe = make(StableDiffusionXLControlNetPipeline, components, controlnet=controlnet)

        class Telling(type(pipe)):
            def __call__(self, *args, **kwargs):
                seen.append(kwargs)
                return super().__call__(*args, **kwargs)

        pipe.__class__ = Telling
        return pipe

    def call(self, pipe, identity, **options):
        return InstantID(pipe)("a man", identity, num_inference_steps=1, output_type="latent", **options)

    def test_without_a_keypoint_picture_the_identitynet_rests(self, components, nets, identity, seen):
        pipe = self.pipe_that_tells(components, nets[0], seen)
        self.call(pipe, identity, width=SIZE, height=SIZE)
        assert seen[0]["controlnet_conditioning_scale"] == 0
        assert not np.asarray(seen[0]["image"]).any()

    def test_among_several_it_has_its_place(self, components, nets, identity, seen):
        pipe = self.pipe_that_tells(components, [nets[1], nets[0]], seen)
        self.call(pipe, identity, keypoints=KEYPOINTS, image=EDGES)
        assert seen[0]["image"] == [EDGES, KEYPOINTS]
        assert seen[0]["controlnet_conditioning_scale"] == [1.0, 0.8]
        self.call(pipe, identity, image=[EDGES, KEYPOINTS], controlnet_conditioning_scale=[0.3, 0.4])
        assert seen[1]["controlnet_conditioning_scale"] == [0.3, 0.4]
        self.call(pipe, identity, image=[EDGES], width=SIZE, height=SIZE)
        assert seen[2]["controlnet_conditioning_scale"] == [1.0, 0.0]
        with pytest.raises(FastInstantIDError, match="2 ControlNets, and 0 pictures"):
            self.call(pipe, identity, keypoints=KEYPOINTS)


class TestGenerate:
    def test_long_lists_of_prompts_are_drawn_in_batches(self, pipe, identity):
        prompts = [f"a man {number}" for number in range(5)]
        few = Sampling(num_inference_steps=2, batch_size=2, num_images_per_prompt=2)
        seen = []
        drawn = generate(pipe, identity, KEYPOINTS, prompts, few, lambda done, total: seen.append((done, total)))
        alone = [image for prompt in prompts for image in generate(pipe, identity, KEYPOINTS, prompt, few)]
        assert len(drawn) == 10
        for one, other in zip(drawn, alone, strict=True):
            assert np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max() <= 1
        assert seen[-1] == (2, 2)
        assert all(a <= b for a, b in pairwise(seen))

    def test_fewer_at_once_where_memory_does_not_hold_them(self, pipe, identity):
        batches = []

        def full(net, args):
            batches.append(len(args[0]) // 2)
            if len(args[0]) > 4:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

        hook = pipe.unet.conv_in.register_forward_pre_hook(full)
        try:
            sampling = Sampling(num_inference_steps=1, num_images_per_prompt=5)
            assert len(generate(pipe, identity, KEYPOINTS, "a man", sampling)) == 5
        finally:
            hook.remove()
        assert batches == [5, 2, 2, 1]

    def test_more_arguments_of_the_pipeline(self, pipe, identity):
        ended = []

        def end(pipe, step, timestep, tensors):
            ended.append(step)
            return tensors

        sampling = Sampling(num_inference_steps=2)
        [latents] = generate(
            pipe, identity, KEYPOINTS, "a man", sampling, output_type="latent", clip_skip=1, callback_on_step_end=end
        )
        assert latents.shape == (4, SIZE // 8, SIZE // 8)
        assert ended == [0, 1]

    def test_without_a_keypoint_picture_and_beside_another_controlnet(self, components, nets, identity):
        plain = make(StableDiffusionXLPipeline, components)
        sampling = Sampling(num_inference_steps=1)
        assert len(generate(plain, identity, None, "a man", sampling, width=SIZE, height=SIZE)) == 1
        both = make(StableDiffusionXLControlNetPipeline, components, controlnet=nets)
        assert len(generate_function(both, identity, KEYPOINTS, "a man", sampling, image=picture(3))) == 1


def test_numpy_numbers_are_numbers(identity):
    assert Subject(identity, weight=np.float32(0.8)).weight == pytest.approx(0.8)
    assert Subject(identity, weight=np.int64(1)).weight == 1
