"""The same picture, to the bit, under every scheduler and LoRA, and from many threads at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import diffusers
import pytest
import torch
from diffusers import StableDiffusionXLControlNetPipeline
from peft import LoraConfig

from fast_instantid import Cache, FaceAnalyzer
from fast_instantid.pipelines import InstantID
from tests.tiny_pipelines import make, sample

pytest_plugins = ["tests.tiny_pipelines"]
SCHEDULERS = (
    *("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep"),
    *("EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LCM"),
    *("LMSDiscrete", "SASolver", "TCD", "UniPCMultistep"),
)
TARGETS = [f"attn{n}.to_{part}" for n in (1, 2) for part in ("q", "k", "v", "out.0")] + ["ff.net.2", "conv1", "proj_in"]


def test_any_scheduler_draws_what_computing_at_every_step_does(trials, components, nets, identity):
    pipe = make(StableDiffusionXLControlNetPipeline, components, controlnet=nets[0])
    config = pipe.scheduler.config
    for random in trials:
        scheduler = getattr(diffusers, f"{random.choice(SCHEDULERS)}Scheduler")
        arguments = {"steps": random.randint(2, 5), "seed": random.randrange(1000)}
        arguments["guidance_scale"], scale = random.choice([1.0, 3.0, 7.5]), random.choice([0.5, 0.8])
        pictures = []
        for reuse in (False, True):
            pipe.scheduler = scheduler.from_config(config)
            with InstantID(pipe, reuse=reuse).attached(identity, scale=scale):
                pictures.append(sample(pipe, **arguments))
        assert torch.equal(*pictures), f"{scheduler.__name__} {arguments}"


def test_any_lora_loaded_while_attached_draws_what_one_loaded_before_does(trials, own_pipe, identity):
    for random in trials:
        lora = LoraConfig(
            r=random.choice([1, 4, 16]),
            lora_alpha=random.choice([1, 8]),
            target_modules=random.sample(TARGETS, random.randint(1, len(TARGETS))),
            use_dora=random.random() < 0.3,
            use_rslora=random.random() < 0.3,
            init_lora_weights=False,
        )
        arguments = {"steps": 2, "seed": random.randrange(1000)}
        torch.manual_seed(arguments["seed"])
        with InstantID(own_pipe).attached(identity):
            own_pipe.unet.add_adapter(lora, "style")
            while_attached = sample(own_pipe, **arguments)
        with InstantID(own_pipe).attached(identity):
            assert torch.equal(sample(own_pipe, **arguments), while_attached), lora
        own_pipe.unet.delete_adapters("style")


@pytest.mark.parametrize("shared", [True, False], ids=["one cache", "no cache"])
def test_threads_get_what_one_alone_gets(trials, pack, astronaut, shared):
    pictures = [astronaut.copy() for _ in range(6)]
    for number, picture in enumerate(pictures):
        picture[number, 0] ^= 255  # another picture
    expected = FaceAnalyzer.load(pack, device="cpu", cache=Cache(max_bytes=0)).embed(pictures)
    for random in trials:
        analyzer = FaceAnalyzer.load(pack, device="cpu", cache=Cache() if shared else Cache(max_bytes=0))
        asked = [random.randrange(6) for _ in range(32)]
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(analyzer.embed, [pictures[number] for number in asked]))
        assert all((one[0] == expected[number]).all() for one, number in zip(found, asked, strict=True))
