"""The command ``fast-instantid serve``: the service, in this process or on Ray."""

from __future__ import annotations

import argparse
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import FastInstantIDError
from ..recorder import stage
from .models import Models, face_analyzer
from .options import command, face_options, model_options, portable, positive
from .output import say

KEY = "FAST_INSTANTID_KEY"
_BOUNDS = {  # limit -> help of its option, with the default of Limits
    "queue": "32 requests that wait for the pipeline, and as many for the face networks; more get the status 429",
    "batch": "4 pictures drawn at once; more wait",
    "photos": "8 photographs of a request; more get 422",
    "people": "4 persons in a picture; more get 422",
    "steps": "60 sampling steps of a picture; more get 422",
    "area": "2359296 pixels of a picture that is drawn; more get 422",
    "pixels": "100000000 pixels of the photographs of a request, together; more get 413",
    "body": "33554432 bytes of a request; more get 413",
    "seconds": "300 s from a request to its answer; later, it is given up with 504",
}


def add_command(commands: Any) -> None:
    text, example = "answer requests for faces, persons and pictures over HTTP", "--base miniature"
    parser = command(commands, "serve", run, text, example)
    model_options(parser)
    face_options(parser, cached=False)
    text = f"address to listen at; beyond this machine, ${KEY} is needed"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    parser.add_argument("--port", type=int, default=8189, help="port to listen at")
    parser.add_argument("--persons", type=Path, metavar="DIR", help="folder that keeps named persons; none by default")
    text = "folder that keeps the faces of clients between requests; nothing is kept without it"
    parser.add_argument("--cache", type=Path, metavar="DIR", help=text)
    parser.add_argument("--profile", default="", metavar="NAME", help="few steps: lcm, lightning, dmd2, hyper or turbo")
    parser.add_argument("--ray", action="store_true", help="run under Ray Serve, here or in the cluster $RAY_ADDRESS")
    parser.add_argument("--replicas", type=positive, metavar="N", help="with --ray: how many pipelines; 1 by default")
    bounds = parser.add_argument_group("limits", "at most this much, and by default:")
    for name, text in _BOUNDS.items():
        bounds.add_argument(f"--max-{name}", type=partial(positive, digits=12), metavar="N", help=text)


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted."""
    key = _key()
    if options.replicas is not None and not options.ray:
        raise FastInstantIDError("--replicas needs --ray: without it, there is one pipeline in this process")
    with stage("import"):
        from ..scale.serve import limits, server
    _limits(options)  # wrong ones fail here, and not in a replica
    if not key and not limits.is_loopback(options.host):
        raise FastInstantIDError(
            f"--host {options.host} reaches beyond this machine, and there is no key: set ${KEY} to a secret that "
            "clients send, or listen at 127.0.0.1"
        )
    if options.ray:
        from ..scale.serve.on_ray import run_on_ray

        given = portable(options)
        run_on_ray(lambda: app_of(given, key), options.host, options.port, options.replicas or 1, _say_where)
        return 0
    with server.bound(options.host, options.port) as listening:
        app = app_of(options, key)
        _say_where(options.host, listening.getsockname()[1])
        server.server(app, engine=app.state.engine).run([listening])
    if (failure := app.state.engine.failure) is not None:
        raise FastInstantIDError(f"the warm-up failed: {type(failure).__name__}: {failure}") from failure
    return 0


def _say_where(host: str, port: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    say(f"http://{shown}:{port} has the page, and /readyz says when it is warm; interrupt to end")


def _key() -> str:
    key = os.environ.get(KEY, "")
    if key and not re.fullmatch("[!-~]{16,}", key):
        raise FastInstantIDError(f"${KEY}: expected 16 or more letters, digits and signs of ASCII, without spaces")
    return key


def _limits(options: argparse.Namespace) -> Any:
    from ..scale.serve.limits import Limits

    return Limits(**{name: value for name in _BOUNDS if (value := getattr(options, f"max_{name}")) is not None})


def app_of(options: argparse.Namespace, key: str) -> Any:
    """Load the models, and make the app."""
    with stage("import"):
        from ..cache import Cache
        from ..identity import Adapter
        from ..pipelines import InstantID, InstantIDFiles, load_pipeline
        from ..pipelines.profiles import Profile
        from ..placement import Placement
        from ..scale.serve import app, engine

    models = Models.of(options)
    place = Placement.resolve(options.device, options.dtype)
    # Of no bytes: it still lets requests of one photograph share a computation.
    options.cache = Cache(max_bytes=0) if options.cache is None else Cache(directory=options.cache)
    adapter = InstantIDFiles.find(models.instantid, place.dtype).adapter
    instantid = InstantID(
        load_pipeline(models.base, models.instantid, place.device, place.dtype),
        identity_net=0,
        adapter=Adapter.load(adapter, place.device, place.dtype, options.cache),
        faces=face_analyzer(options, models.pack),
        defaults={"num_inference_steps": models.steps, "guidance_scale": models.guidance},
    )
    Profile.of(options.profile or None).load(instantid.pipe)
    made = engine.Engine(instantid, _limits(options), models.size, options.profile)
    return app.make_app(made, key, options.persons)


def on_ray(given: dict[str, Any]) -> Any:
    """The Ray Serve application for a RayService or ``serve run``: options of the command by name, without dashes."""
    from ..scale.serve.on_ray import application
    from .parser import make_parser

    arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]

    def build() -> Any:
        if not (key := _key()):
            raise FastInstantIDError(f"a cluster reaches beyond a machine: set ${KEY} to a secret that clients send")
        return app_of(make_parser().parse_args(["serve", *arguments]), key)

    return application(build)
