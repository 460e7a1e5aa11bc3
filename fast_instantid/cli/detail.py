"""The command ``fast-instantid detail``: the faces of a picture, drawn again."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import FastInstantIDError
from ..recorder import stage
from .generate import with_scale
from .jobs import people_of
from .models import Models
from .options import command, drawing_options
from .output import PICTURE_SUFFIXES, check_output, output, print_json, reported, save_picture, timed
from .studio import Studio


def add_command(commands: Any) -> None:
    text = "draw the faces of a picture again, each at the resolution of the model"
    example = 'group.png --person anna.safetensors bob.safetensors --prompt "two people in a bar" -o better.png'
    parser = command(commands, "detail", run, text, example)
    parser.set_defaults(no_face="error")
    parser.add_argument("picture", metavar="PICTURE", help="the picture to improve")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--photo", nargs="+", help="photos of one person")
    text = "files of 'person make' or photos, each of another person"
    who.add_argument("--person", nargs="+", metavar="FILE", help=text)
    parser.add_argument("--prompt", nargs="+", required=True, help="what to draw: one text, or one for each person")
    text = "which of the picture's largest faces a person gets: from left to right, or the most alike"
    parser.add_argument("--pairing", choices=("left to right", "likeness"), default="left to right", help=text)
    text = "the number of each person's face in place of --pairing, as 'faces' lists them"
    parser.add_argument("--index", type=int, nargs="+", metavar="N", help=text)
    text = "how much is changed, 0 to 1: 0.3 is gentle, 1 draws a new face"
    parser.add_argument("--strength", type=float, default=0.5, metavar="X", help=text)
    text = "what is drawn around a face, as its side in heights of the face, 1 to 10"
    parser.add_argument("--padding", type=float, default=2.0, metavar="X", help=text)
    text = "pixels of the square that is drawn, a multiple of 8 (default: what the model was trained at)"
    parser.add_argument("--side", type=int, metavar="PX", help=text)
    parser.add_argument("-o", "--output", type=output, required=True, help="the picture to write")
    drawing_options(parser)


def run(options: argparse.Namespace) -> int:
    """Draw the faces, and say how alike they were and are."""
    with stage("import"):
        from ..images import one_photo
        from ..people import Scene, Subject, cosine, scene_of
        from ..pipelines import Sampling, detail

    sources = options.photo or people_of(options.person)
    check_output(options.output, PICTURE_SUFFIXES, [options.picture, *sources])
    models = Models.of(options)
    seed, *more = options.seed or [0]
    if more:
        raise FastInstantIDError("several seeds: 'detail' draws one picture; give one seed")
    how: dict[str, Any] = {
        "negative_prompt": options.negative_prompt,
        "controlnet_conditioning_scale": options.controlnet_conditioning_scale,
        "num_inference_steps": models.steps if options.num_inference_steps is None else options.num_inference_steps,
        "guidance_scale": models.guidance if options.guidance_scale is None else options.guidance_scale,
        "seed": seed,
    }
    Sampling(scale=options.scale, **how)  # refuses what is out of range
    photo, studio = one_photo(options.picture), Studio(options, models)
    people = [studio.find(*sources)] if options.photo else [studio.find(source) for source in sources]
    keypoints = scene_of(studio.analyzer, photo, people, pairing=options.index or options.pairing).keypoints
    with timed("identity", studio.seconds):
        identities = [studio.adapter.identity(person.rows, noise=options.noise) for person in people]
    placed = [Subject(one, options.scale, pose=points) for one, points in zip(identities, keypoints, strict=True)]
    loras = tuple(with_scale("--lora", one, 1) for one in options.lora or ())
    instantid = studio.instantid(False, True, options.scheduler, loras, ())
    how |= {name: getattr(options, name) for name in ("strength", "padding", "side")}
    how |= {"approximations": studio.approximations, "callback_on_step_end": reported}
    prompts = options.prompt[0] if len(options.prompt) == 1 else options.prompt
    with timed("sampling", studio.seconds), stage("sampling"):
        image = detail(instantid, photo, prompts, Scene(photo.size, placed), **how)
    save_picture(image, options.output)
    seen = [photo] * len(people) + [one_photo(image)] * len(people)
    rows = studio.analyzer.networks.embed(seen, [*keypoints, *keypoints])
    alike = [round(cosine(person.embedding, row), 4) for person, row in zip(people * 2, rows, strict=True)]
    said = [
        {"person": person.name, "before": before, "after": after}
        for person, before, after in zip(people, alike, alike[len(people) :], strict=False)
    ]
    if options.json:
        print_json({"output": str(options.output), "size": image.size, "seconds": studio.seconds, "likeness": said})
        return 0
    times = ", ".join(f"{name} {value:.2f} s" for name, value in studio.seconds.items())
    print(f"{options.output}: {image.width} x {image.height} on {studio.place.device} ({times})")
    for one in said:
        print("likeness of {person}: {before}, now {after}".format(**one))
    return 0
