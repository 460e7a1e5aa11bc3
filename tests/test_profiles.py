"""Profiles: a scheduler and a LoRA for one call, and everything as before afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fast_instantid import InstantID, miniature
from fast_instantid.cli import main
from fast_instantid.cli.output import text_in
from fast_instantid.errors import FastInstantIDError, ModelFileError
from fast_instantid.pipelines import Approximations, Sampling, generate
from fast_instantid.pipelines.approximations import FAST
from fast_instantid.pipelines.load import load_lora
from fast_instantid.pipelines.profiles import PROFILES, Profile

PROMPT = "flat portrait, plain red background"
LCM = PROFILES["lcm"]


@pytest.fixture(scope="module")
def instantid():
    return InstantID.from_pretrained("miniature", device="cpu")


@pytest.fixture(scope="module")
def ada(instantid):
    return instantid.person(miniature.files().portraits[0])


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A models folder with a LoRA in the place of LCM's, and none in the hub's cache."""
    monkeypatch.setenv("FAST_INSTANTID_MODELS", str(tmp_path))
    path = tmp_path / LCM.repository / LCM.lora
    path.parent.mkdir(parents=True)
    save_file(lora(0), path)
    return tmp_path


def lora(seed):
    generator = torch.Generator().manual_seed(seed)
    name = "unet.up_blocks.1.attentions.0.proj_in"
    sizes = {"lora_A": (2, 64), "lora_B": (64, 2)}
    return {f"{name}.{part}.weight": torch.randn(*size, generator=generator) for part, size in sizes.items()}


def drawn(instantid, person, **options):
    return instantid(PROMPT, person, **{"seed": 3, "output_type": "np"} | options).images[0]


def test_the_table_holds_what_the_model_cards_say(instantid):
    assert {name: profile.options["num_inference_steps"] for name, profile in PROFILES.items()} == {
        "lcm": 8, "lightning": 4, "dmd2": 4, "hyper": 8, "turbo": 4,
    }  # fmt: skip
    assert all(profile.options["guidance_scale"] == 1 for profile in PROFILES.values())
    first = {name: profile._scheduler(instantid.pipe.scheduler.config, 4) for name, profile in PROFILES.items()}
    assert first["dmd2"].timesteps.tolist() == [999, 749, 499, 249]
    for name in ("lightning", "hyper", "turbo"):
        assert first[name].timesteps.tolist() == [999, 749, 499, 249], "trailing"
    assert first["lcm"].timesteps[0] == 999


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_samples_and_leaves_the_pipeline_as_it_was(instantid, ada, name):
    scheduler, config, seen = instantid.pipe.scheduler, dict(instantid.pipe.config), []

    def look(pipe, step, timestep, tensors):
        seen.append(pipe.do_classifier_free_guidance)
        assert type(pipe.scheduler).__name__ == PROFILES[name].scheduler
        assert pipe.scheduler.config.prediction_type == scheduler.config.prediction_type
        return tensors

    usual = drawn(instantid, ada, num_inference_steps=2)
    image = drawn(instantid, ada, profile=f"{name}-merged", callback_on_step_end=look)
    assert seen == [False] * PROFILES[name].steps
    assert np.isfinite(image).all()
    assert instantid.pipe.scheduler is scheduler
    assert dict(instantid.pipe.config) == config
    assert np.array_equal(drawn(instantid, ada, num_inference_steps=2), usual)


def test_arguments_of_the_call_win(instantid, ada):
    steps = []

    def look(pipe, step, timestep, tensors):
        steps.append(pipe.do_classifier_free_guidance)
        return tensors

    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "callback_on_step_end": look}
    drawn(instantid, ada, profile="lcm-merged", **options)
    assert steps == [True, True]


def test_everything_is_restored_after_an_error(instantid, ada):
    def fail(*_):
        raise KeyboardInterrupt

    scheduler = instantid.pipe.scheduler
    with pytest.raises(KeyboardInterrupt):
        drawn(instantid, ada, profile="lightning-merged", callback_on_step_end=fail)
    assert instantid.pipe.scheduler is scheduler
    with pytest.raises(FastInstantIDError, match="lcm cannot do 51 steps"):
        drawn(instantid, ada, profile="lcm-merged", num_inference_steps=51)
    assert instantid.pipe.scheduler is scheduler


def test_a_wrong_name_and_a_missing_lora_say_what_to_do(instantid, ada, tmp_path, monkeypatch):
    monkeypatch.setenv("FAST_INSTANTID_MODELS", str(tmp_path))
    for name in ("fast", "", "lcm_merged"):
        with pytest.raises(FastInstantIDError, match=f"no profile '{name}': choose from lcm, lightning, dmd2, hyper"):
            drawn(instantid, ada, profile=name)
        with pytest.raises(FastInstantIDError, match="no profile"):
            Sampling(profile=name)
    said = r"needs the LoRA sdxl_lightning_4step_lora.safetensors of ByteDance/SDXL-Lightning.*adapter_name='lightning'"
    with pytest.raises(ModelFileError, match=said):
        drawn(instantid, ada, profile="lightning")


def test_the_lora_acts_in_calls_of_the_profile_alone(models, ada):
    instantid = InstantID.from_pretrained("miniature", device="cpu")
    few = {"num_inference_steps": 1}
    usual, merged = drawn(instantid, ada, **few), drawn(instantid, ada, profile="lcm-merged", **few)
    with_lora = drawn(instantid, ada, profile="lcm", **few)
    assert np.abs(with_lora - merged).max() > 0.01
    assert np.array_equal(drawn(instantid, ada, **few), usual)
    assert np.array_equal(drawn(instantid, ada, profile="lcm-merged", **few), merged)
    assert np.array_equal(drawn(instantid, ada, profile="lcm", **few), with_lora), "it is loaded once"


def test_other_loras_act_beside_it_and_stay(models, ada, tmp_path):
    save_file(lora(1), tmp_path / "style.safetensors")
    instantid = InstantID.from_pretrained("miniature", device="cpu")
    few = {"num_inference_steps": 1}
    alone = drawn(instantid, ada, profile="lcm", **few)
    load_lora(instantid.pipe, tmp_path / "style.safetensors", "style")
    instantid.pipe.set_adapters(["style"], [0.5])
    styled = drawn(instantid, ada, **few)
    assert np.abs(drawn(instantid, ada, profile="lcm", **few) - alone).max() > 0.001
    assert instantid.pipe.get_active_adapters() == ["style"]
    assert np.array_equal(drawn(instantid, ada, **few), styled)
    instantid.pipe.disable_lora()
    off = drawn(instantid, ada, **few)
    assert np.array_equal(drawn(instantid, ada, profile="lcm", **few), alone), "what is switched off stays so"
    assert np.array_equal(drawn(instantid, ada, **few), off)


def test_sampling_takes_a_profile(instantid, ada):
    profile = replace(LCM, lora="")
    assert Sampling().options["num_inference_steps"] == 30
    assert Sampling(profile=profile).options["num_inference_steps"] == 8
    assert Sampling(profile=profile, num_inference_steps=3, guidance_scale=2.0).options["num_inference_steps"] == 3
    scheduler, keypoints = instantid.pipe.scheduler, Image.new("RGB", (128, 128))
    [image] = generate(instantid, ada, keypoints, PROMPT, Sampling(profile=profile, num_inference_steps=1))
    assert image.size == (128, 128)
    assert instantid.pipe.scheduler is scheduler
    assert Profile.of(profile) is profile


class TestShell:
    @pytest.fixture
    def run(self, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("FAST_INSTANTID_MODELS", str(tmp_path))
        photo, base = str(miniature.files().portraits[0]), ("--base", "miniature", "--device", "cpu")

        def run(*arguments):
            code = main(["generate", "--photo", photo, "--prompt", PROMPT, *base, "-o", "a.png", *arguments])
            return code, capsys.readouterr().err

        return run

    def settings(self):
        return text_in(Path("a.png"), "settings")

    def test_a_profile_draws_and_is_kept_in_the_picture(self, run):
        assert run("--profile", "lightning-merged")[0] == 0
        kept = self.settings()
        assert (kept["profile"], kept["num_inference_steps"], kept["guidance_scale"]) == ("lightning-merged", 4, 1.0)
        few = np.asarray(Image.open("a.png"), int)
        assert run("--profile", "lightning-merged", "--steps", "2", "--scheduler", "DDIMScheduler")[0] == 0
        assert self.settings()["num_inference_steps"] == 2
        assert np.abs(np.asarray(Image.open("a.png"), int) - few).max() > 0

    def test_what_is_wrong_is_said_before_anything_is_drawn(self, run, tmp_path):
        code, said = run("--profile", "fast")
        assert code == 1
        assert "no profile 'fast': choose from lcm" in said
        code, said = run("--profile", "dmd2")
        assert code == 1
        assert "needs the LoRA dmd2_sdxl_4step_lora_fp16.safetensors of tianweiy/DMD2" in said
        code, said = run("--profile", "lcm-merged", "--steps", "60")
        assert code == 1
        assert "lcm cannot do 60 steps" in said
        assert not (tmp_path / "a.png").exists()

    def test_fast_is_the_preset_with_what_is_given(self, run, monkeypatch):
        seen = []
        call = InstantID.__call__

        def spy(self, *args, **options):
            seen.append(options["approximations"])
            return call(self, *args, **options)

        monkeypatch.setattr(InstantID, "__call__", spy)
        few = ("--profile", "lcm-merged", "--steps", "1")
        assert run(*few, "--fast")[0] == 0
        assert run(*few, "--fast", "--layers", "up_blocks", "--identity-range", "0", "0.5")[0] == 0
        assert run(*few)[0] == 0
        chosen = Approximations(["up_blocks"], (0.0, 0.5), identity_net_every=FAST.identity_net_every)
        assert seen == [FAST, chosen, Approximations()]
