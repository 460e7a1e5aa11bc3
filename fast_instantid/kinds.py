"""Which model a file of weights holds, told by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

SDXL_WIDTH = 2048
NAMES_OF_WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 1280: "SDXL's refiner", SDXL_WIDTH: "SDXL"}
"""Models, by the width of the tokens that cross-attention reads."""
_FACE_WIDTH = 512  # of ArcFace's embeddings
_UNET, _CONV_IN = "model.diffusion_model.", "model.diffusion_model.input_blocks.0.0.weight"
_CHECKPOINT_PARTS = {
    "UNet": _UNET,
    "VAE": "first_stage_model.",
    "text encoder 1": "conditioner.embedders.0.transformer.",
    "text encoder 2": "conditioner.embedders.1.model.",
}
_QUANTISED = (".scale_weight", ".weight_scale", ".comfy_quant", ".absmax", "scaled_fp8")
_EDM = ("edm_mean", "edm_vpred.sigma_max")

Tensors = Mapping[str, Tensor]
Predicate = Callable[[Tensors], bool]


def text_width(tensors: Tensors) -> int | None:
    """Return the width of the tokens that cross-attention reads (see ``NAMES_OF_WIDTHS``); None without one."""
    keys = (tensor for name, tensor in tensors.items() if name.endswith("attn2.to_k.weight") and tensor.ndim == 2)
    return next((key.shape[1] for key in keys), None)


def why_not_sdxl(tensors: Tensors, width: int = SDXL_WIDTH) -> str:
    """Say why these tensors are not those of a whole SDXL checkpoint; "" if they are.

    Args:
        tensors: of a single file in the original layout.
        width: of the text tokens; other than SDXL's for small models of its architecture.
    """
    tensors = {name.removeprefix("state_dict."): tensor for name, tensor in tensors.items()}  # of a .ckpt
    found = text_width(tensors)
    if not any(name.startswith(_UNET) for name in tensors):
        return f"this is {kind_of(tensors)}, not an SDXL checkpoint"
    if found != width:
        return f"this is a checkpoint of {NAMES_OF_WIDTHS.get(found or 0, 'another architecture')}, not of SDXL"
    if _shape(tensors, _CONV_IN)[1:2] not in ((), (4,)):
        return f"its UNet reads {_shape(tensors, _CONV_IN)[1]} channels, as for inpainting or edits, where SDXL reads 4"
    if any(name in tensors for name in _EDM):
        return "its UNet was trained for another noise schedule (EDM)"
    if any(name.endswith(_QUANTISED) for name in tensors):
        return "its weights are quantised; get the checkpoint in float16"
    lacks = [part for part, prefix in _CHECKPOINT_PARTS.items() if not any(name.startswith(prefix) for name in tensors)]
    return f"this SDXL checkpoint lacks its {' and its '.join(lacks)}; get a whole one" if lacks else ""


def kind_of(tensors: Tensors) -> str:
    """Describe the model that these tensors are of."""
    for kind, is_kind in _KINDS:
        if is_kind(tensors):
            return kind
    return f"an unknown model ({len(tensors)} tensors: {', '.join(sorted(tensors)[:3])}, ...)"


def _shape(tensors: Tensors, name: str) -> tuple[int, ...]:
    return tuple(tensors[name].shape) if name in tensors else ()


def _starts(*prefixes: str) -> Predicate:
    return lambda tensors: any(name.startswith(prefixes) for name in tensors)


def _contains(*parts: str) -> Predicate:
    return lambda tensors: any(part in name for name in tensors for part in parts)


def _base(width: int) -> Predicate:
    """Return a predicate for IP-Adapters of the base model with text of this width."""
    return lambda tensors: _shape(tensors, "ip_adapter.1.to_k_ip.weight")[1:] == (width,)


_SD15, _SDXL = _base(768), _base(SDXL_WIDTH)
_PLUS = _starts("image_proj.latents")


def is_adapter(tensors: Tensors) -> bool:
    """Whether this is InstantID's adapter. IP-Adapter Plus has the same names, but its input is never 512 wide."""
    reads_faces = _shape(tensors, "image_proj.proj_in.weight")[1:] == (_FACE_WIDTH,)
    return reads_faces and {"image_proj.latents", "ip_adapter.1.to_k_ip.weight"} <= tensors.keys()


def _face_id(tensors: Tensors) -> bool:
    """Whether this is an IP-Adapter FaceID: it has a LoRA or Plus FaceID's resampler, or reads face embeddings."""
    with_lora_or_plus = _contains("to_q_lora", "image_proj.perceiver_resampler.")
    return with_lora_or_plus(tensors) or _shape(tensors, "image_proj.proj.0.weight")[1:] == (_FACE_WIDTH,)


# The first match names the file, so parts of larger models come last.
_KINDS: tuple[tuple[str, Predicate], ...] = (
    ("InstantID's adapter", is_adapter),
    ("an IP-Adapter FaceID for SD 1.5", lambda t: _face_id(t) and _SD15(t)),
    ("an IP-Adapter FaceID for SDXL", lambda t: _face_id(t) and _SDXL(t)),
    ("an IP-Adapter Plus for SD 1.5", lambda t: _PLUS(t) and _SD15(t)),
    ("an IP-Adapter Plus for SDXL", lambda t: _PLUS(t) and _SDXL(t)),
    ("an IP-Adapter for SD 1.5", _SD15),
    ("an IP-Adapter for SDXL", _SDXL),
    ("an IP-Adapter of another kind", _contains("to_k_ip.weight")),
    ("a ControlNet, which InstantID's IdentityNet is too", _starts("controlnet_cond_embedding.", "controlnet_down_")),
    ("a ControlNet in ComfyUI's layout", _starts("control_model.", "input_hint_block.", "zero_convs.")),
    (
        "a LoRA",
        _contains("lora_up.", "lora_down.", "lora_A.", "lora_B.", ".lora.", ".hada_w", ".lokr_w", ".oft_", ".dora_"),
    ),
    ("a whole checkpoint", _starts(_UNET, "first_stage_model.", "cond_stage_model.", "conditioner.")),
    ("a UNet", _starts("input_blocks.", "down_blocks.", "diffusion_model.")),
    ("a VAE", _starts("decoder.", "encoder.down", "quant_conv.")),
    ("a saved identity, which Identity.load reads", _starts("0.key")),
    ("a CLIP model", _contains("text_model.", "vision_model.", "token_embedding.", "class_embedding", "resblocks.")),
    ("a textual inversion", _starts("clip_l", "clip_g", "emb_params", "string_to_param")),
)
