"""``fast-instantid batch embed``: inputs, rows, bad pictures, resuming and memory, in one process."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import stat
import struct
import sys
import tempfile
import threading
import zipfile
import zlib
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import dataset, parquet

from fast_instantid import FaceAnalyzer, __version__, miniature
from fast_instantid.cli import main
from fast_instantid.errors import FastInstantIDError, ImageError
from fast_instantid.scale.embed import is_done, units_of
from fast_instantid.scale.inputs import listed, photo_at
from tests.adversity import full_disk, needs_posix, unprivileged
from tests.batches import FACES, contents, kill, rows, start, wait_until, write_portraits
from tests.fresh import fresh_python


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Twelve portraits, the last four in a subfolder."""
    folder = tmp_path_factory.mktemp("library")
    paths = write_portraits(folder, 12)
    (folder / "more").mkdir()
    for path in paths[8:]:
        path.rename(folder / "more" / path.name)
    return folder


@pytest.fixture
def embed(capsys, tmp_path, monkeypatch):
    """``embed(*arguments, code=0)``: what ``batch embed`` says on stderr; it works in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def embed(*arguments, code=0):
        capsys.readouterr()
        assert main(["batch", "embed", *map(str, arguments), *FACES]) == code
        return capsys.readouterr().err

    return embed


class TestRows:
    def test_each_face_is_a_row_with_the_numbers_of_the_analyzer(self, embed, library):
        embed(library, "-o", "out", "--batch-size", 1)
        assert [path.name for path in sorted(Path("out").iterdir())] == [
            "_run.json",
            "part-00000.parquet",
            "part-00001.parquet",
        ]
        found = rows(Path("out"))
        assert [Path(row["path"]).name for row in found] == [f"{number:05}.png" for number in range(12)]
        analyzer = FaceAnalyzer.load(miniature.files().pack, device="cpu", sizes=[192])
        for row in found:
            (face,) = analyzer.detect(row["path"])[0]
            np.testing.assert_array_equal(row["box"], face.bbox)
            np.testing.assert_array_equal(row["keypoints"], face.kps)
            np.testing.assert_allclose(row["embedding"], analyzer.embed(row["path"], face)[0], rtol=1e-4, atol=1e-5)
            assert (row["face"], row["error"]) == (0, None)
            assert row["score"] == pytest.approx(face.det_score)

    def test_columns_have_fixed_types_and_files_their_owner_alone(self, embed, library):
        old = os.umask(0)
        try:
            embed(library, "-o", "out")
        finally:
            os.umask(old)
        schema = parquet.read_schema("out/part-00000.parquet")
        assert dataset.dataset("out", format="parquet").to_table().num_rows == 12, "Arrow passes over _run.json"
        assert schema.field("embedding").type == pyarrow.list_(pyarrow.float32(), 512)
        assert schema.field("box").type == pyarrow.list_(pyarrow.float32(), 4)
        assert schema.field("keypoints").type == pyarrow.list_(pyarrow.list_(pyarrow.float32(), 2), 5)
        analyzer = FaceAnalyzer.load(miniature.files().pack)
        assert schema.metadata[b"recognizer"].decode() == analyzer.networks.recognizer_fingerprint
        assert schema.metadata[b"fast_instantid"]
        assert stat.S_IMODE(os.stat("out/part-00000.parquet").st_mode) == 0o600

    def test_faces_of_a_group_count_from_the_left(self, embed, library):
        paths = [library / f"0000{number}.png" for number in range(3)]
        group = np.concatenate([np.asarray(Image.open(path)) for path in paths], 1)
        Image.fromarray(group).save("group.png")
        embed("group.png", "-o", "out", "--face-sizes", 576)
        found = rows(Path("out"))
        assert [row["face"] for row in found] == [0, 1, 2]
        assert [row["box"][0] for row in found] == sorted(row["box"][0] for row in found)
        alone = FaceAnalyzer.load(miniature.files().pack, device="cpu", sizes=[192]).embed([*map(str, paths)])
        table = np.array([row["embedding"] for row in found]) @ alone.T
        assert (table.argmax(1) == [0, 1, 2]).all()

    def test_bad_pictures_are_rows_and_the_others_go_on(self, embed, library):
        good = library / "00000.png"
        content = good.read_bytes()
        Path("truncated.png").write_bytes(content[: len(content) // 2])
        Path("empty.png").touch()
        Path("text.jpg").write_text("this is no picture")
        Path("folder.png").mkdir()
        Path("bomb.png").write_bytes(bomb(60_000, 60_000))
        Path("wide.png").write_bytes(bomb(40_000, 10))
        Image.new("RGB", (128, 128), "gray").save("nobody.png")
        os.mkfifo("pipe.png")
        said = {
            str(good): None,
            "truncated.png": "damaged or truncated picture",
            "empty.png": "not a picture",
            "text.jpg": "not a picture",
            "folder.png": "this is a folder",
            "bomb.png": "decompression bomb",
            "wide.png": "no side may exceed 32766",
            "nobody.png": "no face found",
            "pipe.png": "a pipe or a device",
            "missing.png": "no such file",
            "nul\0.png": "no file can have this name",
            "": "no path in this row",
            str(library / "00001.png"): None,
        }
        parquet.write_table(pyarrow.table({"path": [*said]}), "pictures.parquet")
        err = embed("pictures.parquet", "-o", "out", "--batch-size", 4)
        found = rows(Path("out"))
        assert [row["path"] for row in found] == [*said]
        for row, expected in zip(found, said.values(), strict=True):
            assert expected is None or expected in row["error"], row["error"]
            assert (row["embedding"] is None, row["box"] is None) == (expected is not None,) * 2
            assert (row["error"] is None) == (expected is None)
        assert "13 pictures, 2 faces, 11 errors" in err
        clean = [row for row in found if row["error"] is None]
        embed(good, library / "00001.png", "-o", "clean")
        for row, alone in zip(clean, rows(Path("clean")), strict=True):
            np.testing.assert_allclose(row["embedding"], alone["embedding"], rtol=1e-4, atol=1e-5)

    def test_names_may_hold_any_bytes(self, embed, library):
        name = os.fsdecode(b"\xff\xe4.png")
        Path(name).write_bytes((library / "00000.png").read_bytes())
        Path(os.fsdecode(b"bad\xff.png")).touch()
        embed("*.png", "-o", "out")
        bad, good = rows(Path("out"))
        assert (bad["path"], good["path"], good["error"]) == ("bad\\udcff.png", "\\udcff\\udce4.png", None)
        assert bad["error"].startswith("bad\\udcff.png: not a picture")

    @pytest.mark.parametrize("before", ["{}/", "file://{}/", "local://{}/"])
    def test_awkward_local_names_are_rows(self, embed, library, before):
        os.mkfifo("pipe.png")
        os.symlink("loop.png", "loop.png")
        shutil.copy(library / "00000.png", "a::b.png")
        said = {
            "pipe.png": "a pipe or a device",
            "loop.png": "Too many levels of symbolic links",
            f"{'x' * 300}.png": "File name too long",
            "a::b.png/c.png": "Not a directory",
            "nul\0.png": "no file can have this name",
            "missing[1].png": "no such file",
            "a::b.png": None,
        }
        paths = [before.format(os.getcwd()) + name for name in said]
        parquet.write_table(pyarrow.table({"path": paths}), "pictures.parquet")
        embed("pictures.parquet", "-o", "out")
        assert [row["path"] for row in rows(Path("out"))] == paths
        for row, expected in zip(rows(Path("out")), said.values(), strict=True):
            assert (row["error"] is None) if expected is None else (expected in row["error"])
        embed(before.format(os.getcwd()), "-o", "folder")
        assert len(rows(Path("folder"))) == 3

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_an_unreadable_picture_is_a_row(self, embed, library):
        Path("secret.png").write_bytes((library / "00000.png").read_bytes())
        Path("secret.png").chmod(0)
        embed("secret.png", "-o", "out")
        assert "check its permissions" in rows(Path("out"))[0]["error"]


def bomb(width, height):
    """A PNG of some hundred bytes that says it has so many pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


class TestInputs:
    def names(self, *sources, **options):
        return [Path(path).name for path in listed([*map(str, sources)], **options)]

    def test_a_folder_is_searched_with_its_subfolders_and_without_hidden_files(self, library, caplog):
        (library / ".hidden.png").touch()
        (library / "notes.txt").touch()
        (library / "more" / "a.HEIC").touch()
        assert self.names(library) == [f"{number:05}.png" for number in range(12)]
        assert "library0: left out are 1 .heic, 1 .txt: pictures of a folder end in .png" in caplog.text
        for name in ("notes.txt", "more/a.HEIC"):
            (library / name).unlink()

    def test_a_pattern_a_file_and_several_of_them(self, library, monkeypatch):
        monkeypatch.chdir(library.parent)
        (library / "folder.png").mkdir(exist_ok=True)
        assert listed([f"{library.name}/*.png"]) == [f"{library.name}/{number:05}.png" for number in range(8)]
        assert self.names(library / "**" / "*.png") == [f"{number:05}.png" for number in range(12)]
        assert self.names(library / "00003.png", library / "more") == ["00003.png", "00008.png", *self.more()]

    def more(self):
        return [f"{number:05}.png" for number in range(9, 12)]

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_a_table_has_paths_beside_it_and_keeps_its_order(self, library, kind):
        columns = {"id": ["2", "1"], "photo": ["00003.png", str(library / "00001.png")], "ä": ["x", ""]}
        table = library / f"table.{kind}"
        if kind == "csv":
            with table.open("w", encoding="utf-8-sig", newline="") as file:
                csv.writer(file).writerows([[*columns], *zip(*columns.values(), strict=True)])
        else:
            parquet.write_table(pyarrow.table(columns), table)
        expected = [str(library / "00003.png"), str(library / "00001.png")]
        assert listed([str(table)]) == listed([str(table)], "photo") == expected
        with pytest.raises(FastInstantIDError, match="no column 'who': --column takes one of id, photo, ä"):
            listed([str(table)], "who")
        table.unlink()

    def test_a_path_is_read_as_it_is_written(self, tmp_path):
        paths = [" lead.png", "trail.png ", "a,b.png", "a::b.png"]
        with (tmp_path / "a.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["path"], *([path] for path in paths)])
        parquet.write_table(pyarrow.table({"path": paths, "path.small": ["x"] * 4}), tmp_path / "a.parquet")
        kinds = pyarrow.array(paths).dictionary_encode()
        parquet.write_table(pyarrow.table({"path": kinds}), tmp_path / "b.parquet")
        for table in ("a.csv", "a.parquet", "b.parquet"):
            assert listed([str(tmp_path / table)]) == [f"{tmp_path}/{path}" for path in paths]
        (tmp_path / "a::b.png").touch()
        assert listed([str(tmp_path / "a::b.png")]) == listed([str(tmp_path / "*::*")]) == [f"{tmp_path}/a::b.png"]

    def test_a_table_that_can_be_read_in_two_ways_is_refused(self, tmp_path):
        (tmp_path / "comma.csv").write_text('path\n"a\nb.png"\na,b.png\n')
        with pytest.raises(FastInstantIDError, match=r"comma.csv, line 4: more values than columns: quote paths"):
            listed([str(tmp_path / "comma.csv")])
        (tmp_path / "twice.csv").write_text("path,path\na.png,b.png\n")
        twice = pyarrow.table([["a.png"], ["b.png"]], names=["path", "path"])
        parquet.write_table(twice, tmp_path / "twice.parquet")
        for name in ("twice.csv", "twice.parquet"):
            with pytest.raises(FastInstantIDError, match=f"{name}: several columns are named 'path': rename all but"):
                listed([str(tmp_path / name)])

    @needs_posix
    @pytest.mark.parametrize("source", ["photos", "photos/**/*.png", "file://{}/photos", "local://{}/photos/**"])
    def test_a_folder_that_cannot_be_read_is_named(self, source):
        with tempfile.TemporaryDirectory() as name:  # others may not enter the folders above pytest's
            (folder := Path(name, "photos")).mkdir()
            (folder / "a.png").touch()
            (folder / ".hidden").mkdir(0)
            with unprivileged(Path(name)):
                assert self.names(source.format(name)) == ["a.png"]
            (folder / "more").mkdir()
            (folder / "more" / "secret").mkdir(0)
            with (
                unprivileged(Path(name)),
                pytest.raises(FastInstantIDError, match="/secret: this folder cannot be rea"),
            ):
                listed([source.format(name)])

    def test_links_to_pictures_are_pictures_of_patterns_too(self, library, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        os.symlink(library / "00000.png", "a.png")
        os.symlink(library, "folder.png")
        assert listed(["*.png"]) == ["a.png"]

    def test_what_has_no_pictures_is_named(self, library, tmp_path):
        (tmp_path / "a.csv").write_text("x,y\n1,2\n")
        (tmp_path / "b.csv").write_text("")
        (tmp_path / "c.csv").write_text("path\n")
        (tmp_path / "d.csv").write_bytes(b"path\n\xff\xfe\n")
        (tmp_path / "e.parquet").write_text("PAR1")
        (tmp_path / "i.csv").write_text("id;path\n1;a.png\n")
        (tmp_path / "j.csv").write_text("photos/a.png\nphotos/b.png\n")
        (tmp_path / "f").mkdir()
        parquet.write_table(pyarrow.table({"path": [1, 2]}), tmp_path / "h.parquet")
        for source, said in {
            "a.csv": "no column with paths; name it: --column takes one of x, y",
            "b.csv": "an empty table",
            "c.csv": "no pictures there, or rows; pictures end in .png",
            "i.csv": "'id;path' in the first line: expected names of columns, such as path, with commas in between",
            "j.csv": "'photos/a.png' in the first line: expected names of columns",
            "d.csv": "cannot be read as a table",
            "e.parquet": "cannot be read as a table",
            "f": "no pictures there, or rows",
            "g": "no such file or folder",
            "h.parquet": "column 'path' holds int64, and no paths; name another with --column",
            "*.jpg": "no pictures there",
        }.items():
            with pytest.raises(FastInstantIDError, match=rf"(?s){source.replace('*', '.')}: {said}"):
                listed([str(tmp_path / source)])

    def test_no_name_is_not_this_folder(self, embed):
        assert "an empty name in place of pictures" in embed("", "-o", "out", code=1)

    def test_any_file_system_of_fsspec(self, embed, library):
        memory = fsspec.filesystem("memory")
        memory.put(str(library), "/photos", recursive=True)
        with memory.open("/photos/bad.png", "wb") as file:
            file.write(b"x")
        embed("memory://photos", "-o", "out")
        found = rows(Path("out"))
        assert [row["path"] for row in found][:2] == ["memory:///photos/00000.png", "memory:///photos/00001.png"]
        assert [row["error"] is None for row in found].count(False) == 1
        embed(library, "-o", "local")
        assert [row["embedding"] for row in found if row["error"] is None] == [
            row["embedding"] for row in rows(Path("local"))
        ]
        assert listed([f"file://{library}/*.png"])[0] == f"file://{library}/00000.png"
        memory.rm("/photos", recursive=True)

    def test_an_archive(self, embed, library):
        with zipfile.ZipFile("a.zip", "w") as archive:
            for number in range(3):
                archive.write(library / f"0000{number}.png", f"photos/{number}.png")
            archive.writestr("table.csv", "path\nphotos/0.png\n")
        assert listed(["zip://photos::a.zip"]) == [f"zip://photos/{number}.png::a.zip" for number in range(3)]
        assert listed(["zip://photos/*.png::a.zip"]) == listed(["zip://photos::a.zip"])
        assert listed(["zip://table.csv::a.zip"]) == ["zip://photos/0.png::a.zip"]
        content = bytearray(Path("a.zip").read_bytes())
        content[content.index(b"photos/1.png") + 200] ^= 255
        Path("a.zip").write_bytes(content)
        embed("zip://photos::a.zip", "-o", "out")
        errors = [row["error"] for row in rows(Path("out"))]
        assert (errors[0], errors[2]) == (None, None)
        assert "zip://photos/1.png::a.zip: cannot be read (Bad CRC-32" in errors[1]

    def test_a_storage_that_fails_ends_the_run_which_goes_on_later(self, embed, library):
        class Broken(type(fsspec.filesystem("memory"))):
            protocol = ("broken",)
            fails = True

            @classmethod
            def _strip_protocol(cls, path):
                return super()._strip_protocol(path.removeprefix("broken://"))

            def _open(self, path, *args, **kwargs):
                if self.fails and path.endswith("00009.png"):
                    raise ConnectionResetError("reset by peer")
                return super()._open(path, *args, **kwargs)

        fsspec.register_implementation("broken", Broken, clobber=True)
        fsspec.filesystem("memory").put(str(library), "/photos", recursive=True)
        Path("table.csv").write_text("path\n" + "".join(f"{path}\n" for path in listed(["broken://photos"])))
        said = embed("table.csv", "-o", "out", "--batch-size", 1, code=1)
        assert "00009.png: the storage fails (ConnectionResetError: reset by peer)" in said
        assert "the same command goes on from here" in said
        assert [*contents(Path("out"))] == ["part-00000.parquet"]
        Broken.fails = False
        assert "4 pictures, 4 faces, 0 errors" in embed("table.csv", "-o", "out", "--batch-size", 1)
        fsspec.filesystem("memory").rm("/photos", recursive=True)

    @needs_posix
    def test_errors_of_the_system_say_nothing_of_the_picture(self, library):
        def fails(path, said):
            with pytest.raises(FastInstantIDError, match=f"{path}: the storage fails .*{said}.* goes on") as at:
                photo_at(path)
            assert not isinstance(at.value, ImageError), "it would be a row"

        fails("/proc/self/mem", "Input/output error")
        fails("file:///proc/self/mem", "Input/output error")
        import resource

        photo_at(good := str(library / "00000.png"))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            fails(good, "Too many open files")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def test_a_folder_that_is_gone_ends_the_run_which_goes_on_later(self, embed, library):
        shutil.copytree(library, "disk")
        Path("table.csv").write_text("path\n" + "".join(f"{path}\n" for path in [*listed(["disk"]), "disk/gone.png"]))
        Path("disk").rename("away")
        for make in (lambda: None, Path("disk").mkdir):  # as the place where a disk is mounted
            make()
            said = embed("table.csv", "-o", "out", code=1)
            assert "disk/00000.png: no such file: " in said
            assert f"{Path('disk').absolute()} is gone or empty; the same command goes on later" in said
            assert [*contents(Path("out"))] == []
        Path("disk").rmdir()
        Path("away").rename("disk")
        assert "13 pictures, 12 faces, 1 error " in embed("table.csv", "-o", "out")

    def test_answers_of_a_server(self, embed, library):
        content, broken = (library / "00000.png").read_bytes(), threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.path[1:4]
                self.send_response(status := int(asked) if asked.isdigit() else 503 if broken.is_set() else 200)
                self.send_header("Content-Length", str(len(content) if status == 200 else 0))
                self.end_headers()
                if status == 200 and self.command == "GET":
                    self.wfile.write(content)

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}"
            bad = [*(f"{url}/{status}.png" for status in (401, 403, 404, 410)), "http://127.0.0.1:99999/x.png"]
            bad += [f"{url}/404[1].png", "http:///x.png"]
            Path("table.csv").write_text("path\n" + "".join(f"{path}\n" for path in [f"{url}/a.png", *bad]))
            broken.set()
            said = embed("table.csv", "-o", "out", code=1)
            assert f"{url}/a.png: the storage fails (ClientResponseError: 503" in said
            assert [*contents(Path("out"))] == []
            broken.clear()
            assert "8 pictures, 1 face, 7 errors" in embed("table.csv", "-o", "out")
            assert [row["path"] for row in rows(Path("out")) if row["error"]] == bad
            server.shutdown()
        with pytest.raises(FastInstantIDError, match=r"the storage fails \(ClientConnectorError") as caught:
            photo_at(f"{url}/a.png")
        assert not isinstance(caught.value, ImageError)

    def test_a_folder_of_a_server_is_listed_by_its_page(self, tmp_path, monkeypatch):
        paths = [*write_portraits(tmp_path / "photos", 3), *write_portraits(tmp_path / "photos" / "more", 2)]
        (tmp_path / "photos" / ".hidden.png").write_bytes(paths[0].read_bytes())
        (tmp_path / "photos" / "notes.txt").write_text("notes")
        monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
        handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "photos"))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}"
            names = [path.relative_to(tmp_path / "photos").as_posix() for path in paths]
            assert listed([f"{url}/"]) == [f"{url}/{name}" for name in names]
            assert listed([f"{url}/more/"]) == [f"{url}/{name}" for name in names if "/" in name]
            server.shutdown()

    def test_a_storage_that_is_not_there_is_named(self):
        for read in (lambda path: listed([path]), photo_at):
            with pytest.raises(FastInstantIDError, match=r"^ftp://127.0.0.1:1/a.png: .*Connection refused") as caught:
                read("ftp://127.0.0.1:1/a.png")
            assert not isinstance(caught.value, ImageError), "it would be a row"

    @pytest.mark.parametrize(
        ("path", "said"),
        [("nosuch://bucket", "nosuch"), ("s3://bucket/photos", "s3fs"), ("table.csv", "s3fs")],
    )
    def test_a_missing_file_system_is_named(self, path, said, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(sys.modules, "s3fs", None)
        Path("table.csv").write_text("path\ns3://bucket/a.png\n")
        with pytest.raises(FastInstantIDError, match=rf"fsspec cannot open such paths here: .*{said}"):
            listed([path])

    def test_missing_packages_are_named_with_the_extra(self):
        code = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "pyarrow" else find_spec(name, *rest)
from fast_instantid.cli import main
sys.exit(main(["batch", "embed", "x", "-o", "out"]))
"""
        assert "pip install 'fast-instantid[batch]'" in fresh_python(code, check=False).stderr


class TestResume:
    def test_what_is_there_is_kept_and_what_is_not_is_the_same_again(self, embed, library):
        embed(library, "-o", "out", "--batch-size", 1)
        before = contents(Path("out"))
        times = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
        assert "0 pictures, 0 faces, 0 errors" in embed(library, "-o", "out", "--batch-size", 1)
        assert {path: path.stat().st_mtime_ns for path in Path("out").iterdir()} == times
        Path("out/part-00000.parquet").unlink()
        Path("out/.fast-instantid-0123456789abcdef.parquet").write_text("of a killed run")
        assert "8 pictures, 8 faces, 0 errors" in embed(library, "-o", "out", "--batch-size", 1)
        assert contents(Path("out")) == before
        assert not [path for path in Path("out").iterdir() if path.name.startswith(".")]

    def test_a_refused_run_leaves_its_folder_to_the_next(self, embed, library):
        embed(library, "-o", "out", "--face-threshold", 40, code=1)
        assert "12 pictures" in embed(library, "-o", "out")

    def test_a_damaged_file_is_made_again(self, embed, library):
        embed(library, "-o", "out")
        before = contents(Path("out"))
        content = before["part-00000.parquet"]
        for damaged in (content[:1000], b"", content[:9000] + bytes(900) + content[9900:]):
            Path("out/part-00000.parquet").write_bytes(damaged)
            said = embed(library, "-o", "out")
            assert "out/part-00000.parquet is damaged, and made again" in said
            assert "12 pictures" in said
            assert contents(Path("out")) == before

    @needs_posix
    def test_only_damage_removes_a_file(self, embed, library):
        import resource

        embed(library, "-o", "out")
        part, limits = Path("out/part-00000.parquet"), resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                is_done(part)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert is_done(part)
        part.unlink()
        part.mkdir()
        assert "error: out/part-00000.parquet: Is a directory" in embed(library, "-o", "out", code=1)

    def test_names_of_files_sort_as_their_numbers(self):
        for count in (1, 99_999, 100_000, 100_001):
            names = [unit.file_name for unit in units_of(["a.png"] * 8 * count, 1)]
            assert names == sorted(names)
            assert len(names[0]) == (19 if count == 100_001 else 18)

    @needs_posix
    def test_a_full_disk_is_said_and_the_same_command_goes_on(self, embed, library):
        embed(library, "-o", "whole")
        Path("out").mkdir()
        shutil.copy("whole/_run.json", "out")
        with full_disk():
            said = embed(library, "-o", "out", code=1)
        assert re.search(r"error: out/part-00000.parquet: .*(No space left|File too large)", said)
        assert [path.name for path in Path("out").iterdir()] == ["_run.json"]
        embed(library, "-o", "out")
        assert contents(Path("out"), "") == contents(Path("whole"), "")

    def test_another_run_in_the_same_folder_is_refused(self, embed, library):
        embed(library, "-o", "out")
        before = contents(Path("out"), "")
        said = embed(library, "-o", "out", "--batch-size", 3, "--face-threshold", 0.4, code=1)
        assert "batch_size was 8 and is 3" in said
        assert "face_threshold was 0.5 and is 0.4" in said
        said = embed(library / "more", "-o", "out", code=1)
        assert "holds results of other pictures, or in another order (pictures was 12 and is 4)" in said
        assert "give a folder of its own to new pictures" in said
        assert "other pictures, or in another order: " in embed(
            library / "more", library / "*.png", "-o", "out", code=1
        )
        assert contents(Path("out"), "") == before
        kept = json.loads(Path("out/_run.json").read_text())
        assert (kept["device"], kept["version"]) == ("cpu", __version__)
        Path("out/_run.json").write_text(json.dumps({**kept, "device": "cuda", "version": "0.1"}))
        said = embed(library, "-o", "out", code=1)
        assert f"device was cuda and is cpu, version was 0.1 and is {__version__}" in said
        for content in ("", "[]", "{}", '{"run":'):
            Path("out/_run.json").write_text(content)
            assert "this folder holds results of an unknown run" in embed(library, "-o", "out", code=1)
        Path("out/_run.json").unlink()
        assert "this folder holds results of an unknown run" in embed(library, "-o", "out", code=1)
        assert contents(Path("out")) == {name: content for name, content in before.items() if name != "_run.json"}
        assert "is a folder" in embed(library, "-o", "out.parquet", code=1)
        assert "create it first" in embed(library, "-o", "no/out", code=1)

    def test_two_runs_do_not_write_into_one_folder(self, embed, library):
        """The lock is on a file that is open for writing, as NFS wants it; another is in its place at no time."""
        embed(library / "more", "-o", "out")
        Path("out/part-00000.parquet").unlink()
        out, before = Path("out").absolute(), os.stat("out/_run.json").st_ino
        code = "import fcntl, os, sys\n"
        code += "fcntl.flock(os.open(sys.argv[5] + '/_run.json', os.O_RDWR), fcntl.LOCK_EX)\n"
        code += "from fast_instantid.cli import main\nprint(main(sys.argv[1:]))"
        done = fresh_python(code, "batch", "embed", str(library), "-o", str(out), *FACES)
        assert done.stdout.strip() == "1"
        assert "another run writes there now" in done.stderr
        embed(library, "-o", "out")
        assert os.stat("out/_run.json").st_ino == before
        Path("plain").mkdir()
        Path("plain/notes.v2.txt").touch()
        embed(library, "-o", "plain")
        embed(library, "-o", "plain.v2")

    def test_a_killed_run_goes_on_to_the_same_bytes(self, embed, library, tmp_path):
        embed(library, "-o", "whole", "--batch-size", 1)
        command = ("batch", "embed", library, "-o", tmp_path / "out", "--batch-size", 1, *FACES)
        process = start(*command)
        wait_until(lambda: (tmp_path / "out" / "part-00000.parquet").exists())
        kill(process.pid)
        process.communicate()
        times = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.parquet")}
        embed(library, "-o", "out", "--batch-size", 1)
        assert contents(Path("out"), "") == contents(Path("whole"), "")
        assert {path: path.stat().st_mtime_ns for path in times} == times, "nothing is embedded twice"


def test_memory_does_not_grow_with_the_inputs(library, tmp_path):
    """The second half of a run of some hundred pictures needs no more than the first."""
    code = """
import resource, sys
from pathlib import Path
from fast_instantid.cli import batch, main
seen = []
class Remaining(batch.Remaining):
    def add(self, count):
        seen.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
batch.Remaining = Remaining
assert main(["batch", "embed", *sys.argv[1:]]) == 0
print(seen[len(seen) // 3], seen[-1])
"""
    with (tmp_path / "many.csv").open("w") as file:
        file.write("path\n" + "".join(f"{library}/{number % 8:05}.png\n" for number in range(480)))
    printed = fresh_python(code, str(tmp_path / "many.csv"), "-o", str(tmp_path / "out"), *FACES).stdout
    third, end = map(int, printed.split())
    assert end - third < 24 << 20, "160 and 480 pictures differ by less than what 300 decoded ones hold"


def test_a_run_without_any_face_fails(embed, library):
    Path("bad.png").touch()
    assert "1 picture, 0 faces, 1 error " in embed("bad.png", "-o", "out", code=1)
    embed("bad.png", library / "00000.png", "-o", "both")


@pytest.mark.parametrize("output", ["", "s3://bucket/out"])
def test_an_output_that_is_no_folder_here_is_refused(output, library, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["batch", "embed", str(library), "-o", output, *FACES])
    assert ended.value.code == 2
    assert f"--output: {output!r}: expected a file or folder of this machine" in capsys.readouterr().err


def test_json_has_the_counts(embed, library, capsys):
    assert main(["batch", "embed", str(library / "more"), "-o", "out", "--json", *FACES]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["pictures"], document["faces"], document["errors"], document["kept"]) == (4, 4, 0, 0)
