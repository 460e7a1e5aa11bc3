"""Files of weights: mapped and not read, named for what they are, written whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from fast_instantid import miniature, pickles, weights
from fast_instantid.cli import main
from fast_instantid.errors import ModelFileError
from fast_instantid.files import atomic_write
from fast_instantid.identity import Identity
from fast_instantid.identity.bank import IdentityBank
from fast_instantid.weights import existing_file, fingerprint, read_tensors, write_safetensors
from tests.adversity import full_disk, needs_posix, opened_files, unprivileged
from tests.fresh import fresh_python


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {
        "image_proj.proj_in.weight": torch.randn(6, 5),
        "image_proj.latents": torch.randn(1, 4, 6).bfloat16(),
        "ip_adapter.1.to_k_ip.weight": torch.randn(8, 6).half(),
    }


def save(path: Path, tensors: dict[str, torch.Tensor], form: str = "flat") -> Path:
    """In one of four forms: safetensors, or a pickle that is flat, nested, or in the format of torch before 1.6."""
    if form == "safetensors":
        write_safetensors(path, tensors, {})
        return path
    tree: dict = dict(tensors)
    if form == "nested":
        tree = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in tensors.items():
            tree[name.split(".")[0]][name.split(".", 1)[1]] = tensor
    torch.save(tree, path, _use_new_zipfile_serialization=form != "legacy")
    return path


FORMS = ["safetensors", "flat", "nested", "legacy"]


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "weights_only" not in message  # torch's advice would be to let the file run code
    return message


# Reading


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
def test_every_form_is_read_whatever_its_name(form, name, tensors, tmp_path):
    read = read_tensors(save(tmp_path / name, tensors, form))
    assert read.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert read[key].dtype == tensor.dtype
        assert torch.equal(read[key], tensor), key


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("form", ["safetensors", "nested"])
def test_opening_reads_nothing_but_the_directory(form, tmp_path):
    path = save(tmp_path / "large", {f"image_proj.{i}": torch.zeros(25 << 18) for i in range(8)}, form)
    assert path.stat().st_size > 200e6
    count = f"""
import gc
from pathlib import Path
from fast_instantid.weights import read_tensors

def field(file, name):
    return int(Path("/proc/self", file).read_text().split(name + ":")[1].split()[0])

read_tensors({str(path)!r})  # imports and so on
gc.collect()
read, resident = field("io", "rchar"), field("status", "VmRSS")
tensors = read_tensors({str(path)!r})
print(field("io", "rchar") - read, 1024 * (field("status", "VmRSS") - resident))
tensors["image_proj.3"].sum()
print(1024 * (field("status", "VmRSS") - resident))
"""
    bytes_read, resident, resident_after_use = map(int, fresh_python(count).stdout.split())
    assert bytes_read < 5e6
    assert resident < 20e6
    assert 20e6 < resident_after_use < 60e6  # one tensor of eight


def test_a_tensor_outlives_its_file(tensors, tmp_path):
    for form in FORMS:
        path = save(tmp_path / form, tensors, form)
        read = read_tensors(path)
        path.unlink()
        for key, tensor in tensors.items():
            assert torch.equal(read[key], tensor)


class RunsCode:
    """What a malicious file is made of: loading it creates a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_pickle_cannot_run_code(form, tmp_path):
    path, folder = tmp_path / "model.bin", tmp_path / "made by the pickle"
    content = {"image_proj.latents": torch.zeros(3), "more": RunsCode(folder)}
    if form == "plain":
        path.write_bytes(pickle.dumps(RunsCode(folder), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = refusal(path)
    assert "a pickle that would run" in message
    assert "mkdir" in message
    assert "safetensors" in message
    assert not folder.exists()
    if form == "plain":
        pickle.loads(path.read_bytes())
        assert folder.is_dir()  # the file is as dangerous as this test says


def test_pickles_are_refused_where_torch_cannot_open_them_safely(tensors, tmp_path, monkeypatch):
    """CVE-2025-32434: before torch 2.6, ``weights_only`` could be evaded."""
    monkeypatch.setattr(pickles, "_PICKLES_ARE_SAFE", False)
    for form in ("flat", "nested", "legacy"):
        assert "CVE-2025-32434" in refusal(save(tmp_path / f"{form}.bin", tensors, form))
    (tmp_path / "tar.bin").write_bytes(b"./storages".ljust(1024, b"\0"))  # the form by which it was evaded
    assert "not a file of weights" in refusal(tmp_path / "tar.bin")
    assert read_tensors(save(tmp_path / "a.safetensors", tensors, "safetensors")).keys() == tensors.keys()


@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors"])
def test_a_compressed_pickle_is_refused(name, tensors, tmp_path):
    """Mapped, its compressed bytes would be taken for numbers."""
    path = save(tmp_path / "plain.bin", tensors)
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry))
    assert "a compressed archive" in refusal(tmp_path / name)


def a_safetensors_header(header: dict, length: int | None = None) -> bytes:
    data = json.dumps(header).encode()
    return (len(data) if length is None else length).to_bytes(8, "little") + data


OTHER_FILES = {
    "a web page": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page saved in place of the file"),
    "a page after a blank line": (b"\r\n <html>", "a web page saved in place of the file"),
    "a Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1691134141\n",
        "a Git LFS pointer, not the file it points to; run 'git lfs pull'",
    ),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(400), "a GGUF file"),
    "an empty file": (b"", "this file is empty; download it again"),
    "one byte": (b"\x80", "not a file of weights"),
    "text": (b"Repository not found", "not a file of weights, or a damaged one (20 bytes)"),
    "text that names a class": (b"cconst\nvalue\n.", "not a file of weights"),
    "JSON": (b'{"size":{"width": 3}}', "not a file of weights"),
    "zeros": (bytes(5000), "not a file of weights"),
    "nothing but a header": (
        a_safetensors_header({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}),
        "an incomplete download",
    ),
    "a header cut short": (a_safetensors_header({"x": {}}, length=4000), "an incomplete download"),
    "no tensors": (a_safetensors_header({}), "holds no named tensors"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "said"), OTHER_FILES.values(), ids=OTHER_FILES.keys())
def test_what_is_no_file_of_weights_is_named(content, said, tmp_path):
    path = tmp_path / "ip-adapter.bin"
    path.write_bytes(content)
    assert said in refusal(path)


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(2)], torch.ones(2), {"nested": {"deeper": {}}}, {}])
def test_a_pickle_without_named_tensors_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "state.bin")
    assert "holds no named tensors" in refusal(tmp_path / "state.bin")


def test_another_zip_file_is_not_called_incomplete(tmp_path):
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    assert "not a file of weights" in refusal(tmp_path / "pack.zip")


def test_folders_and_missing_files_are_named(tmp_path):
    assert "this is a folder" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "none.bin")
    (tmp_path / "file").write_bytes(b"x")
    assert "cannot be read (Not a directory)" in refusal(tmp_path / "file" / "inside.bin")


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_download_is_named(form, tensors, tmp_path):
    whole = save(tmp_path / "whole", tensors, form).read_bytes()
    path = tmp_path / "cut"
    for keep in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(keep * len(whole))])
        message = refusal(path)
        assert ("an incomplete download" if form != "legacy" else "or a damaged one") in message
        assert f"({path.stat().st_size:,} bytes)" in message


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_raise_nothing_else(form, tensors, tmp_path):
    generator = torch.Generator().manual_seed(0)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    whole = save(tmp_path / "whole", tensors, form).read_bytes()
    path = tmp_path / "damaged"
    refused = 0
    for _ in range(100):
        damaged = bytearray(whole[: 1 + below(len(whole))] if below(3) == 0 else whole)
        for _ in range(1 + below(10)):
            damaged[below(min(len(damaged), 1500))] = below(256)
        path.write_bytes(damaged)
        try:
            assert all(isinstance(tensor, torch.Tensor) for tensor in read_tensors(path).values())
        except ModelFileError:
            refused += 1
    assert refused


@needs_posix
def test_a_file_that_may_not_be_read_is_named(tensors, tmp_path):
    save(tmp_path / "secret.bin", tensors).chmod(0)
    (tmp_path / "locked").mkdir()
    save(tmp_path / "locked" / "model.bin", tensors)
    (tmp_path / "locked").chmod(0o600)
    with unprivileged(tmp_path):
        for path in (Path("secret.bin"), Path("locked/model.bin")):
            assert refusal(path) == f"{path}: cannot be read (Permission denied); check its permissions"


def test_an_existing_file_is_a_path(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    assert existing_file(str(tmp_path / "file"), "anything") == tmp_path / "file"


# Fingerprints


def test_a_fingerprint_is_of_the_content(tmp_path):
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    one.write_bytes(bytes(20 << 20))
    same.write_bytes(bytes(20 << 20))
    other.write_bytes(bytes((20 << 20) - 1) + b"\1")
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    (tmp_path / "link").symlink_to(one)
    assert fingerprint(tmp_path / "link") == fingerprint(str(one))
    with pytest.raises(OSError, match="none"):
        fingerprint(tmp_path / "none")


def test_a_fingerprint_is_computed_once_for_a_version_of_the_file(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"a" * 1000)
    with opened_files() as opened:
        first = fingerprint(path)
        assert fingerprint(path) == first
    assert opened.count(str(path)) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of change")
@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_fingerprint_notices_new_content_of_the_same_size_and_time(how, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"a" * 1000)
    before, times = fingerprint(path), path.stat()
    while path.stat().st_ctime_ns == times.st_ctime_ns:  # until the clock of the file system ticks
        if how == "replaced":
            with atomic_write(path) as temporary:
                temporary.write_bytes(b"b" * 1000)
        else:
            path.write_bytes(b"b" * 1000)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert fingerprint(path) != before


# Writing


def test_written_files_are_read_back_to_the_bit(tensors, tmp_path):
    shared = torch.randn(4, 6)
    tensors |= {"whole": shared, "half": shared[:2], "transposed": shared.T, "wide": torch.ones(1).expand(3, 4)}
    write_safetensors(tmp_path / "a.safetensors", tensors, {"format": "test"})
    read = read_tensors(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert read[key].dtype == tensor.dtype
        assert torch.equal(read[key], tensor), key


def embed_in_a_shell(path: Path) -> None:
    files = miniature.files()
    arguments = ["--pack", str(files.pack), "--device", "cpu", "-o", str(path)]
    assert main(["embed", str(files.portraits[0]), *arguments]) == 0


BIOMETRIC = {
    "embeddings": embed_in_a_shell,
    "identity": lambda path: Identity(torch.zeros(2, 16, 8), IdentityBank((), ())).save(path),
    "tensors": lambda path: write_safetensors(path, {"x": torch.zeros(3)}, {}),
}


@needs_posix
@pytest.mark.parametrize("write", BIOMETRIC.values(), ids=BIOMETRIC.keys())
def test_biometric_files_are_private_from_the_first_byte_on(write, tmp_path, monkeypatch):
    """Whatever the umask, and in place of a file that others may read; test_cache.py has the cache's."""
    modes, replace, write_bytes = [], Path.replace, Path.write_bytes

    def see(method):
        return lambda path, *args: (modes.append(path.stat().st_mode & 0o777), method(path, *args))[1]

    monkeypatch.setattr(Path, "write_bytes", see(write_bytes))
    monkeypatch.setattr(Path, "replace", see(replace))
    path = tmp_path / "a.safetensors"
    for umask in (0, 0o022, 0o777):
        before = os.umask(umask)
        try:
            write(path)
        finally:
            os.umask(before)
        modes.append(path.stat().st_mode & 0o777)
        path.chmod(0o666)
    assert modes == [0o600] * 9


@needs_posix
def test_other_files_have_the_usual_permissions_and_keep_those_they_have(tmp_path):
    path = tmp_path / "picture.png"
    (tmp_path / "usual").touch()
    for mode in ((tmp_path / "usual").stat().st_mode & 0o777, 0o600, 0o640, 0o444):
        if path.exists():
            path.chmod(mode)
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"x")
            assert temporary.stat().st_mode & ~mode & 0o077 == 0
        assert path.stat().st_mode & 0o777 == mode


@needs_posix
def test_old_temporary_files_of_killed_processes_are_removed_and_no_others(tmp_path):
    name = ".fast-instantid-0123456789abcdef"
    old = [tmp_path / f"{name}.png", tmp_path / name, tmp_path / f"{name}.safetensors"]
    young, folder, link = tmp_path / f"{name}.jpg", tmp_path / f"{name}.folder", tmp_path / f"{name}.link"
    theirs = [tmp_path / other for other in ("notes.txt", ".0123456789abcdef.png", f"{name}0.png", f"x{name}.png")]
    for path in (*old, young, *theirs):
        path.write_bytes(b"x")
        os.utime(path, (1, 1))
    os.utime(young, (time.time() - 3000,) * 2)
    folder.mkdir()
    os.utime(folder, (1, 1))
    link.symlink_to(theirs[0])
    if os.geteuid() == 0:  # another user's
        theirs.append(tmp_path / f"{name}.bin")
        theirs[-1].write_bytes(b"x")
        os.chown(theirs[-1], 65534, -1)
        os.utime(theirs[-1], (1, 1))
    with atomic_write(tmp_path / "output.png") as temporary:
        temporary.write_bytes(b"x")
    assert {*tmp_path.iterdir()} == {young, folder, link, *theirs, tmp_path / "output.png"}


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    for owner, name in ((os, "fsync"), (Path, "replace")):
        method = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, m=method, n=name: (seen.append(n), m(*args))[1])
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_bytes(b"x")
    assert seen[:2] == ["fsync", "replace"]
    assert os.name == "nt" or seen[2:] == ["fsync"], "and its name in the folder"


def test_a_file_that_changes_while_it_is_hashed_has_no_fingerprint(tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.write_bytes(b"a" * 2000)
    hasher = weights.fast_hash
    monkeypatch.setattr(weights, "fast_hash", lambda: (path.write_bytes(b"b" * 2000), hasher())[1])
    with pytest.raises(ModelFileError, match="changed while it was read"):
        fingerprint(path)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.bin"
    path.write_bytes(b"old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), atomic_write(path) as temporary:  # noqa: PT012
            temporary.write_bytes(b"half of the n")
            raise error
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_has_the_suffix_that_formats_are_chosen_by(tmp_path):
    name = "a" * 250 + ".png"  # as long as names may be: the temporary one is shorter
    with atomic_write(tmp_path / name) as temporary:
        Image.new("RGB", (2, 2)).save(temporary)
    assert Image.open(tmp_path / name).format == "PNG"


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_safetensors(tmp_path / "none" / "a.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(IsADirectoryError):
        write_safetensors(tmp_path, {"x": torch.zeros(1)}, {})


@needs_posix
def test_a_full_disk_is_an_os_error_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"x": torch.ones(3)}, {})
    before = path.read_bytes()
    with full_disk(), pytest.raises(OSError, match="too large"):
        write_safetensors(path, {"x": torch.zeros(100_000)}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@needs_posix
def test_a_folder_that_may_not_be_written_is_an_os_error(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    with unprivileged(tmp_path), pytest.raises(PermissionError):
        write_safetensors("locked/a.safetensors", {"x": torch.zeros(3)}, {})
    assert list((tmp_path / "locked").iterdir()) == []


@needs_posix
def test_a_pipe_or_device_is_written_and_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with atomic_write(pipe) as target:
        target.write_bytes(b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()
