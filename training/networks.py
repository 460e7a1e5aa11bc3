"""The networks of the miniature that draw, each of the architecture of SDXL's and InstantID's, and how they are saved.

Sizes are chosen so that all weights fit into 20 MB at half precision. Channels are multiples of 32, because ComfyUI
builds its group norms with 32 groups before anyone can say otherwise; here a group norm has 8 groups.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fast_instantid.identity.resampler import Resampler
from training.world import CLOTHES, COLORS, MOTIFS, SIZE, STYLES

CHANNELS = (64, 64, 32)
HEADS = (4, 4, 2)
TOKEN_WIDTH = 64
"""Width of the text and identity tokens; SDXL's is 2048."""
TEXT_LENGTH = 24
"""Tokens of a prompt with its start and end; SDXL has 77."""
NUM_TOKENS = 16
EMBEDDING_DIM = 512
FULL_DEPTH = (1, 2, 10)
"""Transformer blocks in each attention, by level. The first level has no attention, as in SDXL."""
SCALING_FACTOR = 0.13025
NORM_GROUPS = 8

_TEXT_WIDTH = TOKEN_WIDTH // 2  # each of the two text encoders
_TIME_ID_WIDTH = 256  # six sizes and offsets, each embedded in so many numbers; ComfyUI knows no other width
_WORDS = (
    *COLORS, *MOTIFS, *CLOTHES, *STYLES, "portrait", "picture", "background", "a", "of", "person", "in", "on", "with",
    "and", "the", "drawing", "wearing", "man", "woman",
)  # fmt: skip


def _blocks(depth: tuple[int, int, int]) -> dict[str, Any]:
    return {
        "block_out_channels": CHANNELS,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": depth,
        "attention_head_dim": HEADS,  # the number of heads: diffusers' name for it is historical
        "cross_attention_dim": TOKEN_WIDTH,
        "norm_num_groups": NORM_GROUPS,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _TIME_ID_WIDTH,
        "projection_class_embeddings_input_dim": _TEXT_WIDTH + 6 * _TIME_ID_WIDTH,
    }


def unet(depth: tuple[int, int, int] = FULL_DEPTH) -> UNet2DConditionModel:
    """SDXL's UNet with few channels; 70 cross-attention layers at full depth."""
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        **_blocks(depth),
    )


def identitynet(depth: tuple[int, int, int] = FULL_DEPTH) -> ControlNetModel:
    return ControlNetModel(conditioning_embedding_out_channels=(8, 8, 16, 32), **_blocks(depth))


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=NORM_GROUPS,
        sample_size=SIZE,
        scaling_factor=SCALING_FACTOR,
    )


def resampler() -> Resampler:
    return Resampler(
        dim=96, depth=2, inner_dim=128, feed_forward_dim=384, num_queries=NUM_TOKENS, embedding_dim=EMBEDDING_DIM,
        output_dim=TOKEN_WIDTH,
    )  # fmt: skip


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        prediction_type="v_prediction", timestep_spacing="trailing",
    )  # fmt: skip


def tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's byte pair encoding with one token for every word of the world; other words fall into letters.

    Words are merged from their ends, so no merge of one word can break another: only the piece with the end of a word
    ever grows.
    """
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    merges: list[tuple[str, str]] = []
    for word in _WORDS:
        for i in range(len(word) - 2, -1, -1):
            merges.append((word[i], f"{word[i + 1 :]}</w>"))
    merges = list(dict.fromkeys(merges))
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=TEXT_LENGTH)


def text_encoders(words: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    config = CLIPTextConfig(
        hidden_size=_TEXT_WIDTH,
        intermediate_size=4 * _TEXT_WIDTH,
        projection_dim=_TEXT_WIDTH,
        num_attention_heads=2,
        num_hidden_layers=3,  # SDXL reads the one before the last
        max_position_embeddings=TEXT_LENGTH,
        vocab_size=len(words),
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return CLIPTextModel(config), CLIPTextModelWithProjection(config)


class Adapter(nn.Module):
    """InstantID's adapter while it is trained: the resampler, and a key and a value weight for each attention layer.

    Args:
        channels: of each cross-attention layer of the UNet in checkpoint order.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.image_proj = resampler()
        self.keys = nn.ModuleList(nn.Linear(TOKEN_WIDTH, width, bias=False) for width in channels)
        self.values = nn.ModuleList(nn.Linear(TOKEN_WIDTH, width, bias=False) for width in channels)

    def checkpoint(self) -> dict[str, torch.Tensor]:
        """The dotted keys of an ``ip-adapter.safetensors``; the layers have odd numbers, as InstantX's have."""
        tensors = {f"image_proj.{name}": value for name, value in self.image_proj.state_dict().items()}
        for i, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            tensors[f"ip_adapter.{2 * i + 1}.to_k_ip.weight"] = key.weight.detach()
            tensors[f"ip_adapter.{2 * i + 1}.to_v_ip.weight"] = value.weight.detach()
        return tensors

    @torch.no_grad()
    def load_checkpoint(self, tensors: dict[str, torch.Tensor]) -> None:
        """Load a state dict of :meth:`checkpoint`."""
        own = self.checkpoint()
        if own.keys() != tensors.keys():
            raise ValueError(f"these are not the weights of this adapter: {sorted(own.keys() ^ tensors.keys())[:4]}")
        for name, value in own.items():
            value.copy_(tensors[name])


def cross_attention_layers(network: UNet2DConditionModel) -> list[tuple[str, nn.Module]]:
    """``(name, layer)`` in checkpoint order, which is that of ``attn_processors``: down, up, middle."""
    names = (name for name in network.attn_processors if name.endswith("attn2.processor"))
    return [(name.removesuffix(".processor"), network.get_submodule(name.removesuffix(".processor"))) for name in names]


def save_base(
    folder: Path,
    network: UNet2DConditionModel,
    vae: AutoencoderKL,
    words: CLIPTokenizer,
    encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
) -> None:
    """Write an SDXL folder in diffusers' layout, fp16 under the plain names, so that it loads without a variant."""
    pipe = StableDiffusionXLPipeline(
        vae=vae, text_encoder=encoders[0], text_encoder_2=encoders[1], tokenizer=words, tokenizer_2=words,
        unet=network, scheduler=scheduler(), add_watermarker=False,
    )  # fmt: skip
    pipe.register_to_config(force_zeros_for_empty_prompt=False)  # nothing said is a caption like others, as in ComfyUI
    pipe.to(torch.float16).save_pretrained(folder)
    _prefix_keys(folder / "text_encoder" / "model.safetensors")
    for path in folder.rglob("config.json"):  # where a part was loaded from is nobody's business
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer(folder / name)  # the files that older libraries and ComfyUI read


def _prefix_keys(path: Path) -> None:
    """Name the weights of a text encoder as SDXL's files do; transformers 5 leaves the prefix away, 4 needs it."""
    weights = load_file(path)
    named = {name if name.startswith("text_model.") else f"text_model.{name}": weights[name] for name in weights}
    save_file(named, path, metadata={"format": "pt"})


def save_instantid(folder: Path, net: ControlNetModel, adapter: Adapter) -> None:
    """Write ``ControlNetModel/`` and ``ip-adapter.safetensors``, fp16."""
    net.to(torch.float16).save_pretrained(folder / "ControlNetModel")
    tensors = {name: value.to(torch.float16).contiguous() for name, value in adapter.checkpoint().items()}
    save_file(tensors, folder / "ip-adapter.safetensors")
