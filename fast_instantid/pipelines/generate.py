"""Pictures for a shell or a service: seeded, in batches that fit, with progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..errors import FastInstantIDError
from ..people import DEFAULT_WEIGHT, MAX_WEIGHT, Scene, Subject
from ..placement import in_batches
from ..recorder import stage
from .approximations import EXACT, Approximations
from .call import seeded
from .instantid import DEFAULTS, InstantID
from .profiles import Profile
from .subject import People, flat, is_nested

Progress = Callable[[int, int], None]
"""A callback, called with the number of steps done and of all steps."""


@dataclass(frozen=True)
class Sampling:
    """How a picture is sampled, in diffusers' words.

    Args:
        negative_prompt: what not to draw.
        scale: of the identity branch in the attention, 0..5; 0.8 by default. Subjects carry their own.
        controlnet_conditioning_scale: of the IdentityNet; 0.8, or what the profile says.
        num_inference_steps: steps of a run; 30, or what the profile says.
        guidance_scale: of classifier-free guidance; 1 or less turns it off. 5, or what the profile says.
        seed: of the first picture, 0 to 2^63; picture i of a prompt starts from ``seed + i``, on every device alike.
        num_images_per_prompt: pictures of each prompt.
        batch_size: pictures that are drawn at once at most. Where memory does not hold them, half as many are tried.
        approximations: what to leave out, for another picture; nothing by default.
        profile: a way to sample in few steps, as in a call of an InstantID.

    Raises:
        FastInstantIDError: a value that no picture can be sampled with.
    """

    negative_prompt: str = ""
    scale: float = DEFAULT_WEIGHT
    controlnet_conditioning_scale: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int = 0
    num_images_per_prompt: int = 1
    batch_size: int = 8  # for which SDXL at 1024 x 1024 in fp16 takes some 20 GB
    approximations: Approximations = EXACT
    profile: str | Profile | None = None

    def __post_init__(self) -> None:
        allowed = {
            "scale": (0, MAX_WEIGHT),
            "controlnet_conditioning_scale": (0, 10),
            "num_inference_steps": (1, 1000),
            "guidance_scale": (0, 100),
            "seed": (0, 2**63 - 1000),
            "num_images_per_prompt": (1, 1000),
            "batch_size": (1, 1000),
        }
        for name, (low, high) in allowed.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # also refuses NaN
                raise FastInstantIDError(f"{name} {value}: expected {low} to {high}")
        Profile.of(self.profile)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of a pipeline's call: those given, else the profile's, else those of SDXL."""
        usual = {**DEFAULTS, **Profile.of(self.profile).options}
        return {name: value if (given := getattr(self, name)) is None else given for name, value in usual.items()}


def generate(
    pipe: Any,
    people: People,
    keypoints: Image.Image | Sequence[Image.Image] | None,
    prompt: str | Sequence[str],
    sampling: Sampling = Sampling(),
    progress: Progress | None = None,
    **options: Any,
) -> list[Image.Image]:
    """Draw people, in as many batches as it takes. The pipeline is left as it was.

    Args:
        pipe: an SDXL pipeline, or an InstantID for one.
        people: one identity, or Subjects with their own weights and regions; or a list of them for each prompt.
        keypoints: where faces go, or a keypoint picture for each prompt, all of one size; the pictures get that size,
            rounded down to multiples of 8 px. None for a pipeline without an IdentityNet, or to let it rest.
        prompt: what to draw; of several prompts, each is drawn from the same seeds.
        sampling: how.
        progress: called after each step.
        options: more of the pipeline's own arguments.

    Returns:
        ``num_images_per_prompt`` RGB pictures for each prompt, in the order of the prompts.

    Raises:
        FastInstantIDError: no prompt, or another number of prompts than of lists of people or keypoint pictures.
    """
    if isinstance(people, Scene):
        keypoints, people = keypoints or people.keypoint_picture(), people.subjects
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise FastInstantIDError("no prompt given: expected at least one")
    posed = keypoints if isinstance(keypoints, (list, tuple)) else None
    nested: Any = people if is_nested(people) else None
    for name, given in (("lists of people", nested), ("keypoint pictures", posed)):
        if given is not None and len(given) != len(prompts):
            raise FastInstantIDError(f"{len(prompts)} prompts and {len(given)} {name}: give one for each prompt")
    instantid = pipe if isinstance(pipe, InstantID) else InstantID(pipe)
    seeds = range(sampling.seed, sampling.seed + sampling.num_images_per_prompt)
    wanted = [(number, seed) for number in range(len(prompts)) for seed in seeds]
    callback = options.pop("callback_on_step_end", None)
    bare = not any(isinstance(one, Subject) for one in flat(people))
    usual = sampling.options
    strength = float(usual.pop("controlnet_conditioning_scale"))
    options = {
        "scale": sampling.scale if bare else None,
        "approximations": sampling.approximations,
        "keypoints": keypoints,
        "negative_prompt": sampling.negative_prompt,
        "profile": sampling.profile,
        **usual,
        **options,
    }
    if keypoints is not None:
        options.setdefault("controlnet_conditioning_scale", strength)

    def draw(part: slice) -> list[Image.Image]:
        batch = wanted[part]

        def report(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if progress is not None:  # the steps of all batches, weighted by their pictures, as those of one run
                steps = pipe.num_timesteps
                done = part.start * steps + (step + 1) * len(batch)
                progress(round(done / len(wanted)), steps)
            return tensors if callback is None else callback(pipe, step, timestep, tensors)

        numbers, seeds = zip(*batch, strict=True)
        shown = [nested[number] for number in numbers] if nested else people
        if posed is not None:
            options["keypoints"] = [posed[number] for number in numbers]
        texts = [prompts[number] for number in numbers]
        return instantid(texts, shown, generator=seeded(seeds), callback_on_step_end=report, **options).images

    with stage("sampling"):
        return in_batches(len(wanted), sampling.batch_size, draw)
