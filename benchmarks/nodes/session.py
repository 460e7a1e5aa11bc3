"""One session of a user of ComfyUI, in a process of its own: a cold start, or a first picture and five edits.

It imports nothing of ours before our pack is loaded, and no package that a ComfyUI just started has not imported. A
session executes the nodes that ComfyUI would: those whose inputs an edit changed, and what comes after them.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import on, synchronize
from benchmarks.nodes.host import Host, call, compile_model, import_nodes
from benchmarks.nodes.pack import Pack
from benchmarks.nodes.watch import Watch
from benchmarks.sizes import Size

COLD, SEED = "cold first run", "seed edited"
EDITS: dict[str, dict[str, Any]] = {
    COLD: {"weight": 0.8, "start_at": 0.0, "seed": 1},
    "weight edited": {"weight": 0.7},
    "prompt edited": {"prompt": 1},
    "range edited": {"start_at": 0.1},
    "one of six replaced": {},
    SEED: {"seed": 2},
}
"""Runs of the headline in this order. Each edit is made to what the one before has left."""
RUNS = tuple(EDITS)
REFERENCES = 6
_SECOND = {"strength": 0.5, "start_percent": 0.0, "end_percent": 0.7}  # as in the example workflow
_NOISE = 0.3
_SAMPLING = {"sampler_name": "dpmpp_2m", "scheduler": "karras"}


class Headline:
    """A model, two ControlNets, pictures and prompts, and one side's nodes between them.

    The second ControlNet has the first one's weights in the same memory: the work does not depend on their values.
    """

    def __init__(self, host: Host, options: dict[str, Any]) -> None:
        import comfy.controlnet

        self._host, self._options = host, options
        self._watch = Watch(partial(synchronize, host.device))
        self._nodes = import_nodes()
        self._second_net = comfy.controlnet.ControlNet(
            copy.copy(host.control_net.control_model), load_device=host.device
        )
        self._prompts = host.positive, host.prompt()
        self._pictures: dict[str, Tensor] = torch.load(options["pictures"])
        self._pack: Pack | None = None
        self._applied: Any = None
        if options["detailed"]:
            self._watch.around(host.model.model.diffusion_model, "forward", "UNet")
            self._watch.around(host.control_net.control_model, "forward", "IdentityNet")
            self._watch.around(self._second_net.control_model, "forward", "second ControlNet")

    @torch.inference_mode()
    def runs(self) -> Iterator[tuple[str, Tensor, dict[str, float]]]:
        """Name, latent picture ``(1, 4, h, w)``, and seconds of the parts of each run."""
        now: dict[str, Any] = {"prompt": 0}
        for name, edit in EDITS.items():
            now |= edit
            with self._watch.part("other"):
                if name == COLD and self._options["pack"] is not None:
                    options = self._options
                    folder, adapter = Path(options["pack"]), options["adapter"]
                    self._pack = Pack(self._host, folder, adapter, self._watch, options["detailed"])
                if name != SEED:
                    self._apply(self._pictures[name], now["weight"], self._prompts[now["prompt"]], now["start_at"])
                latent = self._sample(now["seed"])
            yield name, latent, self._watch.take()

    def _apply(self, pictures: Tensor, weight: float, prompt: Any, start_at: float) -> None:
        """The nodes between the loaders and the sampler."""
        if self._pack is None:
            without = self._host.without_instantid(prompt, weight, start_at)
            model, positive, negative = without.model, without.positive, without.negative
        else:
            model, positive, negative = self._pack.apply(
                "ApplyInstantIDAdvanced",
                image=pictures[:REFERENCES],
                image_kps=pictures[REFERENCES:],
                positive=prompt,
                ip_weight=weight,
                cn_strength=weight,
                start_at=start_at,
                noise=_NOISE,
                combine_embeds="average",
            )
        prompts = {"positive": positive, "negative": negative}
        how = {"control_net": self._second_net, "image": self._host.image} | _SECOND
        positive, negative = call(self._nodes.ControlNetApplyAdvanced, **prompts, **how)
        if self._options["compile"]:
            model = compile_model(model)
        self._applied = {"model": model, "positive": positive, "negative": negative}

    def _sample(self, seed: int) -> Tensor:
        side = self._host.size.side // 8
        with self._watch.part("sample"):
            how = {name: self._options[name] for name in ("steps", "cfg")} | {"seed": seed, "denoise": 1.0}
            how |= _SAMPLING | self._applied
            [drawn] = call(self._nodes.KSampler, latent_image={"samples": torch.zeros(1, 4, side, side)}, **how)
        return drawn["samples"]


def headline(host: Host, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each part of each run. The latents go to the file ``options["latents"]``."""
    latents: dict[str, Tensor] = {}
    parts: dict[str, dict[str, float]] = {}
    for name, latent, seconds in Headline(host, options).runs():
        latents[name], parts[name] = latent, seconds
    torch.save(latents, options["latents"])
    found = {"runs": parts, "parameters": host.parameters, "comfyui": host.version}
    return found | ({"peak_bytes": torch.cuda.max_memory_allocated()} if host.device.type == "cuda" else {})


def cold(host: Host, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of import, loaders and Apply InstantID, in order; "inside": name, begin and seconds of stages in Apply.

    Args:
        options: "cache", if it is there, is the folder of our disk cache.
    """
    os.environ["FAST_INSTANTID_CACHE"] = options.get("cache", "")
    picture, watch = torch.load(options["pictures"]), Watch()
    pack = Pack(host, Path(options["pack"]), options["adapter"], watch)
    if pack.recorder is None or not options["detailed"]:
        pack.apply(image=picture)
        return watch.take()
    with pack.recorder() as recorded:
        pack.apply(image=picture)
    outer = {span.parent for span in recorded.spans}
    stages = [span for i, span in enumerate(recorded.spans) if i not in outer]
    return watch.take() | {"inside": [[span.name, span.start / 1e9, span.duration / 1e9] for span in stages]}


def main() -> None:
    """``python -m benchmarks.nodes.session JSON``: run ``options["job"]`` and print its result as JSON."""
    options = json.loads(sys.argv[1])
    torch.manual_seed(0)  # prompts and hints are the same on all sides
    paths = Path(options["comfyui"]), Path(options["base"])
    host = Host(*paths, Size(**options["size"]), *on(options["device"]), compiles=options["compile"])
    print(json.dumps({"headline": headline, "cold": cold}[options["job"]](host, options)))


if __name__ == "__main__":
    main()
