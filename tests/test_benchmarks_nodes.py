"""The suites of nodes: what needs no ComfyUI of them, and their committed results."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import common
from benchmarks.common import SIDES, compare, held_bytes
from benchmarks.device import on
from benchmarks.goals import GOALS
from benchmarks.nodes import host, startup, workflow
from benchmarks.nodes.harness import group_photo, portrait, unseen
from benchmarks.nodes.headline import Outcome, agreement, pictures, rows
from benchmarks.nodes.session import COLD, RUNS, SEED
from benchmarks.nodes.watch import Watch
from examples.seeing_detector import write_seeing_detector
from fast_instantid.faces.detector import Detector
from fast_instantid.faces.onnx.graph import read_graph
from fast_instantid.faces.onnx.network import load_network
from fast_instantid.recorder import stage
from tests.fresh import fresh_python

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PARTS = ("nodes", "evaluation", "in all")


def outcome(nodes: float, sample: float) -> Outcome:
    parts = {name: {"apply": nodes, "sample": sample} for name in RUNS}
    parts[SEED]["apply"] = 0.0
    return Outcome(parts, {}, {}, "")


def test_rows_of_the_headline_add_up():
    found = {"reference": [outcome(3, 1), outcome(5, 1)], "ours": [outcome(1, 1), outcome(1, 1)]}
    found["limit"] = [outcome(0, 0.5), outcome(0, 0.5)]
    made = {row.name: row.to_json() for row in rows(found)}
    assert f"{SEED}: before sampling" not in made, "a new seed executes no node of the packs"
    assert made[f"{COLD}: before sampling"]["ratio"] == {"median": 4, "min": 3, "max": 5, "runs": 2}
    assert made[COLD]["ratio"]["median"] == (4 / 2 + 6 / 2) / 2
    assert made["in all"]["reference_seconds"]["min"] == 5 * 4 + 1
    assert made["the five edits"]["reference_seconds"]["min"] == 4 * 4 + 1
    assert made["in all"]["ours_over_limit"]["median"] == pytest.approx((5 * 2 + 1) / (6 * 0.5), abs=1e-6)


def latents(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(1, 4, 8, 8, generator=generator) for name in RUNS}


def test_pictures_must_agree():
    reference = latents(0)
    nearly = {name: picture + 1e-5 for name, picture in reference.items()}
    found = agreement({"reference": reference, "ours": nearly, "limit": latents(1)})
    assert [*found] == [*RUNS]
    assert all(0 < entry["ours"] < 1e-4 for entry in found.values())
    assert all("compiled_reference" not in entry for entry in found.values())


def test_a_compiled_reference_is_reported_and_not_judged():
    sides = {"reference": latents(0), "ours": latents(0), "limit": latents(1), "compiled_reference": latents(1)}
    assert all(entry["compiled_reference"] == 1 and entry["ours"] == 0 for entry in agreement(sides).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sides: sides["ours"].update({SEED: sides["ours"][SEED] + 0.1}), "seed edited: ours and the reference"),
        (lambda sides: sides["ours"].update({COLD: torch.full((1, 4, 8, 8), torch.nan)}), "cold first run: ours and"),
        (lambda sides: sides.update(limit=sides["reference"]), "differ by nan"),
        (
            lambda sides: [sides[side].update({SEED: sides[side][RUNS[-2]]}) for side in SIDES],
            "the edit changed nothing",
        ),
    ],
)
def test_nothing_is_reported_where_they_do_not_agree(change, message):
    sides = {"reference": latents(0), "ours": latents(0), "limit": latents(1)}
    agreement(sides)
    change(sides)
    with pytest.raises(SystemExit, match=message):
        agreement(sides)


def test_in_half_precision_a_difference_is_reported_and_not_judged():
    apart = {name: picture + 1 for name, picture in latents(0).items()}
    found = agreement({"reference": latents(0), "ours": apart, "limit": latents(1)}, judged=False)
    assert all(entry["ours"] > 1e-3 for entry in found.values())
    assert common.finite({"ours": float("nan"), "effect_of_the_face": 0.5}) == {"ours": None, "effect_of_the_face": 0.5}


def test_a_gpu_has_its_number_and_half_precision():
    assert on("cpu") == (torch.device("cpu"), torch.float32)
    assert on("cuda") == (torch.device("cuda", 0), torch.float16)
    assert on("cuda:1") == (torch.device("cuda", 1), torch.float16)


def test_nodes_are_imported_where_no_video_can_be_opened(tmp_path, monkeypatch):
    (tmp_path / "nodes.py").write_text(
        "import av\nfrom av.video.reformatter import ColorRange\nOPENED: 'av.X | None' = None"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name == "nodes" or name.partition(".")[0] == "av"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: None)
    assert host.import_nodes().OPENED is None
    assert not any(name.partition(".")[0] == "av" for name in sys.modules)
    monkeypatch.delitem(sys.modules, "nodes")


def test_one_of_six_pictures_is_replaced_and_the_pose_stays():
    shown = pictures()
    assert SEED not in shown
    before, after = shown["range edited"], shown["one of six replaced"]
    assert [torch.equal(old, new) for old, new in zip(before, after, strict=True)] == [True] * 5 + [False, True]


def test_the_watch_counts_inner_parts_once_and_in_order():
    thing = SimpleNamespace(inner=lambda seconds: time.sleep(seconds) or "done")
    watch = Watch()
    watch.around(thing, "inner", "inner")
    start = time.perf_counter()
    with watch.part("outer"):
        time.sleep(0.02)
        assert thing.inner(0.05) == "done"
        assert thing.inner(0.05) == "done"
    passed = time.perf_counter() - start
    watch.move("outer", "told", 0.005)
    found = watch.take()
    assert [*found] == ["outer", "inner", "told"]
    assert found["inner"] >= 0.1
    assert 0.015 <= found["outer"] <= passed - 0.1
    assert sum(found.values()) == pytest.approx(passed, abs=0.01)
    assert watch.take() == {}


def test_a_comparison_knows_where_our_time_went(monkeypatch):
    monkeypatch.setattr(common, "PAUSE", 0)
    seen = []

    def ours(run: int) -> None:
        seen.append(run)
        with stage("network"):
            time.sleep(0.02)
            with stage("convert"):
                time.sleep(0.01)

    comparison = compare("a job", lambda run: None, ours, runs=2)
    assert seen == [-1, 0, 1, 2], "the recorded run comes last, and with an input of its own"
    assert len(comparison.ours) == 2
    stages = comparison.to_json()["ours_stages_seconds"]
    assert [*stages][:2] == ["network", "convert"]
    assert 0.02 <= stages["network"] < 0.03 + stages["convert"]
    assert stages["not inside any stage"] == pytest.approx(0, abs=0.01)


def test_the_detector_sees_the_faces_of_the_pictures(tmp_path):
    path = tmp_path / "detector.onnx"
    write_seeing_detector(path)
    graph = read_graph(path)
    detector = Detector(load_network(graph, "torch", "cpu"), graph)
    one, six = detector.detect(
        [image[0].mul(255).byte().numpy() for image in (unseen(portrait()), unseen(group_photo()))]
    )
    assert len(one.scores) == 1
    assert len(six.scores) == 6
    widths = sorted(six.boxes[:, 2] - six.boxes[:, 0])
    assert widths[-1] > 1.5 * widths[-2], "which face is the largest must not hang on the last bit"


def test_an_unseen_picture_shows_an_unseen_face():
    images = [*unseen(portrait(), 2), *unseen(portrait())]
    for i, image in enumerate(images):
        for other in images[:i]:
            assert (image - other).abs().max() < 1.5 / 255
            face = (slice(160, 350), slice(370, 500))
            assert (image[face] != other[face]).float().mean() > 0.3


def test_held_bytes_counts_a_storage_once():
    layer = torch.nn.Linear(4, 8, bias=False)
    options = {"transformer_options": {("input", 4, 0): SimpleNamespace(kwargs=[{"adapter": layer}])}}
    model = SimpleNamespace(model_options=options)
    again = SimpleNamespace(model_options={"patches": (layer.weight.detach()[0], torch.zeros(3))})
    assert held_bytes(model) == 4 * 4 * 8
    assert held_bytes(model, again) == 4 * 4 * 8 + 4 * 3


def test_the_package_is_timed_in_processes_of_its_own(tmp_path: Path, capsys, monkeypatch) -> None:
    quick = SimpleNamespace(run=lambda command, **_: fresh_python(command[-1]), PIPE=None)  # torch is not timed
    monkeypatch.setattr(startup, "subprocess", quick)
    monkeypatch.setattr(startup, "find_spec", lambda _: None)  # the shell takes several seconds
    startup.run(None, None, runs=1, work=None, json_path=tmp_path / "result.json")
    document = json.loads((tmp_path / "result.json").read_text())
    assert [row["name"] for row in document["results"]] == ["import of the package", "first identity"]
    assert all(row["ours_seconds"]["min"] > 0 and row["ours_seconds"]["runs"] == 1 for row in document["results"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == document
    with pytest.raises(SystemExit, match="--comfyui DIR and --reference DIR"):
        startup.run(tmp_path, None, runs=1, work=None, json_path=None)


def test_the_parts_of_a_start_add_up() -> None:
    starts = {"reference": [{"import": 1.0, "Apply": 3.0}] * 2, "ours": [{"import": 0.5, "Apply": 0.25}] * 2}
    found = {comparison.name: comparison.ratios for comparison in startup.compare_parts(starts, "from disk: ")}
    assert found == {
        "from disk: import": [2.0, 2.0],
        "from disk: Apply": [12.0, 12.0],
        "from disk: all of it": [4 / 0.75, 4 / 0.75],
    }


def test_forgotten_files_are_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights.bin").write_bytes(b"weights" * 1000)
    startup.forget(tmp_path)
    assert (tmp_path / "models" / "weights.bin").read_bytes() == b"weights" * 1000


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/headline--*.json")), ids=lambda path: path.stem)
def test_a_committed_headline_has_all_cases_and_agrees(path):
    document = json.loads(path.read_text())
    about, found = document["about"], {row["name"]: row for row in document["results"]}
    assert found.keys() >= {*RUNS, "the five edits", "in all"}
    assert all(entry["ours"] <= 1e-3 for entry in about["differences"].values())
    assert all([*about.get("timeline", {}).get(side, RUNS)] == [*RUNS] for side in SIDES)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/workflow--*.json")), ids=lambda path: path.stem)
def test_a_committed_workflow_has_all_cases_and_adds_up(path):
    document = json.loads(path.read_text())
    about, rows = document["about"], {row["name"]: row for row in document["results"]}
    assert rows.keys() >= {name for name in GOALS["workflow"] if not name.startswith(COLD)}
    for case in workflow.cases(runs=-1):
        nodes, evaluation, in_all = (rows[f"{case}: {part}"] for part in PARTS)
        for side in ("reference_seconds", "ours_seconds"):
            assert nodes[side]["runs"] == evaluation[side]["runs"] == in_all[side]["runs"] > 1
            low, high = (nodes[side][end] + about["steps"] * evaluation[side][end] for end in ("min", "max"))
            assert low - 1e-4 <= in_all[side]["min"] <= in_all[side]["max"] <= high + 1e-4
    assert about["largest_difference"] <= workflow.TOLERANCE
