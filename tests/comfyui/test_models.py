"""Search for models: their places, other files beside them, and the messages when they are missing."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import folder_paths
import numpy as np
import onnxruntime
import pytest
import torch

from fast_instantid.identity.convert import convert_adapter, converted_path
from tests.comfyui import tiny
from tests.comfyui.installation import Installation, installed, queue

OLD_PROVIDERS = ("CPU", "CUDA", "ROCM", "CoreML")


@pytest.fixture
def comfyui(tmp_path: Path) -> Iterator[Installation]:
    with installed(tmp_path / "ComfyUI") as installation:
        yield installation


def write_adapter(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return tiny.adapter_file(path.parent, path.name)


def write_rubbish(path: Path) -> Path:
    """A file that must not be the one that is loaded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"rubbish" * 100)
    return path


def refusal(node: type, **values: str) -> str:
    """Return the one message to the user of a node that refuses."""
    with pytest.raises(Exception, match=r"\w") as error:
        queue(node, **values)
    return str(error.value)


# Adapters


def loader(comfyui: Installation) -> type:
    return comfyui.start().NODE_CLASS_MAPPINGS["InstantIDModelLoader"]


def offered(node: type) -> list[str]:
    return node.INPUT_TYPES()["required"]["instantid_file"][0]


def test_files_of_all_folders_are_offered_and_load(comfyui: Installation, tmp_path: Path):
    write_adapter(comfyui.models / "instantid" / "ip-adapter.bin")
    write_adapter(comfyui.models / "instantid" / "SDXL" / "nested" / "deep.safetensors")
    (comfyui.models / "instantid" / "README.md").touch()
    write_adapter(tmp_path / "shared" / "from_yaml.bin")
    write_adapter(tmp_path / "late" / "registered_later.bin")
    folder_paths.add_model_folder_path("instantid", str(tmp_path / "shared"))  # as extra_model_paths.yaml is read
    node = loader(comfyui)
    folder_paths.add_model_folder_path("instantid", str(tmp_path / "late"))
    names = ["SDXL/nested/deep.safetensors", "from_yaml.bin", "ip-adapter.bin", "registered_later.bin"]
    assert offered(node) == [str(Path(name)) for name in names]
    for name in offered(node):
        (adapter,) = queue(node, instantid_file=name)
        assert adapter is not None


def test_a_converted_adapter_is_offered_after_the_original_and_loads(comfyui: Installation):
    original = write_adapter(comfyui.models / "instantid" / "ip-adapter.bin")
    convert_adapter(original, converted_path(original, "float16"))
    node = loader(comfyui)
    assert offered(node) == ["ip-adapter.bin", "ip-adapter.fp16.safetensors"], "the first one is the default"
    (adapter,) = queue(node, instantid_file="ip-adapter.fp16.safetensors")
    assert adapter.weights.layers[0][0].dtype == torch.float16


def test_the_first_folder_wins_as_everywhere_in_the_host(comfyui: Installation, tmp_path: Path):
    node = loader(comfyui)
    write_rubbish(comfyui.models / "instantid" / "ip-adapter.bin")
    write_adapter(tmp_path / "preferred" / "ip-adapter.bin")
    folder_paths.add_model_folder_path("instantid", str(tmp_path / "preferred"), is_default=True)
    queue(node, instantid_file="ip-adapter.bin")


@pytest.mark.parametrize(
    ("saved", "lies_at"),
    [
        ("SDXL\\ip-adapter.bin", "SDXL/ip-adapter.bin"),
        ("SDXL\\faces\\ip-adapter.bin", "SDXL/faces/ip-adapter.bin"),
        ("ip-adapter.bin", "SDXL/ip-adapter.bin"),
        ("SDXL/ip-adapter.bin", "ip-adapter.bin"),
        ("SDXL\\ip-adapter.bin", "InstantID/ip-adapter.bin"),
    ],
    ids=["Windows", "Windows, deeper", "moved down", "moved up", "Windows, moved"],
)
def test_a_workflow_finds_the_file_it_means(comfyui: Installation, saved: str, lies_at: str):
    write_adapter(comfyui.models / "instantid" / lies_at)
    write_rubbish(comfyui.models / "instantid" / "another.bin")
    queue(loader(comfyui), instantid_file=saved)


def test_the_exact_name_goes_before_a_file_of_the_same_name_elsewhere(comfyui: Installation):
    write_rubbish(comfyui.models / "instantid" / "A" / "ip-adapter.bin")
    write_adapter(comfyui.models / "instantid" / "B" / "ip-adapter.bin")
    queue(loader(comfyui), instantid_file="B\\ip-adapter.bin")


def test_a_name_that_comes_from_another_node_is_not_judged_before_it_is_known(comfyui: Installation, real_host):
    """The host validates such an input as None (execution.py, ``get_input_data``)."""
    import execution
    import nodes

    class Choice:
        INPUT_TYPES = staticmethod(lambda: {"required": {}})
        RETURN_TYPES = (["ip-adapter.bin"],)
        FUNCTION = "choose"

    class Output:
        INPUT_TYPES = staticmethod(lambda: {"required": {"instantid": ("INSTANTID",)}})
        RETURN_TYPES = ()
        FUNCTION = "save"
        OUTPUT_NODE = True

    write_adapter(comfyui.models / "instantid" / "ip-adapter.bin")
    prompt = {
        "1": {"class_type": "Choice", "inputs": {}},
        "2": {"class_type": "InstantIDModelLoader", "inputs": {"instantid_file": ["1", 0]}},
        "3": {"class_type": "Output", "inputs": {"instantid": ["2", 0]}},
    }
    with pytest.MonkeyPatch.context() as patch:
        for node in (Choice, Output, loader(comfyui)):
            patch.setitem(nodes.NODE_CLASS_MAPPINGS, node.__name__, node)
        valid, error, *_ = asyncio.run(execution.validate_prompt("a prompt", prompt, None))
    assert valid, error


NAMES = ("ip-adapter.bin", "ip_adapter.bin", "instantid-ip-adapter.bin", "ip-adapter_instant_id_sdxl.bin", "face.sft")


@pytest.mark.parametrize("saved", NAMES)
@pytest.mark.parametrize("lies_at", NAMES[:1] + NAMES[2:])
def test_the_only_adapter_is_taken_whatever_its_name_and_logged(
    comfyui: Installation, caplog, saved: str, lies_at: str
):
    caplog.set_level(logging.INFO)
    path = write_adapter(comfyui.models / "instantid" / Path(lies_at).with_suffix(".bin"))
    path = path.rename(path.with_name(lies_at))
    (adapter,) = queue(loader(comfyui), instantid_file=saved)
    assert adapter.weights.path == path
    told = [record.getMessage() for record in caplog.records if saved in record.getMessage()]
    assert [str(path) in text for text in told] == ([] if saved == lies_at else [True])


def test_beside_other_files_the_one_with_a_usual_name_is_taken(comfyui: Installation):
    """People keep the ControlNet there too, and converted adapters."""
    original = write_adapter(comfyui.models / "instantid" / "ip-adapter.bin")
    write_rubbish(comfyui.models / "instantid" / "ControlNetModel" / "diffusion_pytorch_model.safetensors")
    convert_adapter(original, converted_path(original, "float16"))
    (adapter,) = queue(loader(comfyui), instantid_file="ip-adapter_instant_id_sdxl.bin")
    assert adapter.weights.path == original


@pytest.mark.parametrize("present", [("mine.bin", "yours.bin"), NAMES[:2]])
def test_of_several_adapters_none_is_taken_for_an_unknown_name(comfyui: Installation, present: tuple[str, ...]):
    for name in present:
        write_adapter(comfyui.models / "instantid" / name)
    message = refusal(loader(comfyui), instantid_file="instantid-ip-adapter.bin")
    assert all(name in message for name in (*present, "instantid-ip-adapter.bin")), message


def test_between_two_files_nobody_guesses(comfyui: Installation):
    for folder in ("A", "B"):
        write_adapter(comfyui.models / "instantid" / folder / "ip-adapter.bin")
    message = refusal(loader(comfyui), instantid_file="ip-adapter.bin")
    assert str(Path("A", "ip-adapter.bin")) in message
    assert str(Path("B", "ip-adapter.bin")) in message


@pytest.mark.parametrize("folder_exists", [True, False])
def test_a_missing_file_gives_one_message(comfyui: Installation, tmp_path: Path, folder_exists: bool):
    if folder_exists:
        (comfyui.models / "instantid").mkdir(parents=True)
    folder_paths.add_model_folder_path("instantid", str(tmp_path / "shared"))
    node = loader(comfyui)
    assert offered(node) == []
    message = refusal(node, instantid_file="ip-adapter.bin")
    looked_for, what_to_do = "ip-adapter.bin", "InstantX/InstantID"
    where = (comfyui.models / "instantid", tmp_path / "shared")
    assert all(str(part) in message for part in (looked_for, *where, what_to_do)), message


@pytest.mark.parametrize("name", ["../../secret.bin", "..\\..\\secret.bin", "SDXL/../../../secret.bin"])
def test_no_name_leads_out_of_the_folders(comfyui: Installation, name: str):
    write_adapter(comfyui.base / "secret.bin")
    assert "secret.bin" in refusal(loader(comfyui), instantid_file=name)


def test_an_absolute_name_is_none(comfyui: Installation):
    outside = write_adapter(comfyui.base / "secret.bin")
    assert "secret.bin" in refusal(loader(comfyui), instantid_file=str(outside))


def test_another_kind_of_file_is_named(comfyui: Installation):
    path = comfyui.models / "instantid" / "ip-adapter_sd15.bin"
    path.parent.mkdir(parents=True)
    image_proj = {"proj.weight": torch.zeros(4 * 768, 1024), "norm.weight": torch.zeros(768)}
    torch.save({"image_proj": image_proj, "ip_adapter": {"1.to_k_ip.weight": torch.zeros(320, 768)}}, path)
    message = refusal(loader(comfyui), instantid_file=path.name)
    assert all(part in message for part in (str(path), "IP-Adapter for SD 1.5", "InstantID")), message


def test_a_damaged_file_is_named(comfyui: Installation):
    path = write_rubbish(comfyui.models / "instantid" / "ip-adapter.bin")
    assert str(path) in refusal(loader(comfyui), instantid_file=path.name)


# Face models


def face_loader(comfyui: Installation) -> type:
    return comfyui.start().NODE_CLASS_MAPPINGS["InstantIDFaceAnalysis"]


def finds_a_face(analysis, photo: np.ndarray) -> bool:
    """Whether a face is found, by the call and the keys that other packs use."""
    faces = analysis.get(np.ascontiguousarray(photo[..., ::-1]))
    return len(faces) == 1 and faces[0]["embedding"].shape == (512,)


@pytest.mark.parametrize(
    "lies_at", ["insightface/models/antelopev2", "insightface/models/antelopev2/antelopev2", "insightface/antelopev2"]
)
def test_the_pack_is_found_however_it_was_unzipped(comfyui: Installation, pack: Path, astronaut, lies_at: str):
    shutil.copytree(pack, comfyui.models / lies_at)
    (analysis,) = queue(face_loader(comfyui), provider="CPU")
    assert finds_a_face(analysis, astronaut)


@pytest.mark.parametrize("registered", ["before", "after"])
def test_the_pack_is_found_in_other_folders(comfyui: Installation, pack: Path, astronaut, tmp_path, registered: str):
    """Though other packs keep models of their own in the usual one."""
    write_rubbish(comfyui.models / "insightface" / "inswapper_128.onnx")
    write_rubbish(comfyui.models / "insightface" / "models" / "buffalo_l" / "1k3d68.onnx")
    shutil.copytree(pack, tmp_path / "shared" / "models" / "antelopev2")
    if registered == "before":
        folder_paths.add_model_folder_path("insightface", str(tmp_path / "shared"))
    node = face_loader(comfyui)
    if registered == "after":
        folder_paths.add_model_folder_path("insightface", str(tmp_path / "shared"))
    (analysis,) = queue(node, provider="CPU")
    assert finds_a_face(analysis, astronaut)


@pytest.mark.parametrize("usual_folder", ["missing", "without a recogniser"])
def test_a_missing_pack_gives_one_message(comfyui: Installation, pack: Path, tmp_path: Path, usual_folder: str):
    half = comfyui.models / "insightface" / "models" / "antelopev2"
    if usual_folder == "without a recogniser":
        half.mkdir(parents=True)
        shutil.copy(pack / "scrfd_10g_bnkps.onnx", half)
    folder_paths.add_model_folder_path("insightface", str(tmp_path / "shared"))
    message = refusal(face_loader(comfyui), provider="CPU")
    looked_for = ("antelopev2", "scrfd_10g_bnkps.onnx", "glintr100.onnx")
    where = (comfyui.models / "insightface", tmp_path / "shared")
    assert all(str(part) in message for part in (*looked_for, *where, "download")), message
    assert message.count("download") == 1, "what to do is said once, not for each folder"
    assert "fast-instantid download" not in message, "a clone in custom_nodes has no such command"


# Providers


@pytest.fixture
def analysis_node(comfyui: Installation, pack: Path) -> type:
    shutil.copytree(pack, comfyui.models / "insightface" / "models" / "antelopev2")
    return face_loader(comfyui)


@pytest.mark.parametrize("provider", OLD_PROVIDERS)
def test_old_workflows_load_on_a_host_without_their_device(analysis_node, astronaut, caplog, provider: str):
    with caplog.at_level(logging.WARNING, logger="fast_instantid"):
        (analysis,) = queue(analysis_node, provider=provider)
        assert finds_a_face(analysis, astronaut)
    warnings = [record.getMessage() for record in caplog.records if record.name == "fast_instantid"]
    if provider == "CPU":
        assert not warnings
    else:
        (warning,) = warnings
        assert provider in warning
        assert "cpu" in warning.lower()


def test_new_providers_run_or_say_why_not(analysis_node, astronaut):
    """A variant that was chosen by name is not replaced by another one."""
    values = analysis_node.INPUT_TYPES()["required"]["provider"][0]
    new = values[len(OLD_PROVIDERS) :]
    available = " ".join(onnxruntime.get_available_providers()).lower()
    missing = [value for value in new if "onnxruntime" in value and value.split()[-1].lower() not in available]
    assert len(new) > len(missing) > 0
    for value in new:
        if value in missing:
            assert "onnxruntime" in refusal(analysis_node, provider=value)
        else:
            (analysis,) = queue(analysis_node, provider=value)
            assert finds_a_face(analysis, astronaut)


def test_an_unknown_provider_is_refused(analysis_node):
    assert "TPU" in refusal(analysis_node, provider="TPU")


def test_threshold_and_size_of_the_search_are_inputs(ours, face_pack):
    def load(**options):
        return tiny.call(ours["InstantIDFaceAnalysis"], provider="CPU", **options)[0]

    usual, strict = load(), load(det_threshold=0.9, det_size="320")
    assert (strict.networks.detector.threshold, strict.networks.sizes) == (0.9, ((320, 320),))
    assert (usual.networks.detector.threshold, usual.networks.sizes[0]) == (0.5, (640, 640))
    assert load(det_threshold=0.9, det_size="320") is strict
