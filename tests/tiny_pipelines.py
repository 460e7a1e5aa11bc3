"""Pipelines of diffusers on tiny random networks of SDXL's shape: fixtures of the modules that name it a plugin.

They have 17 cross-attention layers, in SDXL's places, and all 70 in tests marked ``all_layers``.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPAGPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPAGPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_sdxl import DEPTH, TOKEN_WIDTH, layer_channels, write_tiny_identitynet, write_tiny_sdxl
from fast_instantid.identity import Adapter

SIZE = 128
SHALLOW = (1, 1, 2)


def picture(seed, mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


KEYPOINTS = picture(0)


@pytest.fixture(scope="session")
def networks_of(tmp_path_factory):
    """Depth -> files, and what is loaded from them."""

    @cache
    def networks_of(depth):
        folder, channels = tmp_path_factory.mktemp("tiny"), layer_channels(depth)
        files = SimpleNamespace(
            base=write_tiny_sdxl(folder / "base", depth=depth),
            identity_net=write_tiny_identitynet(folder / "ControlNetModel", seed=1, depth=depth),
            other_net=write_tiny_identitynet(folder / "other", seed=2, depth=depth),
            adapter=write_tiny_adapter(folder / "ip-adapter.bin", channels=channels, token_width=TOKEN_WIDTH),
        )
        adapter = Adapter.load(files.adapter, "cpu", torch.float32)
        embeddings = (torch.randn(1, 512, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6))
        return SimpleNamespace(
            files=files,
            components=StableDiffusionXLPipeline.from_pretrained(files.base).components,
            nets=[ControlNetModel.from_pretrained(path) for path in (files.identity_net, files.other_net)],
            adapter=adapter,
            identities=[adapter.identity(embedding) for embedding in embeddings],
        )

    return networks_of


@pytest.fixture
def networks(networks_of, request):
    return networks_of(DEPTH if request.node.get_closest_marker("all_layers") else SHALLOW)


@pytest.fixture
def files(networks):
    return networks.files


@pytest.fixture
def components(networks):
    """Networks that tests may attach to, but must leave as they were."""
    return networks.components


@pytest.fixture
def nets(networks):
    return [*networks.nets]


@pytest.fixture
def adapter(networks):
    return networks.adapter


@pytest.fixture
def identity(networks):
    return networks.identities[0]


@pytest.fixture
def someone_else(networks):
    return networks.identities[1]


@pytest.fixture
def pipe(components, nets):
    return make(StableDiffusionXLControlNetPipeline, components, controlnet=nets[0])


@pytest.fixture
def own_pipe(files):
    """A pipeline whose networks a test may change for good."""
    net = ControlNetModel.from_pretrained(files.identity_net)
    return quiet(StableDiffusionXLControlNetPipeline.from_pretrained(files.base, controlnet=net))


@pytest.fixture
def shallow_pipe(own_pipe):
    """``own_pipe`` with 7 cross-attention layers instead of 70, so that torch.compile traces it in seconds."""
    shallow = {"layers_per_block": 1, "transformer_layers_per_block": (1, 1, 1)}
    unet, net = own_pipe.unet, own_pipe.controlnet
    own_pipe.register_modules(
        unet=type(unet).from_config(unet.config, **shallow), controlnet=type(net).from_config(net.config, **shallow)
    )
    return own_pipe


@pytest.fixture
def shallow_adapter(tmp_path):
    """An adapter for the layers of ``shallow_pipe``."""
    channels = [16, 32] + [32] * 2 + [16] * 2 + [32]
    path = write_tiny_adapter(tmp_path / "ip-adapter.bin", channels=channels, token_width=TOKEN_WIDTH)
    return Adapter.load(path, "cpu", torch.float32)


@pytest.fixture
def shallow_identity(shallow_adapter):
    return shallow_adapter.identity(torch.ones(1, 512))


@pytest.fixture
def shallow_other(shallow_adapter):
    return shallow_adapter.identity(-torch.ones(1, 512))


def make(pipeline, components, **more):
    return quiet(pipeline(**components, **more))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, scale=0.8, steps=2, seed=0, **kwargs):
    """Latents, ``(images, 4, h, w)``."""
    if hasattr(pipe, "controlnet"):
        kwargs = {"image": KEYPOINTS, "controlnet_conditioning_scale": scale} | kwargs
    generator = [torch.Generator().manual_seed(seed + i) for i in range(kwargs.get("num_images_per_prompt", 1))]
    return pipe("a man reading", num_inference_steps=steps, generator=generator, output_type="latent", **kwargs).images


PHOTO, MASK, EDGES = picture(1), picture(2, "L").point(lambda value: 255 * (value > 127)), picture(3)

PIPELINES = {
    "text to image": (StableDiffusionXLControlNetPipeline, 1, {}),
    "image to image": (
        StableDiffusionXLControlNetImg2ImgPipeline, 1, {"image": PHOTO, "control_image": KEYPOINTS, "strength": 0.9}
    ),
    "inpaint": (
        StableDiffusionXLControlNetInpaintPipeline,
        1,
        {"image": PHOTO, "mask_image": MASK, "control_image": KEYPOINTS, "strength": 0.99},
    ),
    "two ControlNets": (StableDiffusionXLControlNetPipeline, 2, {"image": [KEYPOINTS, EDGES]}),
    "perturbed attention": (StableDiffusionXLControlNetPAGPipeline, 1, {"pag_scale": 3.0}),
    "no ControlNet": (StableDiffusionXLPipeline, 0, {"height": SIZE, "width": SIZE}),
    "perturbed attention, no ControlNet": (
        StableDiffusionXLPAGPipeline, 0, {"height": SIZE, "width": SIZE, "pag_scale": 3.0}
    ),
}  # fmt: skip


@pytest.fixture(params=PIPELINES)
def any_pipe(request, components, nets):
    """A pipeline of each kind, as ``(pipe, arguments of a call)``."""
    pipeline, num_nets, arguments = PIPELINES[request.param]
    more = {} if num_nets == 0 else {"controlnet": nets[0] if num_nets == 1 else nets[:num_nets]}
    return make(pipeline, components, **more), arguments


def state_of(pipe):
    """Everything an attachment may touch."""
    models = [pipe.unet, *getattr(pipe.controlnet, "nets", [pipe.controlnet])]
    hooks = [
        [dict(m._forward_pre_hooks), dict(m._forward_pre_hooks_with_kwargs), dict(m._forward_hooks)] for m in models
    ]
    return pipe.unet.attn_processors, hooks, [repr(m) for m in models], [sorted(vars(m)) for m in models]


def assert_unchanged(pipe, state):
    processors, *rest = state_of(pipe)
    assert processors.keys() == state[0].keys()
    assert all(processors[name] is state[0][name] for name in processors)
    assert rest == list(state[1:])


def load_tiny_ip_adapter(unet):
    """A random IP-Adapter of four tokens, loaded as diffusers loads one from a file."""
    generator = torch.Generator().manual_seed(9)
    image_proj = {
        "proj.weight": torch.randn(4 * TOKEN_WIDTH, 8, generator=generator),
        "proj.bias": torch.zeros(4 * TOKEN_WIDTH),
        "norm.weight": torch.ones(TOKEN_WIDTH),
        "norm.bias": torch.zeros(TOKEN_WIDTH),
    }
    layers = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    channels = [unet.get_submodule(layer).inner_dim for layer in layers]
    weights = {
        f"{2 * i + 1}.to_{part}_ip.weight": torch.randn(width, TOKEN_WIDTH, generator=generator) / TOKEN_WIDTH**0.5
        for i, width in enumerate(channels)
        for part in "kv"
    }
    unet._load_ip_adapter_weights([{"image_proj": image_proj, "ip_adapter": weights}])
    return {"ip_adapter_image_embeds": [torch.randn(2, 1, 8, generator=generator)]}
