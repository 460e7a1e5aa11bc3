"""The command ``fast-instantid generate``: one picture, or many."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import FastInstantIDError, NoFaceError
from ..files import check_parent
from ..scale.run_folder import RUN_FILE
from . import jobs, run_jobs
from .jobs import Job
from .models import Models
from .options import command, generate_options, person_option
from .output import PICTURE_SUFFIXES, check_output, output, print_json, save_picture, say
from .studio import Studio, check, profile_of


def add_command(commands: Any) -> None:
    text, example = "draw the person of a photo", '--photo anna.jpg --prompt "a watercolour" --scale 0.7 -o anna.png'
    parser = command(commands, "generate", run, text, example)
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--photo", nargs="+", help="photos of one person; the first gives the pose")
    person_option(who)
    text = "a picture for each line; columns: person, prompt, seed, other options with _ for -; options give the rest"
    who.add_argument("--jobs", type=Path, metavar="CSV", help=text)
    generate_options(parser)
    text = "the picture to write; of several pictures, their folder"
    parser.add_argument("-o", "--output", type=output, required=True, help=text)


def run(options: argparse.Namespace) -> int:
    """Draw one picture into a file, or many into a folder."""
    wanted, models, default = jobs_of(options)
    if len(wanted) == 1 and not options.jobs and options.output.suffix:
        return _one(options, models, wanted[0])
    if len(options.photo or ()) > 1:
        raise FastInstantIDError(
            "several photos and several pictures: keep the person in a file by 'person make', and give --person"
        )
    folder: Path = options.output
    if folder.suffix or (folder.exists() and not folder.is_dir()):
        raise FastInstantIDError(f"{folder}: {len(wanted)} pictures go into a folder; name one")
    check_parent(folder)
    if (folder / RUN_FILE).exists():
        raise FastInstantIDError(f"{folder}: this folder belongs to 'batch': go on with that, or name another folder")
    studio = open_studio(options, models, default)
    folder.mkdir(exist_ok=True)
    draw = partial(run_jobs.draw_batch, studio, folder)
    return run_jobs.run(wanted, folder, options.batch_size, lambda: draw, json=options.json)


def jobs_of(options: argparse.Namespace) -> tuple[list[Any], Models, Job]:
    """The jobs that the options name, the models that draw them, and the job of the options alone."""
    if options.settings:
        for name, value in jobs.settings_of(options.settings).items():
            is_source = name == "person" and (options.photo or options.person or options.jobs)
            if getattr(options, name) == options.parser.get_default(name) and not is_source:
                setattr(options, name, [value] if name in ("person", "prompt", "seed") else value)
    models = Models.of(options)
    seeds = options.seed or [0]
    given: dict[str, Any] = {field.name: getattr(options, field.name) for field in fields(Job)}
    given |= {"person": "", "prompt": "", "seed": seeds[0]}
    given["lora"] = tuple(with_scale("--lora", one, 1) for one in options.lora or ())
    given["controlnet"] = tuple(with_scale("--controlnet", one, 2) for one in options.controlnet or ())
    suited = {"num_inference_steps": models.steps, "guidance_scale": models.guidance}
    if given["profile"]:
        from ..pipelines.profiles import Profile

        suited |= Profile.of(given["profile"]).options
    given |= {name: value for name, value in suited.items() if given[name] is None}
    default = Job(**given)
    for name, other in (("tries", "at_least"), ("strength", "image")):
        if not options.jobs and getattr(default, name) != getattr(Job, name) and getattr(default, other) in (None, ""):
            raise FastInstantIDError(f"--{name} without --{other.replace('_', '-')}: give both or neither")
    wanted: list[Any] = []
    if options.jobs:
        if options.prompt:
            default = replace(default, prompt=options.prompt[0])
        wanted = jobs.from_csv(options.jobs, default, options.prompt or (), seeds)
    elif not (options.photo or options.person):
        raise FastInstantIDError("nobody to draw: give --photo, --person, --jobs or --from")
    elif not options.prompt:
        raise FastInstantIDError("nothing to draw: give --prompt")
    else:
        people = jobs.people_of(options.person) if options.person else [options.photo[0]]
        wanted = jobs.from_options(default, people, options.prompt, seeds)
    return wanted, models, default


def open_studio(options: argparse.Namespace, models: Models, job: Job) -> Studio:
    """Check what a job has in common with all others, and load what only the pipeline can refuse."""
    check(job)
    studio = Studio(options, models)
    if job.profile or job.scheduler or job.lora or job.controlnet:
        pipe = studio.instantid(False, job.identity_net, job.scheduler, job.lora, job.controlnet).pipe
        profile_of(job).load(pipe)
    return studio


def _one(options: argparse.Namespace, models: Models, job: Job) -> int:
    check_output(options.output, PICTURE_SUFFIXES, [*(options.photo or options.person), job.keypoints, job.image])
    studio = open_studio(options, models, job)
    try:
        person = studio.person(*(options.photo or [job.person]))
    except NoFaceError as error:
        if options.no_face != "skip":
            raise
        say(f"skipped: {error}")
        if options.json:
            print_json({"output": None, "skipped": str(error)})
        return 0
    drawn = studio.draw([job], [person])[0]
    image = drawn.image
    save_picture(image, options.output, settings=drawn.text)
    if options.json:
        print_json({"output": str(options.output), "size": image.size, "seconds": studio.seconds, **drawn.report})
        return 0
    times = ", ".join(f"{name} {value:.2f} s" for name, value in studio.seconds.items())
    print(f"{options.output}: {image.width} x {image.height} on {studio.place.device} ({times})")
    if drawn.report:
        print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in drawn.report.items()))
    return 0


def with_scale(option: str, given: Sequence[Any], count: int) -> tuple[Any, ...]:
    """``count`` paths and a number, 1 without one."""
    *paths, scale = given if len(given) > count else (*given, 1.0)
    try:
        if len(paths) != count or not -10 <= float(scale) <= 10:
            raise ValueError
    except ValueError:
        expected = "PATH PICTURE [SCALE]" if count == 2 else "PATH [SCALE]"
        raise FastInstantIDError(
            f"{option} {' '.join(map(str, given))}: expected {expected}, the scale from -10 to 10"
        ) from None
    return *paths, float(scale)
