"""A real ComfyUI in this process, with a model, a ControlNet and prompts of random weights: every suite's host."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

from benchmarks.sizes import IDENTITY_TOKENS, TEXT_TOKENS, WEIGHT, Size

CFG = 5.0
_CPU = torch.device("cpu")
_VIDEO = ("av", "av.container", "av.subtitles", "av.subtitles.stream", "av.video", "av.video.reformatter")
_BRANCH_ENDS = ("to_out.0.weight", "proj_out.weight", "net.2.weight", "out_layers.3.weight")
_BRANCH_GAIN = 0.7  # less than what it is added to, so that the many layers of a random UNet stay in fp16's range


@dataclass(frozen=True)
class Patched:
    """What a user's sampler node is given."""

    model: Any
    positive: list[list[Any]]
    negative: list[list[Any]]


@dataclass(frozen=True)
class Evaluation:
    """One sampling step that can be repeated: cond and uncond in one batch through ControlNet, UNet and guidance."""

    guider: Any
    arguments: dict[str, Any]
    x: Tensor
    """``(batch, 4, h, w)``"""
    sigma: Tensor
    """``(batch,)``"""

    def __call__(self) -> Tensor:
        """The prediction ``(batch, 4, h, w)``."""
        self.guider.model_patcher.pre_run()  # all variants share one UNet, which has to know whose turn it is
        return self.guider(self.x, self.sigma, **self.arguments)


class Host:
    """ComfyUI, a model, a ControlNet and two prompts. It imports nothing that a ComfyUI just started has not imported.

    Args:
        comfyui: its checkout.
        base: the folder that has, or will have, ``models`` in it.
        compiles: on a CPU too, take the attention that ComfyUI takes on a GPU. The one for CPUs asks the system for
            free memory, which breaks each graph.
    """

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        size: Size,
        device: torch.device = _CPU,
        dtype: torch.dtype = torch.float32,
        compiles: bool = False,
    ) -> None:
        (base / "models").mkdir(exist_ok=True)
        sys.path.insert(0, str(comfyui))
        from comfy.cli_args import args

        args.cpu, args.base_directory = device.type == "cpu", str(base)
        args.fp16_unet = dtype == torch.float16  # the reference asks for it, and not for the model's
        args.use_pytorch_cross_attention = compiles
        import comfy.cldm.cldm
        import comfy.controlnet
        import comfy.model_patcher
        import comfy.samplers
        import comfy.supported_models

        try:
            from comfyui_version import __version__
        except ImportError:
            __version__ = "unknown"
        self.version: str = __version__
        self.size, self.device, self.dtype = size, device, dtype
        self.generator = torch.Generator(device).manual_seed(0)
        self._new_guider = comfy.samplers.CFGGuider
        up = {"out_channels": 4, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10]}
        config = comfy.supported_models.SDXL({**size.unet, **up})
        config.unet_config["num_head_channels"] = size.head_channels
        config.set_inference_dtype(dtype, None)
        model = config.get_model({}, device=device)
        self._randomize(model.diffusion_model)
        self.model = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
        network = comfy.cldm.cldm.ControlNet(
            **size.unet, num_head_channels=size.head_channels, hint_channels=3, dtype=dtype, device=device
        )
        self._randomize(network)
        self.control_net = comfy.controlnet.ControlNet(network, load_device=device)
        self.parameters = {"UNet": _count(model.diffusion_model), "ControlNet": _count(network)}
        self.image = torch.rand(1, size.side, size.side, 3)
        self.positive, self.negative = self.prompt(), self.prompt()
        self.sigma = float(self.model.get_model_object("model_sampling").percent_to_sigma(0.5))

    def random(self, *shape: int, gain: float = 1.0) -> Tensor:
        """Normal numbers on the device."""
        return torch.empty(shape, dtype=self.dtype, device=self.device).normal_(0, gain, generator=self.generator)

    def prompt(self) -> list[list[Any]]:
        """The conditioning of a random text."""
        text = torch.randn(1, TEXT_TOKENS, self.size.token_width)
        return [[text, {"pooled_output": torch.randn(1, self.size.pooled_width)}]]

    def without_instantid(self, positive: list[list[Any]], weight: float = WEIGHT, start_at: float = 0.0) -> Patched:
        """The same without InstantID: the ControlNet gets as many tokens, of zeros, and no face is looked for."""
        net = self.control_net.copy().set_cond_hint(self.image.movedim(-1, 1), weight, (start_at, 1.0))
        tokens = torch.zeros(1, IDENTITY_TOKENS, self.size.token_width)
        control = {"control": net, "control_apply_to_uncond": False, "cross_attn_controlnet": tokens}
        prompts = ([[text, {**more, **control}] for text, more in prompt] for prompt in (positive, self.negative))
        return Patched(self.model.clone(), *prompts)

    def hold(
        self,
        variants: Mapping[str, Patched],
        batch: int,
        then: Callable[[dict[str, Evaluation]], None],
        failed: Callable[[str, Exception], None],
    ) -> None:
        """Prepare the sampling of all variants, and call ``then`` while all of them wait for a step.

        Args:
            then: must catch what it raises.
            failed: gets the variants that do not get so far; ``then`` does not get them.
        """
        noise = torch.randn(batch, 4, self.size.side // 8, self.size.side // 8)
        held: dict[str, Evaluation] = {}

        def bring(names: Sequence[str]) -> None:
            if not names:
                then(held)
                return
            name, *others = names
            variant = variants[name]

            def arrived(guider: Any, arguments: dict[str, Any], noise: Tensor) -> None:
                sigma = torch.full((batch,), self.sigma, device=noise.device)
                held[name] = Evaluation(guider, arguments, noise * self.sigma, sigma)
                bring(others)

            try:
                guider = self._new_guider(variant.model)
                guider.set_conds(variant.positive, variant.negative)
                guider.set_cfg(CFG)
                sigmas = torch.tensor([self.sigma, 0.0])
                guider.sample(noise, torch.zeros_like(noise), _Stop(arrived), sigmas, disable_pbar=True, seed=0)
            except Exception as error:
                if name in held:
                    raise
                failed(name, error)
                bring(others)

        bring([*variants])

    @torch.no_grad()
    def _randomize(self, network: nn.Module) -> None:
        """Weights that pass on about the variance they get. The host leaves them uninitialised."""
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                gain = _BRANCH_GAIN if name.endswith(_BRANCH_ENDS) else 1.0
                parameter.normal_(0, gain / parameter[0].numel() ** 0.5, generator=self.generator)
            else:
                parameter.normal_(float(name.endswith("weight")), 0.1, generator=self.generator)


@dataclass(frozen=True)
class _Stop:
    """A sampler that takes no step."""

    arrived: Callable[[Any, dict[str, Any], Tensor], None]
    extra_options: dict[str, Any] = field(default_factory=dict)

    def sample(self, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor, *_: Any):
        self.arrived(guider, extra_args, noise)
        return noise


def import_nodes() -> Any:
    """Return ComfyUI's module ``nodes``. Where PyAV is missing, which no node here uses, a stand-in is imported."""
    absent = () if importlib.util.find_spec("av") else _VIDEO
    sys.modules |= {name: MagicMock() for name in absent}
    nodes = importlib.import_module("nodes")
    for name in absent:
        del sys.modules[name]  # other packages ask whether it is there
    return nodes


def compile_model(model: Any) -> Any:
    """The model after ComfyUI's TorchCompileModel."""
    import_nodes()
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    [compiled] = TorchCompileModel.execute(model, "inductor").result
    return compiled


def load_pack(folder: Path) -> Any:
    """Import a folder of ``custom_nodes`` as ComfyUI does (nodes.py, ``load_custom_node``): its path is its name."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def call(node: type, **inputs: Any) -> tuple[Any, ...]:
    """Execute a node as ComfyUI does: a new instance, its ``FUNCTION``, in inference mode."""
    with torch.inference_mode():
        instance = node()
        return getattr(instance, node.FUNCTION)(**inputs)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
