"""``python -m benchmarks SUITE``: measure this package beside what people use today."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

MODULES = {
    "faces": "faces",
    "workflow": "nodes.workflow",
    "headline": "nodes.headline",
    "startup": "nodes.startup",
    "memory": "nodes.memory",
    "step": "step.suite",
    "attention": "attention",
    "pipelines": "pipelines.suite",
    "growth": "growth",
    "best": "step.best",
    "likeness": "likeness.suite",
    "precision": "likeness.faces",
    "people": "people",
    "gpu": "gpu.suite",
    "batch": "batch",
    "serve": "serve",
    "plot": "report.plot",
    "page": "report.page",
}
"""Each needs other packages, and none those of the others."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    suites = parser.add_subparsers(required=True, metavar="SUITE", dest="suite")

    def suite(name: str, help: str, runs: int = 7) -> argparse.ArgumentParser:
        made = suites.add_parser(name, help=help)
        made.add_argument("--json", dest="json_path", type=Path, metavar="FILE", help="also write the result here")
        if runs:
            made.add_argument("--runs", type=int, default=runs, help="counted runs of each side")
        return made

    def of_nodes(name: str, help: str, runs: int = 7, required: bool = True) -> argparse.ArgumentParser:
        made = suite(name, help, runs)
        made.add_argument("--comfyui", type=Path, required=required, metavar="DIR", help="a checkout of ComfyUI")
        made.add_argument("--reference", type=Path, required=required, metavar="DIR", help="the reference pack")
        made.add_argument("--work", type=Path, metavar="DIR", help="keep the networks made (2.1 GB) for another time")
        return made

    made = suite("faces", "the face stage, against insightface's FaceAnalysis")
    made.add_argument("--backend", choices=("torch", "onnxruntime"), default="torch", help="of our side")
    made.add_argument("--device", default="cpu", help="of our side; insightface runs on the CPU, and on CUDA beside it")
    made.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of our side")
    made = of_nodes("workflow", "the ComfyUI nodes and the layers they patch, against cubiq/ComfyUI_InstantID")
    made.add_argument("--steps", type=int, default=20, help="evaluations of the patched layers in the row 'in all'")
    made = of_nodes("headline", "a whole ComfyUI workflow and five edits, against the same pack", runs=3)
    made.add_argument("--size", choices=("small", "full"), default="small", help="of the UNet; full is SDXL's own")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of model and ControlNets")
    made.add_argument("--side", type=int, help="of the picture in pixels; 128 at small size, 256 at full")
    made.add_argument("--steps", type=int, help="of the sampler; 12 at small size, 2 at full")
    made.add_argument("--cfg", type=float, default=4.5, help="guidance; 1 is none, as distilled models need it")
    made.add_argument("--compile", action="store_true", help="with ComfyUI's TorchCompileModel, on all sides")
    made.add_argument("--no-timeline", dest="timeline", action="store_false", help="leave out the watched sessions")
    of_nodes("startup", "imports, loaders and the first Apply; without checkouts, the package only", required=False)
    made = of_nodes("memory", "bytes that a patched model holds, against the same pack", runs=0)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made = suite("step", "a sampling step, against the same pack and against none", runs=20)
    made.add_argument("--comfyui", type=Path, required=True, metavar="DIR", help="a checkout of ComfyUI")
    made.add_argument("--reference", type=Path, metavar="DIR", help="the reference pack")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    made.add_argument("--size", choices=("tiny", "full"), default="full", help="of the networks and pictures")
    made.add_argument("--batches", type=int, nargs="+", default=[1, 4], metavar="N", help="pictures at once")
    made.add_argument("--variants", nargs="+", metavar="NAME", help="measure these only")
    made.add_argument("--compile", action="store_true", help="with ComfyUI's TorchCompileModel; one variant a process")
    made = suite("attention", "SDXL's cross-attention layers with a face, against the old pack's way", runs=31)
    made.add_argument("--device", default="cpu")
    made = suite("pipelines", "a pipeline of diffusers, against InstantX's attention processors")
    made.add_argument("--device", default="cpu")
    made.add_argument("--sizes", nargs="+", choices=("tiny", "middle", "full"), default=["tiny", "middle"])
    made.add_argument("--steps", type=int, default=4, help="of the sampler")
    made = suite("growth", "time and memory by people, references, batch, picture size and workers", runs=3)
    made.add_argument("--device", default="cpu")
    made.add_argument("--size", choices=("tiny", "middle", "full"), default="middle", help="of the networks")
    made.add_argument("--points", type=int, default=10, metavar="N", help="the first N points of each curve only")
    made = suite("best", "EasyCache, compile, few steps and InstantX's way, alone and combined", runs=3)
    made.add_argument("--comfyui", type=Path, required=True, metavar="DIR", help="a checkout of ComfyUI")
    made.add_argument("--reference", type=Path, required=True, metavar="DIR", help="the reference pack")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--size", choices=("tiny", "middle", "full"), default="middle", help="of the networks")
    made.add_argument("--steps", type=int, default=20, help="of the sampler")
    made.add_argument("--compile", action="store_true", help="with ComfyUI's TorchCompileModel too: minutes on a CPU")
    made = suite("likeness", "what approximations do to likeness, on the miniature", runs=0)
    made.add_argument("--people", type=int, default=24, metavar="N", help="up to 100; two pictures of each")
    made.add_argument("--steps", type=int, default=20, help="evaluations of the model for one picture")
    made.add_argument("--processes", type=int, default=2, metavar="N", help="of one thread each")
    made.add_argument("--picture", type=Path, metavar="FILE", help="also write the pictures of six people")
    made = suite("precision", "what half precision and smaller sizes do to faces: rows of likeness", runs=0)
    made.add_argument("--people", type=int, default=12, metavar="N", help="up to 100; two portraits of each")
    made = suite("people", "what choices, references and tries do to likeness, on the miniature", runs=0)
    made.add_argument(
        "--people", type=int, default=600, metavar="N", help="for choices and pairs; references: a quarter"
    )
    made.add_argument("--drawn", type=int, default=24, metavar="N", help="people who are drawn, four pictures of each")
    made = suites.add_parser("gpu", help="all that a GPU can show, in order of value, until time is up")
    made.add_argument("--minutes", type=float, default=9.0, help="for all rows together")
    made.add_argument("--results", type=Path, default="results", metavar="DIR", help="taken up where it exists")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    made.add_argument("--size", choices=("tiny", "full"), default="full", help="tiny tries the rows")
    made.add_argument("--comfyui", type=Path, metavar="DIR", help="a checkout of ComfyUI")
    made.add_argument("--reference", type=Path, metavar="DIR", help="the reference pack")
    made.add_argument("--work", type=Path, default="work", metavar="DIR", help="keeps the networks made, 2.1 GB")
    made.add_argument("--rows", nargs="+", default=(), metavar="NAME", help="these only, also where they failed before")
    made.add_argument("--list", dest="listed", action="store_true", help="show the rows, and measure nothing")
    made = suite("batch", "pictures in a second by workers and batch size, on the miniature, and memory", runs=0)
    made.add_argument("--pictures", type=int, default=4008, metavar="N", help="portraits to draw and to embed")
    made.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="of one thread each")
    made.add_argument("--batch-sizes", type=int, nargs="*", default=[8], metavar="N", help="of embed")
    made = suite("serve", "the service: batching for 16 clients, and the first request", runs=3)
    made.add_argument("--steps", type=int, default=4, help="of a picture")
    made = suites.add_parser("plot", help="a picture of a result of headline, startup or growth")
    made.add_argument("result", type=Path, metavar="RESULT.json", help="of the suite headline, startup or growth")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="PICTURE.png")
    made = suites.add_parser("page", help="write the tables of committed results into a page again")
    made.add_argument("page", type=Path, metavar="PAGE.md", help="a page that names them, such as docs/speed.md")
    options = vars(parser.parse_args())
    import_module(f"benchmarks.{MODULES[options.pop('suite')]}").run(**options)


if __name__ == "__main__":
    main()
