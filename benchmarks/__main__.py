"""``python -m benchmarks SUITE``: measure this package beside what people use today."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    suites = parser.add_subparsers(required=True, metavar="SUITE", dest="suite")
    suite = suites.add_parser("faces", help="the face stage, against insightface's FaceAnalysis")
    suite.add_argument("--backend", choices=("torch", "onnxruntime"), default="torch", help="of our side")
    suite.add_argument("--device", default="cpu", help="of our side; insightface runs on the CPU, as for most people")
    suite = suites.add_parser("workflow", help="the ComfyUI nodes, against cubiq/ComfyUI_InstantID")
    suite.add_argument("--comfyui", type=Path, required=True, metavar="DIR", help="a checkout of ComfyUI")
    suite.add_argument("--reference", type=Path, required=True, metavar="DIR", help="a checkout of the reference pack")
    suite.add_argument("--steps", type=int, default=20, help="evaluations of the model for one picture")
    suite.add_argument("--work", type=Path, metavar="DIR", help="keep the networks made (2.1 GB) here for another time")
    suite = suites.add_parser("startup", help="what the first picture waits for, against cubiq/ComfyUI_InstantID")
    suite.add_argument("--comfyui", type=Path, metavar="DIR", help="a checkout of ComfyUI; without, imports only")
    suite.add_argument("--reference", type=Path, metavar="DIR", help="a checkout of the reference pack")
    suite.add_argument("--work", type=Path, metavar="DIR", help="keep the networks made (2.1 GB) here for another time")
    suite = suites.add_parser("memory", help="bytes held and taken, against cubiq/ComfyUI_InstantID")
    suite.add_argument(
        "--comfyui", type=Path, metavar="DIR", help="a checkout of ComfyUI; without, the projection only"
    )
    suite.add_argument("--reference", type=Path, metavar="DIR", help="a checkout of the reference pack")
    suite.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the projection is measured")
    suite.add_argument("--work", type=Path, metavar="DIR", help="keep the networks made (2.1 GB) here for another time")
    suite = suites.add_parser("headline", help="a whole workflow, first picture and five edits, against the same pack")
    suite.add_argument("--comfyui", type=Path, required=True, metavar="DIR", help="a checkout of ComfyUI")
    suite.add_argument("--reference", type=Path, required=True, metavar="DIR", help="a checkout of the reference pack")
    suite.add_argument("--channels", type=int, default=64, help="of UNet and ControlNets; SDXL has 320 (24 GB in fp32)")
    suite.add_argument("--side", type=int, default=128, metavar="PIXELS", help="of the picture that is drawn")
    suite.add_argument("--steps", type=int, default=12, help="of the sampler")
    suite.add_argument("--compile", action="store_true", help="with ComfyUI's TorchCompileModel, on all sides")
    suite.add_argument("--no-timeline", dest="timeline", action="store_false", help="leave out the watched sessions")
    suite.add_argument("--work", type=Path, metavar="DIR", help="keep the networks made here for another time")
    suite = suites.add_parser("step", help="a sampling step, against cubiq/ComfyUI_InstantID and against none of both")
    suite.add_argument("--comfyui", type=Path, required=True, metavar="DIR", help="a checkout of ComfyUI")
    suite.add_argument("--reference", type=Path, metavar="DIR", help="a checkout of the reference pack")
    suite.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    suite.add_argument("--size", choices=("tiny", "full"), default="full", help="of the networks and pictures")
    suite.add_argument("--dtype", choices=("float32", "float16"), help="float16 on a GPU and float32 elsewhere")
    suite.add_argument("--batches", type=int, nargs="+", default=[1, 4], metavar="N", help="pictures at once")
    suite.add_argument("--variants", nargs="+", metavar="NAME", help="measure these only")
    suite.add_argument("--compile", action="store_true", help="also with torch.compile, which takes minutes")
    suite.add_argument("--seconds", type=float, default=180.0, help="start no new measurement after so long")
    suite = suites.add_parser("attention", help="the layers of SDXL with a face, against the old pack's way")
    suite.add_argument("--device", default="cpu")
    suite = suites.add_parser("findings", help="the report that started the project, counted beside the reference")
    suite.add_argument("--comfyui", type=Path, metavar="DIR", help="a checkout of ComfyUI; otherwise a stand-in for it")
    suite.add_argument("--reference", type=Path, metavar="DIR", help="a checkout of the reference pack")
    suite.add_argument("--trials", type=int, default=30, help="pictures of each kind in the wrong-face trial")
    suite = suites.add_parser("pipelines", help="a pipeline of diffusers, against InstantX's attention processors")
    suite.add_argument("--device", default="cpu")
    suite.add_argument("--sizes", nargs="+", choices=("tiny", "middle", "full"), default=["tiny", "middle"])
    suite.add_argument("--steps", type=int, default=4, help="of the sampler")
    suites.add_parser("recorder", help="what the stages cost, against the package without them")
    suite = suites.add_parser("likeness", help="what approximations do to likeness, on the miniature")
    suite.add_argument("--people", type=int, default=24, metavar="N", help="up to 100; two pictures of each")
    suite.add_argument("--steps", type=int, default=20, help="evaluations of the model for one picture")
    suite.add_argument("--processes", type=int, default=2, metavar="N", help="of one thread each")
    suite.add_argument(
        "--picture", type=Path, metavar="FILE", help="also write the pictures of some people, side by side"
    )
    suite.add_argument("--page", type=Path, metavar="FILE", help="also write the tables into this page")
    plot = suites.add_parser("plot", help="a picture of a result: of headline its timeline, of others their ratios")
    plot.add_argument("result", type=Path, metavar="RESULT.json", help="what another suite has written")
    plot.add_argument("-o", "--output", type=Path, required=True, metavar="PICTURE.png")
    page = suites.add_parser("page", help="tables of committed results, written again into a page")
    page.add_argument("page", type=Path, metavar="PAGE.md", help="what names them, such as docs/speed.md")
    runs = {"headline": 3, "step": 20, "attention": 31}
    for name, suite in suites.choices.items():
        if name in ("plot", "page"):
            continue
        if name != "memory":  # whose counts are the same each time
            suite.add_argument("--runs", type=int, default=runs.get(name, 7), help="counted runs of each side")
        suite.add_argument("--json", dest="json_path", type=Path, help="also write the result to this file")
    options = vars(parser.parse_args())
    # Each needs other packages, and none those of the others.
    import_module(f"benchmarks.{options.pop('suite')}").run(**options)


if __name__ == "__main__":
    main()
