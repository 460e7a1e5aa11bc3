"""Face model packs: found wherever people unzip them, told apart by content, refused with what is missing."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path

import onnx
import pytest
from insightface.app import FaceAnalysis

from examples.tiny_faces import write_landmark_net, write_mobile_face_net, write_scrfd, write_skin_detector
from fast_instantid.cache import Cache
from fast_instantid.errors import ModelFileError
from fast_instantid.faces import FaceAnalyzer
from fast_instantid.faces.pack import find_pack, other_recognizer
from tests.adversity import needs_posix, opened_files, unprivileged

ANTELOPE = ("scrfd_10g_bnkps.onnx", "glintr100.onnx")
BUFFALO = ("det_10g.onnx", "w600k_r50.onnx")


@pytest.fixture(scope="session")
def made_detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_skin_detector(tmp_path_factory.mktemp("made") / "detector.onnx")


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The networks of a usual pack that InstantID has no use for."""
    folder = tmp_path_factory.mktemp("others")
    write_landmark_net(folder / "1k3d68.onnx", 3309, width=4)
    write_landmark_net(folder / "2d106det.onnx", 212, width=4)
    write_landmark_net(folder / "genderage.onnx", 3, width=4, size=96)
    return folder


@pytest.fixture
def fill(made_detector: Path, recognizer_file: Path):
    """Put a detector and a recogniser of these names into a folder; return the folder."""

    def fill(folder: Path, detector: str = ANTELOPE[0], recognizer: str = ANTELOPE[1]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / detector).symlink_to(made_detector)
        (folder / recognizer).symlink_to(recognizer_file)
        return folder

    return fill


def without_keypoints(source: Path, target: Path) -> Path:
    """A detector of six outputs, as insightface has too."""
    model = onnx.load(str(source))
    kept = list(model.graph.output)[:6]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, str(target))
    return target


def refusal(folder: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        find_pack(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    return str(caught.value)


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING)


# Places


@pytest.mark.parametrize(
    ("where", "asked"),
    [
        ("antelopev2", "antelopev2"),
        ("antelopev2/antelopev2", "antelopev2"),
        ("antelopev2/antelopev2", "antelopev2/antelopev2"),
        ("models/insightface/models/antelopev2", "models/insightface/models/antelopev2"),
        ("models/insightface/models/antelopev2", "models/insightface/models"),
        ("models/insightface/models/antelopev2", "models/insightface"),
        ("models/insightface/models/antelopev2", "models"),
        ("models/insightface/models/antelopev2", ""),
        ("models/insightface/models/antelopev2/antelopev2", "models/insightface"),
        ("models/insightface/models/antelopev2/antelopev2", "models"),
        ("models/insightface/models/antelopev2/antelopev2", ""),
        ("models/insightface/antelopev2", ""),
        ("models/insightface", ""),
        (".insightface/models/antelopev2", ".insightface"),
        ("ins ight-face/Antelope V2", "ins ight-face"),
    ],
)
def test_a_pack_is_found_where_people_unzip_it(where, asked, tmp_path, fill, caplog):
    root = tmp_path / "ComfyUI"
    fill(root / where)
    (root / "models" / "checkpoints").mkdir(parents=True, exist_ok=True)
    found = find_pack(root / asked)
    assert found.folder == root / where
    assert (found.detector.path.name, found.recognizer.path.name) == ANTELOPE
    assert find_pack(str(root / asked)).folder == found.folder
    assert warnings_of(caplog) == ""


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, fill, monkeypatch):
    fill(tmp_path / ".insightface" / "models" / "antelopev2")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert find_pack("~/.insightface").folder == tmp_path / ".insightface" / "models" / "antelopev2"


def test_a_folder_that_links_to_itself_ends(tmp_path, fill):
    fill(tmp_path / "a" / "antelopev2")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert find_pack(tmp_path).folder == tmp_path / "a" / "antelopev2"


# Choice


def test_renamed_files_are_told_apart_by_content(tmp_path, fill, others):
    folder = fill(tmp_path, detector="z.onnx", recognizer="a.ONNX")
    for name, source in (("b.onnx", "1k3d68.onnx"), ("c.onnx", "2d106det.onnx"), ("d.onnx", "genderage.onnx")):
        shutil.copy(others / source, folder / name)
    found = find_pack(folder)
    assert (found.detector.path.name, found.recognizer.path.name) == ("z.onnx", "a.ONNX")


def test_exchanged_names_do_not_matter(tmp_path, fill):
    found = find_pack(fill(tmp_path, detector=ANTELOPE[1], recognizer=ANTELOPE[0]))
    assert (found.detector.path.name, found.recognizer.path.name) == (ANTELOPE[1], ANTELOPE[0])


@pytest.mark.parametrize("batched", [False, True])
def test_every_family_of_networks_is_known(batched, tmp_path):
    write_scrfd(tmp_path / "one.onnx", batched=batched)
    write_mobile_face_net(tmp_path / "two.onnx")
    found = find_pack(tmp_path)
    assert (found.detector.path.name, found.recognizer.path.name) == ("one.onnx", "two.onnx")


def test_antelopev2_is_preferred_wherever_it_lies(tmp_path, fill, caplog):
    fill(tmp_path / "buffalo_l", *BUFFALO)
    deep = fill(tmp_path / "models" / "antelopev2" / "unzipped")
    assert find_pack(tmp_path).folder == deep
    assert warnings_of(caplog) == ""


def test_antelopev2_is_preferred_in_one_folder_with_another_pack(tmp_path, fill):
    fill(fill(tmp_path, *BUFFALO))
    found = find_pack(tmp_path)
    assert (found.detector.path.name, found.recognizer.path.name) == ANTELOPE


def test_of_equal_packs_the_nearest_counts(tmp_path, fill):
    fill(tmp_path / "a" / "b" / "antelopev2")
    near = fill(tmp_path / "z" / "antelopev2")
    assert find_pack(tmp_path).folder == near


@pytest.mark.parametrize(
    ("folder", "names", "warned"),
    [
        ("buffalo_l", BUFFALO, True),
        ("faces", BUFFALO, True),
        ("buffalo_s", ("det_500m.onnx", "w600k_mbf.onnx"), True),
        ("buffalo_l", ("d.onnx", "r.onnx"), True),
        ("buffalo_l", ANTELOPE, False),
        ("auraface", ("d.onnx", "r.onnx"), False),
    ],
)
def test_a_buffalo_pack_is_warned_about(folder, names, warned, tmp_path, fill, caplog):
    found = find_pack(fill(tmp_path / folder, *names))
    assert ("InstantID was trained on antelopev2" in warnings_of(caplog)) == warned
    assert (str(found.recognizer.path) in warnings_of(caplog)) == warned


def test_a_known_recogniser_is_named_by_its_content_under_any_name(
    tmp_path, fill, recognizer_file, monkeypatch, caplog
):
    content = recognizer_file.read_bytes()
    known = {len(content): (hashlib.sha256(content).hexdigest(), "AuraFace's recogniser")}
    monkeypatch.setattr("fast_instantid.faces.pack._OTHER_RECOGNIZERS", known)
    found = find_pack(fill(tmp_path / "antelopev2"))
    said = f"{found.recognizer.path} is AuraFace's recogniser. InstantID was trained on antelopev2's"
    assert said in warnings_of(caplog)
    assert "another embedding space, another person" in warnings_of(caplog)
    caplog.clear()
    analysis = FaceAnalysis(name=str(found.folder), providers=["CPUExecutionProvider"])
    for _ in range(2):
        FaceAnalyzer.wrap(analysis)
    assert warnings_of(caplog).count("is AuraFace's recogniser") == 1, "loaded by another pack, and said once"
    caplog.clear()
    changed = tmp_path / "changed" / ANTELOPE[1]
    fill(changed.parent).joinpath(ANTELOPE[1]).unlink()
    changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    find_pack(changed.parent)
    assert warnings_of(caplog) == "", "the same size is not enough"


def test_only_a_file_of_the_size_of_a_known_one_is_hashed(tmp_path, monkeypatch):
    """Files of their sizes and no content, which takes no room on the disk."""
    hashed: list[str] = []
    monkeypatch.setattr("fast_instantid.faces.pack.checksum", lambda path: hashed.append(str(path)) or "")
    path = tmp_path / ANTELOPE[1]
    for nbytes, name in ((260_665_334, ""), (260_694_151, "260,694,151 bytes"), (130_000_000, "130,000,000 bytes")):
        with open(path, "wb") as file:
            file.truncate(nbytes)
        assert name in other_recognizer(path)
        assert bool(other_recognizer(path)) == bool(name)
        assert bool(hashed) == (nbytes == 260_694_151)
        hashed.clear()
    assert other_recognizer(path.rename(tmp_path / "mine.onnx")) == ""


def test_the_landmark_and_gender_nets_of_a_usual_pack_are_never_opened(tmp_path, pack, others, astronaut):
    folder = tmp_path / "antelopev2"
    folder.mkdir()
    for source in (*pack.iterdir(), *others.iterdir()):
        shutil.copy(source, folder / source.name)
    with opened_files() as opened:
        assert FaceAnalyzer.load(folder, device="cpu", cache=Cache()).embed(astronaut).shape == (1, 512)
    assert {Path(path).name for path in opened if path.endswith(".onnx")} == set(ANTELOPE)


# Refusals


def test_an_empty_folder_says_what_is_needed(tmp_path):
    message = refusal(tmp_path)
    assert "no .onnx file" in message
    assert "scrfd_10g_bnkps.onnx and glintr100.onnx" in message
    assert "fast-instantid download antelopev2" in message


def test_a_missing_folder_and_a_file_are_named(tmp_path):
    assert "no such folder" in refusal(tmp_path / "none")
    (tmp_path / "antelopev2.zip").write_bytes(b"PK")
    assert "this is a file" in refusal(tmp_path / "antelopev2.zip")


def test_a_pack_of_other_networks_is_refused(tmp_path, others):
    shutil.copytree(others, tmp_path / "landmarks")
    message = refusal(tmp_path)
    assert f"{tmp_path / 'landmarks'} (no detector and no recogniser)" in message


@pytest.mark.parametrize(("left_out", "missing"), [(ANTELOPE[0], "no detector"), (ANTELOPE[1], "no recogniser")])
def test_what_is_missing_is_said(left_out, missing, tmp_path, fill, others):
    shutil.copytree(others, tmp_path, dirs_exist_ok=True)
    (fill(tmp_path) / left_out).unlink()
    assert f"looked in {tmp_path} ({missing})" in refusal(tmp_path)


def test_a_detector_without_keypoints_is_refused_by_name(tmp_path, fill, made_detector):
    path = tmp_path / ANTELOPE[0]
    fill(tmp_path)
    path.unlink()
    without_keypoints(made_detector, path)
    message = refusal(tmp_path)
    assert "(no detector)" in message
    assert f"{path}: a face detector without the five keypoints that InstantID needs" in message
    write_scrfd(tmp_path / "another.onnx")
    assert find_pack(tmp_path).detector.path.name == "another.onnx"


@pytest.mark.parametrize("damage", ["truncated", "empty", "page"])
def test_a_damaged_network_is_named(damage, tmp_path, fill, recognizer_file):
    path = fill(tmp_path) / ANTELOPE[1]
    path.unlink()
    content = {"truncated": recognizer_file.read_bytes()[:-1000], "empty": b"", "page": b"<html>sign in</html>"}[damage]
    path.write_bytes(content)
    message = refusal(tmp_path)
    assert "(no recogniser)" in message
    assert f"{path}: " in message
    assert "download it again" in message


def test_a_damaged_antelopev2_is_not_passed_over_in_silence(tmp_path, fill, caplog):
    path = fill(tmp_path / "antelopev2") / ANTELOPE[0]
    path.unlink()
    path.write_bytes(b"half")
    assert find_pack(fill(tmp_path / "spare")).folder == tmp_path / "spare"
    assert warnings_of(caplog) == ""
    assert find_pack(tmp_path).folder == tmp_path / "spare"
    assert str(path) in warnings_of(caplog)


@needs_posix
def test_a_folder_that_may_not_be_read_is_named(tmp_path, fill):
    for name, mode in (("closed", 0), ("listed", 0o444)):
        fill(tmp_path / name / "antelopev2")
        (tmp_path / name).chmod(mode)
    with unprivileged(tmp_path):
        for folder in (Path("closed"), Path("listed"), Path("closed/antelopev2")):
            message = refusal(folder)
            assert "cannot be read" in message
            assert "Permission denied" in message


@needs_posix
def test_a_closed_folder_beside_the_pack_does_no_harm(tmp_path, made_detector, recognizer_file):
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "pack").mkdir()
    shutil.copy(made_detector, tmp_path / "pack")
    shutil.copy(recognizer_file, tmp_path / "pack")
    with unprivileged(tmp_path):
        assert find_pack(".").folder == Path("pack")


@needs_posix
def test_a_network_that_may_not_be_read_is_named(tmp_path, made_detector, recognizer_file):
    shutil.copy(made_detector, tmp_path / "detector.onnx")
    shutil.copy(recognizer_file, tmp_path / "recognizer.onnx")
    (tmp_path / "recognizer.onnx").chmod(0)
    with unprivileged(tmp_path):
        assert "recognizer.onnx: cannot be read (Permission denied)" in refusal(Path())


def test_networks_of_other_shapes_are_neither(tmp_path, fill):
    """A recogniser's input with another output, and a detector's outputs from another input."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT

    def write(name: str, shape: list[int], outputs: int, width: int) -> None:
        nodes = [helper.make_node("Identity", ["x"], [f"y{i}"]) for i in range(outputs)]
        values = [helper.make_tensor_value_info(f"y{i}", floats, [1, width]) for i in range(outputs)]
        graph = helper.make_graph(nodes, "net", [helper.make_tensor_value_info("x", floats, shape)], values)
        onnx.save(helper.make_model(graph), str(tmp_path / name))

    write("few numbers.onnx", [1, 3, 112, 112], 1, 2)
    write("gray.onnx", [1, 1, 112, 112], 1, 512)
    write("another size.onnx", [1, 3, 224, 224], 1, 512)
    write("nine of a vector.onnx", [1, 512], 9, 1)
    write("classes.onnx", [1, 3, 640, 640], 2, 80)
    assert f"looked in {tmp_path} (no detector and no recogniser)" in refusal(tmp_path)
    write("recogniser.onnx", [1, 3, 112, 112], 1, 512)
    assert "(no detector)" in refusal(tmp_path)
    write("detector.onnx", [1, 3, 640, 640], 9, 1)
    assert find_pack(tmp_path).detector.path.name == "detector.onnx"


def test_the_weights_of_a_pack_stay_in_their_files(tmp_path, fill):
    weights = find_pack(fill(tmp_path)).recognizer.initializers.values()
    assert sum(array.nbytes for array in weights) > 100_000
    assert not any(array.flags.owndata for array in weights)
