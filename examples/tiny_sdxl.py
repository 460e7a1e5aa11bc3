"""Tiny random networks of SDXL's shape, in diffusers' folder layout.

They draw noise, but they have everything that matters to code around a pipeline: the same block structure, the same 70
cross-attention layers in the same order, two text encoders, a VAE. Small enough to sample in a fraction of a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

CHANNELS = (8, 16, 32)
DEPTH = (1, 2, 10)
"""Transformer blocks of each attention on the three levels, as in SDXL, whose first level has no attention."""


def layer_channels(depth: tuple[int, int, int] = DEPTH) -> list[int]:
    """Channels of the cross-attention layers in checkpoint order: down, up, middle."""
    _, few, many = depth
    return [16] * 2 * few + [32] * (2 + 3) * many + [16] * 3 * few + [32] * many


LAYER_CHANNELS = layer_channels()
"""Channels of all 70 cross-attention layers."""
TOKEN_WIDTH = 32
"""Width of the text and identity tokens; SDXL's is 2048."""

_TEXT_WIDTH = TOKEN_WIDTH // 2  # each of the two text encoders
_NUM_TIME_IDS, _TIME_ID_WIDTH = 6, 8
_BLOCKS = {
    "block_out_channels": CHANNELS,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": (1, 2, 4),  # the number of heads: diffusers' name for it is historical
    "cross_attention_dim": TOKEN_WIDTH,
    "norm_num_groups": 8,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": _TIME_ID_WIDTH,
    "projection_class_embeddings_input_dim": TOKEN_WIDTH + _NUM_TIME_IDS * _TIME_ID_WIDTH,
}


def write_tiny_sdxl(folder: str | Path, seed: int = 0, depth: tuple[int, int, int] = DEPTH) -> Path:
    """Write a tiny SDXL that ``StableDiffusionXLPipeline.from_pretrained`` loads; return the folder.

    Args:
        depth: as :data:`DEPTH`; with fewer blocks it draws faster.
    """
    folder = Path(folder)
    tokenizer = _tokenizer(folder / "tokenizer")
    with _seeded(seed):
        StableDiffusionXLPipeline(
            unet=UNet2DConditionModel(
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=depth,
                **_BLOCKS,
            ),
            vae=AutoencoderKL(
                block_out_channels=(8, 8, 8, 8),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                norm_num_groups=4,
                scaling_factor=0.13025,
            ),
            text_encoder=CLIPTextModel(_text_config(tokenizer)),
            text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer)),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"
            ),
            add_watermarker=False,
        ).save_pretrained(folder)
    return folder


def write_tiny_identitynet(folder: str | Path, seed: int = 1, depth: tuple[int, int, int] = DEPTH) -> Path:
    """Write a tiny ControlNet to match; return the folder.

    The convolutions a ControlNet is read out through start as zeros: here they are random, so that it has an effect.
    """
    with _seeded(seed):
        net = ControlNetModel(
            conditioning_embedding_out_channels=(8, 8, 16, 16), transformer_layers_per_block=depth, **_BLOCKS
        )
        outputs = [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]
        for output in outputs:
            torch.nn.init.normal_(output.weight, std=0.1)
        net.save_pretrained(folder)
    return Path(folder)


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=_TEXT_WIDTH,
        intermediate_size=2 * _TEXT_WIDTH,
        projection_dim=TOKEN_WIDTH,
        num_attention_heads=2,
        num_hidden_layers=3,  # SDXL reads the one before the last
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer without merges: one token for each ASCII character, inside a word or at its end."""
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    tokens = [*characters, *(f"{character}</w>" for character in characters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
