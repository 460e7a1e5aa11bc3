"""Several persons in one picture in ComfyUI: the scene node beside a chain of Apply nodes with masks.

    COMFYUI_PATH=... .ci/comfyui -m examples.scene_and_chain

The chain is that of the old pack's example for two people: an Apply node for each person, with a mask and a keypoint
picture, and the positive conditionings combined. Its nodes are ours, which draw the old pack's picture.
Each pair of the miniature's six people, and every third three of them, is drawn both ways from one seed.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from benchmarks.nodes.host import call, load_pack

ROOT = Path(__file__).resolve().parent.parent
STEPS, SIDE, SEED = 8, 128, 3
PROMPT = "flat portrait, hilly green background, red jacket"
STRENGTHS = {"ip_weight": 0.8, "cn_strength": 0.8, "start_at": 0.0, "end_at": 1.0, "noise": 0.0, "layers": "paper"}


class Host:
    """ComfyUI on the CPU, this pack and its miniature."""

    def __init__(self, comfyui: Path) -> None:
        sys.path.insert(0, str(comfyui))
        from comfy.cli_args import args

        base = tempfile.mkdtemp()
        args.cpu, args.base_directory = True, base
        import comfy.sample

        self.sample = comfy.sample.sample
        pack = load_pack(ROOT)
        self.nodes = pack.NODE_CLASS_MAPPINGS
        self.package = importlib.import_module(f"{pack.__name__}.fast_instantid.people")
        loaded = [call(self.nodes["InstantIDMiniature"], portrait=name) for name in self._portraits()]
        self.model, self.clip, self.vae, self.net, self.adapter, self.faces = loaded[0][:6]
        self.portraits = [outputs[6] for outputs in loaded]
        found = {"group": "one person", "choose": "largest", "no_face": "error", "doubtful": "keep"}
        finder = self.nodes["InstantIDPerson"]
        finds: list[Any] = [
            call(finder, faceanalysis=self.faces, image=portrait, **found) for portrait in self.portraits
        ]
        self.people = [given["result"][0][0] for given in finds]
        self.positive, self.negative = self.encoded(PROMPT), self.encoded("")

    def _portraits(self) -> list[str]:
        return self.nodes["InstantIDMiniature"].INPUT_TYPES()["required"]["portrait"][0]

    def encoded(self, text: str) -> Any:
        """A prompt as CONDITIONING."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def poses(self, count: int) -> tuple[Any, Any]:
        """Poses beside each other, and the latent of the picture."""
        latent = {"samples": torch.zeros(1, 4, SIDE // 8, SIDE * count // 8)}
        poses: Any = ()
        for place in range(count):
            where = {"x": (place + 0.5) / count, "y": 0.5, "size": 0.62, "yaw": 0.0, "pitch": 0.0, "roll": 0.0}
            poses, _ = call(self.nodes["InstantIDPose"], latent=latent, angle="front", before=poses, **where)
        return poses, latent

    def scene(self, shown: Sequence[int]) -> tuple[Any, Any, Any]:
        """Model and conditionings of one Apply InstantID Scene."""
        poses, latent = self.poses(len(shown))
        people = tuple(self.people[number] for number in shown)
        given = {"model": self.model, "positive": self.positive, "negative": self.negative, "control_net": self.net}
        given |= {"combine_embeds": "average", "pairing": "left to right", "instantid": self.adapter, "pose": poses}
        return call(self.nodes["ApplyInstantIDScene"], person=people, latent=latent, **given, **STRENGTHS)[:3]

    def chain(self, shown: Sequence[int]) -> tuple[Any, Any, Any]:
        """Model and conditionings of an Apply InstantID Person for each person."""
        poses, latent = self.poses(len(shown))
        height, width = (8 * side for side in latent["samples"].shape[-2:])
        model, positives, negative = self.model, [], self.negative
        for place, number in enumerate(shown):
            mask = torch.zeros(1, height, width)
            mask[..., SIDE * place : SIDE * (place + 1)] = 1
            face = self.package.scene.draw_keypoints((width, height), poses[place].keypoints((width, height)))
            model, positive, negative = self._applied(
                model, number, mask, torch.from_numpy(face).float().div(255)[None]
            )
            positives += positive
        return model, positives, negative

    def _applied(self, model: Any, number: int, mask: Any, keypoints: Any) -> tuple[Any, Any, Any]:
        given = {"positive": self.positive, "negative": self.negative, "control_net": self.net, "mask": mask}
        person = (self.people[number],)
        given |= {"combine_embeds": "average", "instantid": self.adapter, "image_kps": keypoints, **STRENGTHS}
        return call(self.nodes["ApplyInstantIDPerson"], model=model, person=person, **given)

    def draw(self, applied: tuple[Any, Any, Any], count: int) -> tuple[np.ndarray, float]:
        """The picture ``(H, W, 3)`` uint8 and the seconds of its sampling."""
        size = (1, 4, SIDE // 8, SIDE * count // 8)
        noise = torch.randn(size, generator=torch.Generator().manual_seed(SEED))
        model, positive, negative = applied
        start = time.perf_counter()
        latent = self.sample(
            model,
            noise,
            STEPS,
            2.0,
            "ddim",
            "simple",
            positive,
            negative,
            torch.zeros(size),
            disable_pbar=True,
            seed=SEED,
        )
        seconds = time.perf_counter() - start
        return self.vae.decode(latent)[0].mul(255).round().byte().numpy(), seconds


def judged(host: Host, picture: np.ndarray, shown: Sequence[int]) -> list[tuple[float, bool, float]]:
    """Likeness, whether the own person is the most alike of all, and pose error, for each place."""
    poses, _ = host.poses(len(shown))
    wanted = [pose.keypoints((SIDE * len(shown), SIDE)) for pose in poses]
    found: list[tuple[float, bool, float]] = [(0.0, False, float("nan"))] * len(shown)
    for face in host.package.find_people(host.faces, picture):
        place = min(int(face.keypoints[:, 0].mean() / SIDE), len(shown) - 1)
        alike = [face.likeness(person) for person in host.people]
        apart = np.linalg.norm(wanted[place][1] - wanted[place][0])
        error = np.linalg.norm(face.keypoints - wanted[place], axis=1).mean() / apart
        found[place] = alike[shown[place]], int(np.argmax(alike)) == shown[place], float(error)
    return found


def calls(network: Any, run: Callable[[], Any]) -> int:
    """Number of evaluations of a network during a run."""
    counted: list[int] = []
    hook = network.register_forward_pre_hook(lambda *_: counted.append(1))
    run()
    hook.remove()
    return len(counted)


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    host = Host(Path(os.environ["COMFYUI_PATH"]))
    columns = (
        "people",
        "way",
        "UNet and IdentityNet runs a step",
        "likeness",
        "most like their own person",
        "pose error",
    )
    print(f"| {' | '.join((*columns, 'sampling'))} |\n| --: | --- | --: | --: | --: | --: | --: |")
    for count, step in ((2, 1), (3, 3)):
        groups = [*combinations(range(len(host.people)), count)][::step]
        for way in (host.scene, host.chain):
            rows: list[tuple[float, bool, float]] = []
            seconds: list[float] = []
            for shown in groups:
                picture, spent = host.draw(way(shown), count)
                rows += judged(host, picture, shown)
                seconds.append(spent)
            applied = way(groups[0])
            unet = calls(
                host.model.model.diffusion_model, lambda applied=applied, count=count: host.draw(applied, count)
            )
            net = calls(host.net.control_model, lambda applied=applied, count=count: host.draw(applied, count))
            likeness, right, error = zip(*rows, strict=True)
            error = f"{100 * np.nanmean(error):.1f} %"
            print(
                f"| {count} | {way.__name__} | {unet / STEPS:.0f} and {net / STEPS:.0f} | {mean(likeness):.3f}", end=""
            )
            print(f" | {sum(right)} of {len(right)} | {error} | {median(seconds):.2f} s |", flush=True)


if __name__ == "__main__":
    main()
