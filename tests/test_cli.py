"""The shell: what it prints, writes and returns, and that nothing half-done is left behind."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from examples.tiny_adapter import write_tiny_adapter
from examples.tiny_faces import write_tiny_pack
from examples.tiny_sdxl import TOKEN_WIDTH, layer_channels, write_tiny_identitynet, write_tiny_sdxl
from fast_instantid import (
    Cache,
    FaceAnalyzer,
    InstantID,
    Sampling,
    draw_keypoints,
    generate,
    keypoint_picture,
    miniature,
)
from fast_instantid.cli import main
from fast_instantid.cli.output import timed
from fast_instantid.cli.parser import make_parser
from fast_instantid.people.person import cosine
from fast_instantid.recorder import Recorder
from fast_instantid.sources import MODELS
from tests.fresh import SHELL, fresh_python
from tests.tiny_pipelines import SHALLOW

COMMANDS = (
    "demo",
    "embed",
    "faces",
    "keypoints",
    "person",
    "generate",
    "batch",
    "detail",
    "serve",
    "download",
    "convert",
    "doctor",
    "watch",
    "profile",
)


@pytest.fixture
def photo(tmp_path: Path, astronaut: np.ndarray) -> str:
    path = tmp_path / "astronaut.png"
    Image.fromarray(astronaut).save(path)
    return str(path)


@pytest.fixture
def blank(tmp_path: Path) -> str:
    path = tmp_path / "blank.png"
    Image.new("RGB", (80, 60)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder as ``download`` would fill it, with tiny networks."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_pack(folder / "antelopev2")
    write_tiny_sdxl(folder / "base", depth=SHALLOW)
    write_tiny_identitynet(folder / "instantid" / "ControlNetModel", depth=SHALLOW)
    write_tiny_adapter(
        folder / "instantid" / "ip-adapter.bin", channels=layer_channels(SHALLOW), token_width=TOKEN_WIDTH
    )
    return folder


def shell(*arguments: str, env: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess[str]:
    """As a user would, in a process of its own."""
    code = SHELL.format("fast_instantid")
    return fresh_python(code, *arguments, env={**os.environ, **(env or {})}, check=False, **options)


def test_embed_prints_json_that_holds_the_embedding(pack, photo, astronaut, capsys):
    assert main(["embed", photo, "--pack", str(pack), "--device", "cpu", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["backend"] == "torch (cpu)"
    [row] = printed["photos"]
    expected = FaceAnalyzer.load(pack, device="cpu", cache=Cache()).embed(astronaut)[0]
    np.testing.assert_array_equal(np.float32(row["embedding"]), expected)
    assert row["photo"] == photo
    assert len(row["kps"]) == 5


def test_embed_writes_safetensors(pack, photo, tmp_path, capsys):
    output = tmp_path / "people.safetensors"
    assert main(["embed", photo, photo, "--pack", str(pack), "-o", str(output)]) == 0
    tensors = load_file(output)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "embeddings": (2, 512),
        "keypoints": (2, 5, 2),
        "boxes": (2, 4),
    }
    with safe_open(output, "np") as file:
        assert json.loads(file.metadata()["photos"]) == [photo, photo]
    assert capsys.readouterr().out == ""
    assert output.stat().st_mode & 0o777 == 0o600, "biometric data"


def test_one_bad_photo_does_not_cost_the_others(pack, photo, blank, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff not a jpeg")
    output = tmp_path / "out.safetensors"
    photos = [photo, blank, str(broken), "missing.jpg"]
    assert main(["embed", *photos, "--pack", str(pack), "-o", str(output), "--json"]) == 1
    captured = capsys.readouterr()
    rows = json.loads(captured.out)["photos"]
    assert ["error" in row for row in rows] == [False, True, True, True]
    assert load_file(output)["embeddings"].shape == (1, 512)
    for text in ("blank.png: no face found", "broken.jpg: not a picture", "missing.jpg: no such file"):
        assert text in captured.err


def test_embed_for_people(pack, photo, capsys):
    assert main(["embed", photo, "--pack", str(pack)]) == 0
    assert re.search(r"astronaut.png: \d face\(s\), the largest at \d+,\d+ to \d+,\d+", capsys.readouterr().out)


def test_keypoints_writes_the_picture(pack, photo, astronaut, tmp_path):
    output = tmp_path / "hint.png"
    assert main(["keypoints", photo, "-o", str(output), "--pack", str(pack)]) == 0
    face = FaceAnalyzer.load(pack, cache=Cache()).detect(astronaut)[0][0]
    np.testing.assert_array_equal(np.array(Image.open(output)), draw_keypoints((512, 512), face.kps))


def test_keypoints_of_a_picture_without_a_face(pack, blank, tmp_path, capsys):
    assert main(["keypoints", blank, "-o", str(tmp_path / "hint.png"), "--pack", str(pack)]) == 1
    assert "no face found" in capsys.readouterr().err
    assert not (tmp_path / "hint.png").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("hint.txt", "must end in one of .png"),
        ("nowhere/hint.png", "there is no folder"),
        ("hint", "must end in one of .png"),
        ("folder.png", "this is a folder"),
        ("astronaut.png", "would replace the photo"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_first(pack, photo, tmp_path, capsys, output, message):
    (tmp_path / "folder.png").mkdir()
    assert main(["keypoints", photo, "-o", str(tmp_path / output), "--pack", str(pack)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("loaded_once")
def test_generate_makes_a_picture_and_the_same_one_again(models, photo, tmp_path, capsys):
    arguments = ["generate", "--photo", photo, "--prompt", "a portrait", "--steps", "2", "--size", "128x64"]
    for name in ("antelopev2", "base", "instantid"):
        arguments += ["--pack" if name == "antelopev2" else f"--{name}", str(models / name)]
    pictures = []
    for name, extra in (("a", []), ("b", []), ("c", ["--weight", "2"]), ("d", ["--seed", "1"])):
        output = tmp_path / f"{name}.png"
        assert main([*arguments, *extra, "-o", str(output), "--json", "--device", "cpu"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["size"] == [128, 64]
        assert {"faces", "identity", "sampling"} <= printed["seconds"].keys()
        pictures.append(np.array(Image.open(output)))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
    assert not np.array_equal(pictures[0], pictures[3])


def test_a_picture_of_nan_is_a_failure_that_writes_no_file(models, photo, tmp_path, capsys):
    base = shutil.copytree(models / "base", tmp_path / "base")
    [weights] = (base / "vae").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["decoder.conv_out.bias"][1] = np.nan
    save_file(tensors, weights, {"format": "pt"})
    output = tmp_path / "out.png"
    arguments = ["generate", "--photo", photo, "--prompt", "x", "--steps", "1", "--size", "64x64", "--device", "cpu"]
    arguments += ["--base", str(base), "--instantid", str(models / "instantid"), "--pack", str(models / "antelopev2")]
    assert main([*arguments, "--json", "-o", str(output)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(r"error: picture 1 of 1 holds NaN.*bfloat16 or float32", printed.err)
    assert not output.exists()


def test_the_front_door_loads_what_the_shell_does(models, photo, tmp_path, monkeypatch):
    monkeypatch.setenv("FAST_INSTANTID_MODELS", str(models))
    cache = Cache(directory=tmp_path / "cache")
    instantid = InstantID.from_pretrained(device="cpu", cache=cache)
    person = instantid.person(photo)
    identity, keypoints = instantid.identity(person), keypoint_picture(person.face, person.photo_size, (64, 64))
    assert cache.stats.entries >= 3, "faces, embedding and identity"
    expected = generate(instantid, identity, keypoints, "x", Sampling(num_inference_steps=1))[0]
    command = ["generate", "--photo", photo, "--prompt", "x", "--steps", "1", "--size", "64x64", "--device", "cpu"]
    assert main([*command, "-o", str(tmp_path / "out.png")]) == 0
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "out.png")), np.array(expected))


@pytest.mark.usefixtures("loaded_once")
def test_a_cache_folder_remembers_faces_and_identities(models, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FAST_INSTANTID_MODELS", str(models))
    folder = tmp_path / "cache"
    generate = ["generate", "--photo", photo, "--prompt", "x", "--steps", "1", "--size", "64x64", "--json"]
    generate += ["--device", "cpu", "-o", str(tmp_path / "out.png"), "--cache", str(folder)]
    assert main(generate) == 0
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert len(kept) >= 3
    with Recorder() as recorded:
        assert main(generate) == 0
        assert main(["embed", photo, "--cache", str(folder)]) == 0
        assert main(["keypoints", photo, "-o", str(tmp_path / "hint.png"), "--cache", str(folder)]) == 0
    assert not {"load network", "resample", "project"} & {span.name for span in recorded.spans}
    assert kept.keys() == set(folder.rglob("*.safetensors"))


@pytest.mark.usefixtures("loaded_once")
def test_photos_of_two_people_are_told_on_stderr_and_to_the_host(drawn, tmp_path, capsys, caplog):
    other = str(miniature.files().portraits[1])
    command = ["generate", "--prompt", "x", "--steps", "1", "--base", "miniature", "-o", str(tmp_path / "out.png")]
    assert main([*command, "--photo", drawn, "--photo", other]) == 0
    assert f"{drawn} and {other} look like two people" in capsys.readouterr().err
    assert "look like two people" in caplog.text
    assert main([*command, "--photo", drawn, drawn]) == 0
    assert "look like two people" not in capsys.readouterr().err


@pytest.mark.usefixtures("loaded_once")
def test_a_face_beside_the_middle_of_a_wide_photo_is_drawn(drawn, tmp_path):
    wide = Image.new("RGB", (512, 128), "grey")
    wide.paste(Image.open(drawn), (384, 0))
    wide.save(tmp_path / "wide.png")
    command = ["generate", "--photo", str(tmp_path / "wide.png"), "--prompt", "flat portrait, plain blue background"]
    command += ["--base", "miniature", "--size", "128x128", "--steps", "10", "-o", str(tmp_path / "out.png")]
    assert main(command) == 0
    analyzer = FaceAnalyzer.load(miniature.files().pack, device="cpu")
    embeddings = analyzer.embed([drawn, tmp_path / "out.png"])
    assert cosine(*embeddings) > 0.5


def test_generate_finds_downloaded_models_by_itself(models, photo, tmp_path):
    output = tmp_path / "out.png"
    command = ["generate", "--photo", photo, photo, "--prompt", "a portrait", "--steps", "1", "--size", "64x64"]
    result = shell(*command, "-o", str(output), env={"FAST_INSTANTID_MODELS": str(models), "HF_HUB_OFFLINE": "1"})
    assert result.returncode == 0, result.stderr
    assert Image.open(output).size == (64, 64)
    assert "64 x 64 on" in result.stdout


# --- the miniature in place of downloaded models --------------------------------------------------------------------


@pytest.fixture
def drawn() -> str:
    return str(miniature.files().portraits[0])


@pytest.mark.usefixtures("loaded_once")
def test_one_word_generates_with_the_miniature(drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FAST_INSTANTID_MODELS", str(tmp_path / "nothing"))
    monkeypatch.setattr(miniature, "STEPS", 3)
    prompt = "flat portrait, plain blue background, red shirt"
    generate = ["generate", "--photo", drawn, "--prompt", prompt, "--device", "cpu", "--json"]
    files = miniature.files()
    spelt_out = ["--pack", str(files.pack), "--base", str(files.base), "--instantid", str(files.instantid)]
    spelt_out += ["--size", "128x128", "--steps", str(miniature.STEPS), "--guidance", str(miniature.GUIDANCE)]
    pictures = []
    for name, models in (("a", ["--base", "miniature"]), ("b", ["--instantid", "miniature"]), ("c", spelt_out)):
        output = tmp_path / f"{name}.png"
        assert main([*generate, *models, "-o", str(output)]) == 0
        assert json.loads(capsys.readouterr().out)["size"] == [128, 128]
        pictures.append(Image.open(output).tobytes())
    assert pictures[0] == pictures[1] == pictures[2]
    assert main([*generate, "--base", "miniature", "--steps", "2", "--size", "64x96", "-o", str(output)]) == 0
    assert Image.open(output).size == (64, 96)


def test_the_miniatures_pack_embeds_and_draws_keypoints(drawn, tmp_path, capsys):
    assert main(["embed", drawn, "--pack", "miniature", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["photos"][0]["embedding"]) == 512
    assert main(["keypoints", drawn, "--pack", "miniature", "-o", str(tmp_path / "hint.png")]) == 0
    assert Image.open(tmp_path / "hint.png").size == (128, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--base", "miniature", "--instantid", "mine"], "--base miniature beside --instantid mine: the miniature's"),
        (["--base", "sdxl", "--pack", "miniature"], "--pack miniature beside --base sdxl"),
        (["--base", "x", "--pack", "y", "--instantid", "miniature"], "beside --pack y and --base x"),
    ],
)
def test_the_miniature_is_not_mixed_with_other_models(options, message, tmp_path, capsys):
    assert main(["generate", "--photo", "p.png", "--prompt", "x", "-o", str(tmp_path / "o.png"), *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "./miniature" in error


def test_a_folder_called_miniature_needs_its_dot(models, photo, drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAST_INSTANTID_MODELS", str(models))
    shutil.copytree(models / "base", "miniature")
    generate = ["generate", "--photo", photo, "--prompt", "x", "--steps", "1", "--size", "64x64", "-o", "o.png"]
    assert main([*generate, "--base", "./miniature"]) == 0, "the folder, with the other models of this machine"
    assert main([*generate, "--base", "miniature", "--instantid", "./miniature"]) == 1
    assert "beside --instantid ./miniature" in capsys.readouterr().err


def test_photographs_are_not_for_the_miniature(blank, tmp_path, capsys):
    generate = ["generate", "--photo", blank, "--prompt", "x", "-o", str(tmp_path / "o.png")]
    assert main([*generate, "--base", "miniature"]) == 1
    assert miniature.DRAWN_ONLY in capsys.readouterr().err


def test_the_doctor_leaves_the_miniature_to_the_demo(capsys):
    assert main(["doctor", "--base", "miniature"]) == 1
    assert "'fast-instantid demo' shows" in capsys.readouterr().err


def test_a_miniature_that_is_not_whole_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(miniature, "_WEIGHTS", tmp_path)
    assert main(["embed", "anna.png", "--pack", "miniature"]) == 1
    error = capsys.readouterr().err
    assert f"the miniature in {tmp_path} is not complete, without antelopev2/scrfd_10g_bnkps.onnx" in error


def test_generate_says_which_model_is_missing(models, photo, tmp_path, capsys):
    arguments = ["generate", "--photo", photo, "--prompt", "x", "-o", str(tmp_path / "o.png")]
    assert main([*arguments, "--instantid", str(tmp_path), "--pack", str(models / "antelopev2")]) == 1
    assert "fast-instantid download" in capsys.readouterr().err


def test_a_step_that_fails_clears_its_progress_line(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(ValueError, match="no face"), timed("faces", {}):
        raise ValueError("no face")
    assert capsys.readouterr().err.endswith("\r\033[K")


def test_what_fails_for_its_models_points_to_the_doctor(pack, photo, tmp_path, capsys):
    assert main(["embed", photo, "--pack", str(tmp_path)]) == 1
    assert "'fast-instantid doctor'" in capsys.readouterr().err
    assert main(["embed", str(tmp_path / "nobody.jpg"), "--pack", str(pack)]) == 1
    assert "doctor" not in capsys.readouterr().err, "which knows no photos"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["demo", "--seed", "0", "--seed", "1"], "--seed"),
        (["embed", "p.png", "-o", "a.safetensors", "--output", "b.safetensors"], "-o/--output"),
        (["keypoints", "p.png", "--pack", "a", "--pack", "b"], "--pack"),
        (["generate", "--scale", "1", "--weight", "2"], "--scale/--weight"),
        (["generate", "--identity-range", "0", "1", "--identity-range", "0", "1"], "--identity-range"),
        (["download", "--to", "a", "--to", "b"], "--to"),
        (["convert", "a.bin", "--dtype", "float16", "--dtype", "bfloat16"], "--dtype"),
        (["doctor", "--device", "cpu", "--device", "cuda"], "--device"),
        (["watch", "--interval", "1", "--interval", "1"], "--interval"),
        (["profile", "--show", "a.json", "--show", "b.json"], "--show"),
    ],
)
def test_an_option_of_one_value_given_twice_is_wrong_usage(arguments, option, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage:")
    assert f"fast-instantid {arguments[0]}: error: argument {option}: given twice" in said


def test_options_that_take_a_list_add_up_and_long_names_are_diffusers():
    parser = make_parser()
    common = ["generate", "--prompt", "x", "-o", "o.png", "--photo", "a", "b", "--photo", "c"]
    options = parser.parse_args([*common, "--layers", "down_blocks", "--layers", "up_blocks", "mid_block"])
    assert options.photo == ["a", "b", "c"]
    assert options.layers == ["down_blocks", "up_blocks", "mid_block"]
    long = ["--scale", "1", "--controlnet-conditioning-scale", "2", "--num-inference-steps", "3"]
    long += ["--guidance-scale", "4"]
    short = ["--weight", "1", "--controlnet-strength", "2", "--steps", "3", "--guidance", "4"]
    for given in (long, short):
        options = make_parser().parse_args([*common, *given])
        assert (options.scale, options.controlnet_conditioning_scale) == (1, 2)
        assert (options.num_inference_steps, options.guidance_scale) == (3, 4)


def test_the_logging_of_the_host_stays_as_it_is(blank, pack):
    logger = logging.getLogger("fast_instantid")
    before = (logger.handlers[:], logger.propagate, logger.level)
    assert main(["embed", blank, "--pack", str(pack)]) == 1
    with pytest.raises(SystemExit):
        main(["frobnicate"])
    assert (logger.handlers, logger.propagate, logger.level) == before


def test_no_memory_is_an_error_in_one_line(monkeypatch, capsys):
    def allocate(options):
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr("fast_instantid.cli.doctor.run", allocate)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory; try a smaller --size")
    assert len(said.splitlines()) == 1


def test_an_unknown_option_is_refused_with_the_usage_of_its_command(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["embed", "anna.jpg", "--outptu", "people.safetensors"])
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert "usage: fast-instantid embed" in said
    assert "--outptu" in said


@pytest.mark.parametrize("arguments", [[], ["embed"], ["generate", "--photo", "x"], ["keypoints", "x"], ["frobnicate"]])
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "num_inference_steps 0: expected 1 to 1000"),
        (["--steps", "-1"], "num_inference_steps -1"),
        (["--guidance", "nan"], "guidance_scale nan"),
        (["--seed", "12345678901234567890123"], "seed 12345678901234567890123"),
        (["--weight", "9"], "scale 9.0: expected 0 to 5"),
        (["--dtype", "int8"], "'int8'"),
    ],
)
def test_generate_refuses_nonsense_before_it_loads_anything(options, message, tmp_path, capsys):
    arguments = ["generate", "--photo", "nowhere.jpg", "--prompt", "x", "-o", str(tmp_path / "o.png"), *options]
    assert main([*arguments, "--instantid", "nowhere", "--pack", "nowhere"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("size", ["1024", "1024x", "100x100", "0x64", "axb", "64x64x64"])
def test_a_bad_size_is_explained(size, capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--photo", "p", "--prompt", "x", "-o", "o.png", "--size", size])
    assert "expected WIDTHxHEIGHT in multiples of 8" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert f"example:\n  fast-instantid {command}" in capsys.readouterr().out


def test_a_full_disk_leaves_nothing_behind(pack, photo, tmp_path):
    small_files = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); "
    for command in (["embed", photo, "-o", "out.safetensors"], ["keypoints", photo, "-o", "out.png"]):
        folder = tmp_path / command[0]
        folder.mkdir()
        (folder / command[-1]).write_text("old")
        code = f"import sys; sys.dont_write_bytecode = True; {small_files}{SHELL.format('fast_instantid')}"
        result = fresh_python(code, *command, "--pack", str(pack), "--device", "cpu", cwd=folder, check=False)
        assert result.returncode == 1
        assert "error: " in result.stderr
        assert "Traceback" not in result.stderr
        assert [path.name for path in folder.iterdir()] == [command[-1]]
        assert (folder / command[-1]).read_text() == "old"


# --- download: real huggingface_hub, a real server on this machine ---------------------------------------------------


@pytest.fixture
def hub(models: Path):
    """Serves the repositories of ``MODELS`` the way the hub does; ``requests`` is what was asked of it."""
    requests: list[str] = []
    contents: dict[str, bytes] = {}
    hashes: dict[str, dict[str, str]] = {name: {} for name in MODELS}
    for name, model in MODELS.items():
        for file in model.files:
            source = models / name / file
            content = source.read_bytes() if source.exists() else b"weights"
            contents[f"/{model.repository}/resolve/{model.revision or 'main'}/{file}"] = content
            hashes[name][file] = hashlib.sha256(content).hexdigest()
    hang_ups: list[int] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            requests.append(f"{self.command} {self.path}")
            content = contents.get(self.path)
            start = int((self.headers["Range"] or "bytes=0-")[6:].split("-")[0])
            self.send_response(404 if content is None else 206 if start else 200)
            self.send_header("Content-Length", str(len(content or b"") - start))
            self.send_header("ETag", f'"{abs(hash(content)):040x}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if self.command == "GET" and content:
                if hang_ups:  # after so many bytes
                    content = content[: hang_ups.pop(0)]
                self.wfile.write(content[start:])

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.requests = requests  # type: ignore[attr-defined]
    server.contents = contents  # type: ignore[attr-defined]
    server.hashes, server.hang_ups = hashes, hang_ups  # type: ignore[attr-defined]
    yield server
    server.shutdown()
    server.server_close()


def hub_environment(hub, tmp_path: Path) -> dict[str, str]:
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    return {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}


_FETCH = """
import json, sys, time
from fast_instantid.cli import main
from fast_instantid.sources import MODELS
for name, hashes in json.loads(sys.argv.pop(1)).items():
    MODELS[name].files.update(hashes)
time.sleep = lambda _: None
sys.exit(main())
"""


def fetch(hub, tmp_path: Path, *arguments: str, hashes: bool = True) -> subprocess.CompletedProcess[str]:
    """``fast-instantid download`` from the server, whose files have other hashes than the published ones."""
    command = [sys.executable, "-c", _FETCH, json.dumps(hub.hashes if hashes else {}), "download", *arguments]
    environment = {**os.environ, **hub_environment(hub, tmp_path)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_download_fetches_what_is_missing_and_then_nothing(hub, tmp_path, models):
    to = tmp_path / "fetched"
    result = fetch(hub, tmp_path, "antelopev2", "instantid", "--to", str(to))
    assert result.returncode == 0, result.stderr
    assert "non-commercial research only" in result.stderr
    for name in ("antelopev2", "instantid"):
        assert MODELS[name].missing_from(to / name) == []
    assert (to / "antelopev2/glintr100.onnx").read_bytes() == (models / "antelopev2/glintr100.onnx").read_bytes()
    FaceAnalyzer.load(to / "antelopev2", device="cpu")

    asked = len(hub.requests)
    assert asked > 0
    assert not list(to.rglob(".incomplete"))
    assert fetch(hub, tmp_path, "antelopev2", "instantid", "--to", str(to)).returncode == 0
    assert len(hub.requests) == asked
    # What is there is checked too, and kept.
    (to / "instantid" / "ip-adapter.bin").write_bytes(b"cut")
    result = fetch(hub, tmp_path, "instantid", "--to", str(to), "--offline")
    assert result.returncode == 1
    assert "ip-adapter.bin: not the published file" in result.stderr
    assert (to / "instantid" / "ip-adapter.bin").read_bytes() == b"cut"


def test_download_survives_hang_ups_and_leaves_nothing_that_is_wrong(hub, tmp_path):
    hub.hang_ups += [3, 5, 100]  # bytes
    result = fetch(hub, tmp_path, "antelopev2", "--to", str(tmp_path / "to"))
    assert result.returncode == 0, result.stderr
    assert hub.hang_ups == []
    hub.hang_ups += [1] * 1000
    result = fetch(hub, tmp_path, "tokenizer", "--to", str(tmp_path / "to"))
    assert result.returncode == 1
    assert "tokenizer/merges.txt: could not be fetched" in result.stderr.splitlines()[-1]
    hub.hang_ups.clear()
    result = fetch(hub, tmp_path, "instantid", "--to", str(tmp_path / "to"), hashes=False)  # the published ones
    assert result.returncode == 1
    assert "what came has the SHA-256" in result.stderr.splitlines()[-1]
    for name in ("tokenizer", "instantid"):
        assert len(MODELS[name].missing_from(tmp_path / "to" / name)) == len(MODELS[name].files)
    assert "Traceback" not in result.stderr


def test_offline_refuses_and_names_what_is_missing(hub, tmp_path):
    to = tmp_path / "fetched"
    environment = hub_environment(hub, tmp_path)
    result = shell("download", "antelopev2", "--to", str(to), "--offline", env=environment)
    assert result.returncode == 1
    assert "lacks:\n  antelopev2/scrfd_10g_bnkps.onnx\n  antelopev2/glintr100.onnx" in result.stderr
    assert hub.requests == []
    assert not to.exists()


def test_a_hub_that_refuses_is_reported(hub, tmp_path):
    hub.contents.clear()
    result = shell("download", "antelopev2", "--to", str(tmp_path / "to"), env=hub_environment(hub, tmp_path))
    assert result.returncode == 1
    assert "could not be fetched from DIAMONIK7777/antelopev2" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_hub_that_cannot_be_reached_is_reported_once(tmp_path):
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}
    impatient = f"import time; time.sleep = lambda _: None; {SHELL.format('fast_instantid')}"
    command = ("download", "antelopev2", "--to", str(tmp_path / "to"))
    result = fresh_python(impatient, *command, env={**os.environ, **environment}, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: antelopev2/scrfd_10g_bnkps.onnx: could not be fetched")
    assert "refused" in result.stderr.splitlines()[-1].lower()
    assert len(result.stderr.splitlines()) == 2


def test_a_reader_that_has_enough_is_no_error(pack, photo):
    command = shlex.join([sys.executable, "-m", "fast_instantid", "embed", photo, photo, "--pack", str(pack), "--json"])
    command += " | head -c 10"
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert result.stdout == '{"backend"'
    assert result.stderr == ""


def test_an_unknown_model_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["download", "flux"])
    assert exit.value.code == 2
    assert "unknown model 'flux': choose from antelopev2, instantid, base, tokenizer" in capsys.readouterr().err
