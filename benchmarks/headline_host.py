"""One session of a user of ComfyUI: a first picture, then five edits, each until the latent picture is there.

As a program it takes one session of one side and prints it as JSON. It imports nothing of ours before our pack is
loaded, and no package that a ComfyUI which has just started has not imported.

A session executes the nodes that ComfyUI would: those whose inputs an edit has changed, and what comes after them.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.headline_watch import Watch
from benchmarks.step_host import IDENTITY_TOKENS, Size, StepHost
from benchmarks.workflow_host import load_pack

COLD, SEED = "cold first run", "seed edited"
RUNS = (COLD, "weight edited", "prompt edited", "range edited", "one of six replaced", SEED)
"""In this order: each edit is made to what the one before has left."""
REFERENCES = 6
_SECOND_STRENGTH, _SECOND_END, _NOISE = 0.5, 0.7, 0.3  # as in example_workflows/instantid_many_references.json
_CFG, _SAMPLER, _SCHEDULER = 4.5, "dpmpp_2m", "karras"
_OUR_STAGES = {
    "detect": "detect",
    "align": "recognise",
    "recognise": "recognise",
    "resample": "tokens",
    "project": "keys and values",
}
"""Stages that our pack tells of itself, and the names that both sides have here."""


def adapter_name(channels: int) -> str:
    """The adapter's file for a UNet of so many channels."""
    return f"ip-adapter-{channels}.bin"


@dataclass(frozen=True)
class Settings:
    """What the sessions of all sides have in common.

    Args:
        comfyui: its checkout.
        base: the folder that has ``models`` in it.
        channels: of the first level of UNet and ControlNets; 320 is SDXL's. The rest is SDXL's.
        side: of the picture drawn, in pixels.
        compile: put ComfyUI's TorchCompileModel behind the nodes.
    """

    comfyui: str
    base: str
    channels: int
    side: int
    steps: int
    compile: bool


class Session:
    """A model, two ControlNets, pictures and prompts, and one side's nodes between them.

    Args:
        pack: the folder of a node pack; None for the same networks without any, the limit.
        pictures: of each of RUNS but the last, ``(7, H, W, 3)``: six references, and the one that gives the pose.
        detailed: also tell the parts inside of nodes. Telling costs time, so such a session does not count.
    """

    def __init__(self, settings: Settings, pack: Path | None, pictures: dict[str, Tensor], detailed: bool) -> None:
        torch.manual_seed(0)  # prompts and hints are the same on all sides
        # SDXL's, but for the channels.
        size = Size(settings.channels, 64, token_width=2048, pooled_width=1280, side=settings.side, resampler_dim=1280)
        paths = Path(settings.comfyui), Path(settings.base)
        self.host = StepHost(*paths, size, torch.device("cpu"), torch.float32, settings.compile)
        import comfy.controlnet
        import nodes

        self._nodes = {"KSampler": nodes.KSampler, "ControlNetApplyAdvanced": nodes.ControlNetApplyAdvanced}
        network = copy.deepcopy(self.host.control_net.control_model)
        self._second_net = comfy.controlnet.ControlNet(network, load_device=self.host.device)
        self._hint = torch.rand(1, size.side, size.side, 3)
        text, pooled = torch.randn(1, 77, size.token_width), torch.randn(1, size.pooled_width)
        self._edited_prompt = [[text, {"pooled_output": pooled}]]
        self._settings, self._pack, self._pictures, self._detailed = settings, pack, pictures, detailed
        self._applied: Any = None
        self._recorder: Any = None
        self._watch = Watch()
        if detailed:
            self._watch.around(self.host.model.model.diffusion_model, "forward", "UNet")
            self._watch.around(self.host.control_net.control_model, "forward", "IdentityNet")
            self._watch.around(self._second_net.control_model, "forward", "second ControlNet")

    @torch.inference_mode()
    def runs(self) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Name, latent picture ``(1, 4, h, w)``, and seconds of the parts of each run."""
        now: dict[str, Any] = {"weight": 0.8, "prompt": self.host.positive, "start_at": 0.0, "seed": 1}
        edits: list[dict[str, Any]] = [
            {},
            {"weight": 0.7},
            {"prompt": self._edited_prompt},
            {"start_at": 0.1},
            {},  # other pictures
            {"seed": 2},
        ]
        for name, edit in zip(RUNS, edits, strict=True):
            now |= edit
            with self._watch.part("other"):
                if name == COLD:
                    self._load()
                if name != SEED:
                    self._apply(self._pictures[name], now["weight"], now["prompt"], now["start_at"])
                latent = self._sample(now["seed"])
            yield name, latent, self._watch.take()

    def _load(self) -> None:
        if self._pack is None:
            return
        with self._watch.part("import"):
            pack = load_pack(self._pack)
            self._nodes |= pack.NODE_CLASS_MAPPINGS
        with self._watch.part("load adapter"):
            name = adapter_name(self._settings.channels)
            (self._instantid,) = self._call("InstantIDModelLoader", instantid_file=name)
        with self._watch.part("load face networks"):
            (self._faces,) = self._call("InstantIDFaceAnalysis", provider="CPU")
        if self._detailed:
            recorder = sys.modules.get(f"{pack.__name__}.fast_instantid.recorder")
            if recorder is None:
                self._watch_reference()
            else:
                self._recorder = recorder.Recorder

    def _apply(self, pictures: Tensor, weight: float, prompt: Any, start_at: float) -> None:
        """Everything between the loaders and the sampler."""
        if self._pack is None:
            model, positive, negative = self._without_pack(prompt, weight, start_at)
        else:
            with self._apply_part():
                model, positive, negative = self._call(
                    "ApplyInstantIDAdvanced",
                    instantid=self._instantid,
                    insightface=self._faces,
                    control_net=self.host.control_net,
                    image=pictures[:REFERENCES],
                    image_kps=pictures[REFERENCES:],
                    model=self.host.model,
                    positive=prompt,
                    negative=self.host.negative,
                    ip_weight=weight,
                    cn_strength=weight,
                    start_at=start_at,
                    end_at=1.0,
                    noise=_NOISE,
                    combine_embeds="average",
                )
        positive, negative = self._call(
            "ControlNetApplyAdvanced",
            positive=positive,
            negative=negative,
            control_net=self._second_net,
            image=self._hint,
            strength=_SECOND_STRENGTH,
            start_percent=0.0,
            end_percent=_SECOND_END,
        )
        if self._settings.compile:
            from comfy_extras.nodes_torch_compile import TorchCompileModel

            [model] = TorchCompileModel.execute(model, "inductor").result
        self._applied = model, positive, negative

    def _without_pack(self, positive: Any, weight: float, start_at: float) -> tuple[Any, Any, Any]:
        """The IdentityNet is fed with as many tokens as InstantID has, and nobody looks for a face."""
        net = self.host.control_net.copy().set_cond_hint(self._hint.movedim(-1, 1), weight, (start_at, 1.0))
        tokens = torch.zeros(1, IDENTITY_TOKENS, self.host.size.token_width)
        control = {"control": net, "control_apply_to_uncond": False, "cross_attn_controlnet": tokens}
        prompts = (positive, self.host.negative)
        fed = [[[text, {**options, **control}] for text, options in prompt] for prompt in prompts]
        return self.host.model, *fed

    def _sample(self, seed: int) -> Tensor:
        model, positive, negative = self._applied
        latent = torch.zeros(1, 4, self._settings.side // 8, self._settings.side // 8)
        with self._watch.part("sample"):
            [drawn] = self._call(
                "KSampler",
                model=model,
                seed=seed,
                steps=self._settings.steps,
                cfg=_CFG,
                sampler_name=_SAMPLER,
                scheduler=_SCHEDULER,
                positive=positive,
                negative=negative,
                latent_image={"samples": latent},
                denoise=1.0,
            )
        return drawn["samples"]

    def _call(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        node = self._nodes[node_id]
        return getattr(node(), node.FUNCTION)(**inputs)

    def _watch_reference(self) -> None:
        """At what its nodes and layers call."""
        watch = self._watch
        watch.around(self._faces.det_model, "detect", "detect")
        for task, network in self._faces.models.items():
            if task != "detection":
                watch.around(network, "get", "recognise" if task == "recognition" else "other face networks")
        watch.around(self._instantid, "get_image_embeds", "tokens")
        for projection in self._instantid.ip_layers.to_kvs.values():
            watch.around(projection, "forward", "keys and values")

    @contextmanager
    def _apply_part(self) -> Iterator[None]:
        """With the stages that our pack tells of itself as parts inside, where it is ours and asked for."""
        with self._watch.part("apply"):
            if self._recorder is None:
                yield
                return
            with self._recorder() as recorder:
                yield
        inside: list[bool] = []
        for span in recorder.spans:
            is_inner = span.parent >= 0 and inside[span.parent]
            inside.append(is_inner or span.name in _OUR_STAGES)
            if span.name in _OUR_STAGES and not is_inner:
                self._watch.move("apply", _OUR_STAGES[span.name], span.duration / 1e9)


def main() -> None:
    """``python -m benchmarks.headline_host JSON``: ``settings``, ``pack``, ``detailed``, ``pictures`` (a file), and
    ``latents``, the file to write what was drawn to."""
    options = json.loads(sys.argv[1])
    pack = None if options["pack"] is None else Path(options["pack"])
    settings = Settings(**options["settings"])
    session = Session(settings, pack, torch.load(options["pictures"]), options["detailed"])
    latents: dict[str, Tensor] = {}
    parts: dict[str, dict[str, float]] = {}
    for name, latent, seconds in session.runs():
        latents[name], parts[name] = latent, seconds
    torch.save(latents, options["latents"])
    print(json.dumps({"runs": parts, "parameters": session.host.parameters, "comfyui": session.host.version}))


if __name__ == "__main__":
    main()
