"""``fast-instantid batch``: sources that cannot be opened or listed, and folders in the way of inputs and results."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from fast_instantid import miniature
from fast_instantid.cli import main
from fast_instantid.errors import FastInstantIDError
from fast_instantid.files import check_parent
from fast_instantid.scale.inputs import listed
from tests.adversity import needs_posix
from tests.batches import FACES
from tests.fresh import fresh_python


@contextmanager
def answers(status: int):
    """The URL of a server that answers each request so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_archive_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(bytes(9000))
    with zipfile.ZipFile("whole.zip", "w") as archive:
        archive.write("a.png")
    with tarfile.open("whole.tar.gz", "w:gz") as archive:
        archive.add("a.png")
    for kind, name in (("zip", "whole.zip"), ("tar", "whole.tar.gz")):
        assert len(listed([f"{kind}://*.png::{name}"])) == 1
        content = Path(name).read_bytes()
        for damaged in (b"", b"text", content[: len(content) // 2]):
            Path(f"bad-{name}").write_bytes(damaged)
            Path("table.csv").write_text(f"path\n{kind}://a.png::bad-{name}\n")
            for source in (f"{kind}://*.png::bad-{name}", "table.csv"):
                with pytest.raises(FastInstantIDError, match=rf"^{kind}://.*::bad-{name}: fsspec cannot open such pa"):
                    listed([source])


@pytest.mark.parametrize("status", [403, 500, 503])
@pytest.mark.parametrize("name", ["photos/*.png", "jobs.csv", "jobs.parquet", "a.png"])
def test_an_answer_in_place_of_a_list_is_told(status, name):
    with answers(status) as url, pytest.raises(FastInstantIDError, match=f"^{url}/.*: cannot be read: {status}, "):
        listed([f"{url}/{name}"])


def test_a_storage_without_its_options_is_told():
    with pytest.raises(FastInstantIDError, match=r"^reference://x: fsspec cannot open such paths here: .*'fo'"):
        listed(["reference://x"])


def test_an_error_of_a_storage_that_has_no_base_is_told():
    """As NoCredentialsError of botocore, which is neither an OSError nor a ValueError."""

    class NoCredentials(Exception):
        pass

    class Closed(type(fsspec.filesystem("memory"))):
        protocol = ("closed",)

        def info(self, path, **options):
            raise NoCredentials

    fsspec.register_implementation("closed", Closed, clobber=True)
    with pytest.raises(FastInstantIDError, match=r"^closed://photos: cannot be read: NoCredentials$"):
        listed(["closed://photos"])


def test_a_run_goes_on_where_its_pattern_takes_its_own_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    portrait = Path(miniature.files().portraits[0]).read_bytes()
    for number in range(9):
        Path(f"{number}.png").write_bytes(portrait)
    for pattern, out in (("*", "."), ("**", "out")):
        command = ("batch", "embed", pattern, "-o", out, "--batch-size", "1", *FACES)
        assert main(command) == 0
        Path(out, "part-00001.parquet").unlink()
        capsys.readouterr()
        assert main(command) == 0
        assert "1 picture, 1 face, 0 errors" in capsys.readouterr().err


@needs_posix
def test_a_folder_that_is_there_needs_no_parent_to_write(tmp_path):
    """As a disk that is mounted where nobody may write."""
    out = tmp_path / "disks" / "out"
    out.mkdir(parents=True)
    for folder, mode in ((tmp_path, 0o755), (out, 0o777), (out.parent, 0o555)):
        folder.chmod(mode)
    code = "import os, sys\nfrom pathlib import Path\nfrom fast_instantid.files import check_parent\n"
    code += "os.chdir(sys.argv[1])\nos.geteuid() or os.setresuid(65534, 65534, 65534)\ncheck_parent(Path('disks/out'))"

    def checked():
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
        return done.stderr

    try:
        assert checked() == ""
        out.chmod(0o555)
        assert "disks/out: the folder disks/out is not writable; choose another with -o" in checked()
    finally:
        out.parent.chmod(0o755)
    with pytest.raises(FastInstantIDError, match="create it first"):
        check_parent(tmp_path / "no" / "out")


def test_the_same_names_in_another_folder_are_another_run(tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(Path(miniature.files().portraits[0]).read_bytes())
    for name, code in (("one", 0), ("one", 0), ("two", 1)):
        monkeypatch.chdir(tmp_path / name)
        assert main(["batch", "embed", "a.png", "-o", str(tmp_path / "out"), *FACES]) == code
    assert "holds results of other pictures" in capsys.readouterr().err


def test_a_photograph_of_a_hundred_megapixels_warns_of_nothing(tmp_path):
    Image.new("L", (9800, 9800)).save(tmp_path / "large.png")
    code = "import sys\nfrom fast_instantid.cli import main\nmain(sys.argv[1:])"
    said = fresh_python(code, "batch", "embed", f"{tmp_path}/large.png", "-o", f"{tmp_path}/out", *FACES).stderr
    assert "1 picture, 0 faces, 1 error" in said
    assert "Warning" not in said
