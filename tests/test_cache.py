"""The cache: keys are content, a hit is the miss to the bit, one computation under threads, files that only help."""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fast_instantid import FaceAnalyzer, Identity, miniature
from fast_instantid.cache import FOLDER, Cache, content_key, record_bytes, shared_cache
from fast_instantid.identity.bank import IdentityBank
from fast_instantid.weights import fingerprint, read_metadata
from tests.adversity import full_disk, interrupts, needs_posix, unprivileged
from tests.fresh import fresh_python


def record(value: float = 0.0, count: int = 256) -> dict[str, torch.Tensor]:
    return {"x": torch.full((count,), float(value))}


def never(*_: object) -> dict[str, torch.Tensor]:
    raise AssertionError("computed what the cache should have had")


def key_of(value: object) -> str:
    return content_key("test", value)


# Keys


def test_different_content_has_different_keys():
    tensor = torch.arange(6.0)
    parts: list[tuple[object, ...]] = [
        (),
        (None,),
        ("",),
        (b"",),
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        ("astr2:bc",),  # as the parts before might be written
        ("astr0:bc",),
        (b"abc",),
        (["a", "bc"],),
        ([["a"], "bc"],),
        ("a", ["bc"]),
        ([],),
        ([], []),
        ([[]],),
        (1,),
        (1.0,),
        (True,),
        ("1",),
        ("True",),
        (0,),
        (0.0,),
        (-0.0,),
        (False,),
        (float("nan"),),
        (float("inf"),),
        (1, 11),
        (11, 1),
        (tensor,),
        (tensor.double(),),
        (tensor.half(),),
        (tensor.bfloat16(),),
        (tensor.int(),),
        (tensor.reshape(2, 3),),
        (tensor.reshape(3, 2),),
        (tensor.reshape(2, 3).T,),
        (tensor.flip(0),),
        (tensor[:3], tensor[3:]),
        (torch.tensor(5.0),),
        (torch.tensor([5.0]),),
        (torch.tensor([[5.0]]),),
        (torch.empty(0),),
        (torch.empty(0, 3),),
        (torch.empty(3, 0),),
        (tensor.numpy(),),
        (tensor.numpy().reshape(2, 3),),
        (tensor.numpy().astype(">f4"),),
        (np.array(5.0, np.float32),),
        (np.array([5.0], np.float32),),
        (np.empty((0, 3)),),
        (np.empty((3, 0)),),
        (np.zeros(4, np.uint8),),
        (np.zeros(4, np.int8),),
        (np.zeros(4, bool),),
        (torch.zeros(4, dtype=torch.bool),),
    ]
    keys = [content_key(*part) for part in parts]
    assert len(set(keys)) == len(parts)
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


def test_equal_content_has_equal_keys():
    tensor = torch.rand(4, 6, 3)
    strided = torch.rand(8, 6, 3)
    strided[::2] = tensor
    for same in (
        tensor.clone(),
        strided[::2],
        tensor.movedim(2, 0).contiguous().movedim(0, 2),
        tensor.clone().requires_grad_(),
    ):
        assert content_key(same) == content_key(tensor)
    array = tensor.numpy()
    for same in (array.copy(), np.asfortranarray(array), array[:, ::-1].copy()[:, ::-1]):
        assert content_key(same) == content_key(array)
    assert content_key((1, "a")) == content_key([1, "a"])
    for dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64, torch.bool):
        assert content_key(tensor.to(dtype)) == content_key(tensor.to(dtype).clone())


def test_one_changed_byte_changes_the_key():
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    keys = {content_key(array)}
    for index in np.ndindex(4, 4, 3):
        array[index] ^= 1
        keys.add(content_key(array))
        array[index] ^= 1
    assert len(keys) == 1 + 48


@pytest.mark.parametrize(
    "part",
    [{"a": 1}, {1, 2}, object(), Path("a"), np.float32(1), np.array([object()]), torch.float32, 1j, [1, {}]],
    ids=lambda part: type(part).__name__,
)
def test_what_has_no_known_content_is_no_part_of_a_key(part):
    with pytest.raises(TypeError):
        content_key(part)


# Memory


def test_a_hit_is_the_miss_to_the_bit():
    cache = Cache()
    made = {name: torch.randn(3, 4).to(dtype) for name, dtype in [("a", torch.float32), ("b", torch.bfloat16)]}
    made["a"][0, 0] = torch.nan
    first = cache.get("key", lambda: made)
    again = cache.get("key", never)
    for name, tensor in made.items():
        assert again[name].dtype == tensor.dtype
        assert content_key(again[name]) == content_key(first[name]) == content_key(tensor)


def test_equal_keys_of_one_call_are_computed_once():
    calls = []

    def compute(missing: list[int]) -> list[dict[str, torch.Tensor]]:
        calls.append(missing)
        return [record(i) for i in missing]

    cache = Cache()
    cache.get("b", lambda: record(100))
    found = cache.get_many(["a", "b", "a", "c", "b", "c"], compute)
    assert calls == [[0, 3]]
    assert [int(one["x"][0]) for one in found] == [0, 100, 0, 3, 100, 3]
    assert cache.get_many([], never) == []
    assert (cache.stats.hits, cache.stats.misses, cache.stats.entries) == (1, 3, 3)


def test_the_least_recently_used_records_go_first():
    cache = Cache(max_bytes=3 * record_bytes(record()))
    for key in "abc":
        cache.get(key, record)
    cache.get("a", never)
    cache.get("d", record)
    for key in "cad":
        cache.get(key, never)
    with pytest.raises(AssertionError):
        cache.get("b", never)


def test_memory_stays_within_its_bound():
    source = random.Random(0)
    cache = Cache(max_bytes=20_000)
    for _ in range(500):
        cache.get(str(source.randrange(50)), lambda: record(count=source.randrange(2000)))
        assert cache.stats.bytes <= 20_000
    cache.clear()
    assert (cache.stats.entries, cache.stats.bytes) == (0, 0)


def test_records_of_nothing_do_not_pile_up():
    cache = Cache(max_bytes=100_000)
    for i in range(1000):
        cache.get(str(i), lambda: record(count=0))
    assert cache.stats.entries < 200


def test_a_record_larger_than_the_bound_is_returned_and_not_kept():
    cache = Cache(max_bytes=20_000)
    cache.get("small", lambda: record(1))
    assert cache.get("large", lambda: record(2, count=6000))["x"][0] == 2
    assert cache.get("large", lambda: record(3, count=6000))["x"][0] == 3
    cache.get("small", never)


def test_a_small_view_does_not_keep_a_large_tensor():
    large = torch.zeros(1 << 20)
    kept = Cache().get("key", lambda: {"x": large[:10]})
    assert kept["x"].untyped_storage().nbytes() == 40


@pytest.mark.parametrize("on_disk", [False, True])
def test_values_made_in_inference_mode_work_outside_it(on_disk, tmp_path):
    weight = torch.ones(3, requires_grad=True)
    directory = tmp_path if on_disk else None
    with torch.inference_mode():
        outside = torch.ones(3)  # made by the caller, in the caller's mode
        cache = Cache(directory=directory)
        cache.get("made", lambda: {"x": torch.ones(3) * 2})
        cache.get("given", lambda: {"x": outside})
        if on_disk:
            cache = Cache(directory=directory)
            for key in ("made", "given"):
                cache.get(key, never)
    for key in ("made", "given"):
        value = cache.get(key, never)["x"]
        assert not value.is_inference()
        assert not value.requires_grad
        (value * weight).sum().backward()  # which inference tensors refuse
    assert torch.equal(weight.grad, torch.full((3,), 3.0))


def test_gradients_are_not_kept():
    weight = torch.ones(3, requires_grad=True)
    assert not Cache().get("key", lambda: {"x": weight * 2})["x"].requires_grad


def test_a_record_changed_in_place_is_computed_again(caplog):
    cache = Cache()
    for write in (lambda x: x.add_(1), lambda x: x[:3].zero_(), lambda x: x.view(2, -1).mul_(2)):
        write(cache.get("key", lambda: record(3))["x"])
        caplog.clear()
        assert (cache.get("key", lambda: record(3))["x"] == 3).all()
        assert "changed in-place" in caplog.text
        cache.get("key", never)
    with torch.inference_mode():
        cache.get("key", never)["x"].add_(1)
    assert (cache.get("key", lambda: record(3))["x"] == 3).all()
    assert (cache.stats.entries, cache.stats.bytes) == (1, record_bytes(record()))


# Threads


PACKAGE = [f"fast_instantid/{name}.py" for name in ("cache", "disk_tier", "files", "weights", "records", "locks")]


@pytest.mark.parametrize("fails", [False, True])
def test_an_interrupt_at_any_line_leaves_no_key_locked(fails, tmp_path):
    """Ctrl-C comes between two lines; the next request for the key would otherwise wait for ever."""
    caches: list[Cache] = []

    def get() -> None:
        caches.append(Cache(directory=tmp_path / str(len(caches))))
        with suppress(RuntimeError):
            caches[-1].get("key", failing if fails else record)

    def failing() -> dict[str, torch.Tensor]:
        raise RuntimeError("no memory")

    get()
    interrupted = 0
    for interrupted, place in enumerate(interrupts(get, *PACKAGE), 1):
        cache = caches[-1]
        asking = threading.Thread(target=cache.get, args=("key", record), daemon=True)
        asking.start()
        asking.join(30)
        assert not asking.is_alive(), f"interrupted at {place}"
        assert (cache.stats.entries, cache.stats.bytes) == (1, record_bytes(record()))
        assert (Cache(directory=tmp_path / str(interrupted)).get("key", record)["x"] == 0).all()
    assert interrupted > (30 if fails else 100)


_FORK = """
import os, signal, threading, torch
from fast_instantid.cache import Cache, shared_cache
caches, asked, go = [Cache(), shared_cache()], threading.Barrier(3), threading.Event()
def compute(value):
    if value == 1:
        asked.wait()
        go.wait()
    return {"x": torch.full((4,), float(value))}
threads = [threading.Thread(target=cache.get, args=("key", lambda: compute(1))) for cache in caches]
[thread.start() for thread in threads]
asked.wait()
with caches[0]._lock:
    child = os.fork()
if child == 0:
    signal.alarm(20)
    assert all((cache.get("key", lambda: compute(2))["x"] == 2).all() for cache in [*caches, shared_cache()])
    os._exit(0)
go.set()
[thread.join() for thread in threads]
assert all((cache.get("key", lambda: compute(3))["x"] == 1).all() for cache in caches)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_another_thread_computes_hangs_nobody():
    assert fresh_python(_FORK).stdout.strip() == "0"


def test_of_many_threads_one_computes():
    cache = Cache()
    calls = []
    barrier = threading.Barrier(16)

    def compute() -> dict[str, torch.Tensor]:
        calls.append(threading.get_ident())
        time.sleep(0.05)
        return record(7)

    def ask(_: int) -> dict[str, torch.Tensor]:
        barrier.wait()
        return cache.get("key", compute)

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(ask, range(16)))
    assert len(calls) == 1
    assert all(result["x"] is results[0]["x"] for result in results)
    assert (cache.stats.misses, cache.stats.hits) == (1, 15)


def test_overlapping_sets_in_any_order_are_computed_once_each_without_deadlock():
    cache = Cache()
    keys = [f"key {i}" for i in range(24)]
    computed: list[str] = []
    barrier = threading.Barrier(8)

    def ask(seed: int) -> None:
        mine = random.Random(seed).sample(keys, 16)

        def compute(missing: list[int]) -> list[dict[str, torch.Tensor]]:
            computed.extend(mine[i] for i in missing)
            time.sleep(0.01)
            return [record(keys.index(mine[i])) for i in missing]

        barrier.wait()
        for start in (0, 4, 8):
            part = mine[start : start + 8]
            found = cache.get_many(part, lambda missing, start=start: compute([start + i for i in missing]))
            assert [int(one["x"][0]) for one in found] == [keys.index(key) for key in part]

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(ask, seed) for seed in range(8)]:
            future.result(timeout=30)
    assert len(computed) == len(set(computed))


def test_after_a_failure_each_waiting_thread_computes_for_itself():
    cache = Cache()
    started, calls = threading.Event(), []

    def fail() -> dict[str, torch.Tensor]:
        started.set()
        time.sleep(0.05)
        raise RuntimeError("no memory")

    def succeed() -> dict[str, torch.Tensor]:
        calls.append(1)
        return record(1)

    with ThreadPoolExecutor(5) as pool:
        failing = pool.submit(cache.get, "key", fail)
        started.wait()
        waiting = [pool.submit(cache.get, "key", succeed) for _ in range(4)]
        with pytest.raises(RuntimeError, match="no memory"):
            failing.result(timeout=30)
        assert all(future.result(timeout=30)["x"][0] == 1 for future in waiting)
    assert len(calls) == 1
    assert cache.stats.misses == 1


@pytest.mark.parametrize("wrong", [[], [record(), record()], [None], [{"x": 3}]], ids=["none", "two", "None", "number"])
def test_a_computation_that_returns_nonsense_blocks_nobody(wrong, tmp_path):
    cache = Cache(directory=tmp_path)
    with pytest.raises((ValueError, AttributeError)):
        cache.get_many(["key"], lambda missing: wrong)
    assert cache.get("key", lambda: record(5))["x"][0] == 5


# Files


def files(folder: Path) -> list[Path]:
    """Everything that lies in a cache folder, temporary files included."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_record_on_disk_equals_the_computed_one_to_the_bit(tmp_path):
    shared = torch.randn(4, 6)
    made = {
        "float": torch.randn(3, 5),
        "bfloat16": torch.randn(7).bfloat16(),
        "empty": torch.empty(0, 5, 2),
        "scalar": torch.tensor(3.5),
        "transposed": shared.T,
        "same memory": shared,
        "half of it": shared[:2],
    }
    Cache(directory=tmp_path).get("key", lambda: made)
    read = Cache(directory=tmp_path).get("key", never)
    assert read.keys() == made.keys()
    for name, tensor in made.items():
        assert content_key(read[name]) == content_key(tensor), name


_ASK = """
import os, sys, torch
from fast_instantid.cache import Cache
child = os.fork()
cache = Cache(directory=sys.argv[1])
for key in sys.argv[2:] if child else sys.argv[:1:-1]:
    assert (cache.get(key, lambda: {"x": torch.full((4096,), float(key))})["x"] == float(key)).all()
if child:  # prints after the child: unbuffered, the words of two lines would mix
    assert os.waitpid(child, 0)[1] == 0
print(cache.stats.misses, cache.stats.disk_hits)
"""


def test_files_outlive_the_process_and_are_shared(tmp_path):
    keys = [str(i) for i in range(40)]
    counts = [line.split() for line in fresh_python(_ASK, str(tmp_path), *keys).stdout.splitlines()]
    assert len(counts) == 2
    assert all(sum(map(int, count)) == len(keys) for count in counts)
    assert len(files(tmp_path)) == len(keys)
    assert all(path.suffix == ".safetensors" and not path.name.startswith(".") for path in files(tmp_path))
    later = Cache(directory=tmp_path)
    for key in keys:
        assert (later.get(key, never)["x"] == float(key)).all()
    assert later.stats.disk_hits == len(keys)


_WITHOUT_XXHASH = """
import sys
sys.modules |= dict.fromkeys(sys.argv[2:])
from pathlib import Path
from fast_instantid import Cache, FaceAnalyzer, Identity, miniature
from fast_instantid.records import fast_hash
from fast_instantid.weights import fingerprint

files, folder = miniature.files(), Path(sys.argv[1])
cache = Cache(directory=folder / "cache")
FaceAnalyzer.load(files.pack, device="cpu", cache=cache).embed(files.portraits[0])
Identity.load(folder / "theirs.safetensors").save(folder / "ours.safetensors")
print(fast_hash.__name__, fingerprint(files.pack / "glintr100.onnx"), cache.stats.misses, cache.stats.disk_hits)
"""


@pytest.mark.parametrize(
    ("missing", "name"), [(["xxhash"], "blake3"), (["xxhash", "blake3"], "openssl_sha256")], ids=["BLAKE3", "SHA-256"]
)
def test_without_xxhash_files_of_identities_are_read_and_cache_folders_are_a_miss(tmp_path, missing, name):
    """The keys are another hash, so no result is taken for another, in either direction."""
    for package in ("xxhash", "blake3"):
        pytest.importorskip(package, reason="the environment of the tests has it")
    found, cache = miniature.files(), Cache(directory=tmp_path / "cache")
    expected = FaceAnalyzer.load(found.pack, device="cpu", cache=cache).embed(found.portraits[0])
    identity = Identity(torch.randn(2, 16, 8), IdentityBank((torch.randn(2, 16, 8),), (torch.randn(2, 16, 8),)))
    identity.save(tmp_path / "theirs.safetensors")
    written = set(files(tmp_path / "cache"))
    for misses, disk_hits in ((2, 0), (0, 2)):
        told = fresh_python(_WITHOUT_XXHASH, str(tmp_path), *missing).stdout.split()
        assert (told[0], *told[2:]) == (name, str(misses), str(disk_hits))
        assert re.fullmatch(r"[0-9a-f]{32}", told[1])
        assert told[1] != fingerprint(found.pack / "glintr100.onnx")
    others = set(files(tmp_path / "cache")) - written
    assert len(others) == len(written) == 4, "two files of networks, and two results"
    for path in written:
        path.unlink()
    cache = Cache(directory=tmp_path / "cache")
    again = FaceAnalyzer.load(found.pack, device="cpu", cache=cache).embed(found.portraits[0])
    assert (cache.stats.misses, cache.stats.disk_hits) == (2, 0)
    np.testing.assert_array_equal(again, expected)
    assert torch.equal(Identity.load(tmp_path / "ours.safetensors").tokens, identity.tokens)
    assert read_metadata(tmp_path / "ours.safetensors") == read_metadata(tmp_path / "theirs.safetensors")


def test_no_file_is_a_pickle(tmp_path):
    Cache(directory=tmp_path).get("key", record)
    (path,) = files(tmp_path)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.read_bytes()[8 : 8 + header].strip().startswith(b'{"__metadata__":{"fast-instantid cache":')


def damage_by_flipping_a_bit(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "empty": lambda path, other: path.write_bytes(b""),
    "truncated": lambda path, other: path.write_bytes(path.read_bytes()[:-10]),
    "truncated header": lambda path, other: path.write_bytes(path.read_bytes()[:20]),
    "flipped bit": damage_by_flipping_a_bit,
    "garbage": lambda path, other: path.write_bytes(random.Random(0).randbytes(3000)),
    "foreign": lambda path, other: save_file(record(1), path),
    "foreign with metadata": lambda path, other: save_file(record(1), path, {"fast-instantid cache": "0" * 32}),
    "another key's": lambda path, other: path.write_bytes(other.read_bytes()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_file_that_is_not_the_record_is_computed_again_and_replaced(damage, tmp_path, caplog):
    Cache(directory=tmp_path).get("other", lambda: record(1))
    (other,) = files(tmp_path)
    Cache(directory=tmp_path).get("key", lambda: record(2))
    (path,) = set(files(tmp_path)) - {other}
    damage(path, other)
    with caplog.at_level(logging.WARNING, "fast_instantid"):
        assert (Cache(directory=tmp_path).get("key", lambda: record(2))["x"] == 2).all()
    assert str(path) in caplog.text
    assert "computing again" in caplog.text
    assert (Cache(directory=tmp_path).get("key", never)["x"] == 2).all()


def test_something_else_in_the_place_of_a_file_only_warns(tmp_path, caplog):
    Cache(directory=tmp_path).get("key", record)
    (path,) = files(tmp_path)
    path.unlink()
    path.mkdir()
    assert (Cache(directory=tmp_path).get("key", lambda: record(4))["x"] == 4).all()
    assert "could not keep a result" in caplog.text


def test_files_stay_within_their_bound_and_the_longest_unread_go_first(tmp_path):
    probe = Cache(directory=tmp_path / "probe")
    probe.get("key", lambda: record(count=1000))
    size = files(tmp_path / "probe")[0].stat().st_size
    bound = 40 * size + size // 2
    folder = tmp_path / "cache"

    def last_read(value: int, when: int) -> None:  # told apart by more than a clock's tick
        key = key_of(value)
        os.utime(folder / FOLDER / f"{key}.safetensors", (when, when))

    for i in range(150):
        if i % 30 == 0:  # as a new process would, without knowing what is there
            cache = Cache(max_bytes=0, directory=folder, max_disk_bytes=bound)
        cache.get(key_of(i), lambda i=i: record(i, count=1000))
        assert sum(path.stat().st_size for path in files(folder)) <= bound
        last_read(i, when=1000 + i)
        if i:
            last_read(0, when=1)
        cache.get(key_of(0), never)  # read again and again
    left = {int(torch.from_numpy(np.frombuffer(path.read_bytes()[-4:], np.float32).copy())) for path in files(folder)}
    assert len(left) >= 35
    assert left == {0, *range(151 - len(left), 150)}


def test_eviction_removes_no_file_of_others(tmp_path):
    """Neither beside the cache's own folder nor inside it, whatever its name."""
    own, name = tmp_path / FOLDER, f"{'0' * 32}.safetensors"
    theirs = [tmp_path / "ab" / "model.safetensors", tmp_path / name, own / name, own / "ab" / name]
    theirs += [own / other for other in ("lora.safetensors", ".hidden.safetensors", "notes.txt", f".{'0' * 16}.png")]
    theirs += [own / f"{'1' * 31}.safetensors", own / f"{'1' * 32}.safetensors.bak", tmp_path / "models" / name]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 100_000)
        os.utime(path, (1, 1))  # read long ago
    save_file(record(1), own / f"{'2' * 32}.safetensors", {"checksum": "0" * 32})
    (own / f"{'3' * 32}.safetensors").symlink_to(tmp_path / "models" / name)
    (own / f"{'4' * 32}.safetensors").symlink_to(tmp_path / "none")
    (own / "cd").symlink_to(tmp_path / "models")
    (own / f"{'5' * 32}.safetensors").mkdir()
    theirs += [path for path in own.iterdir() if path not in theirs]
    before = {path: path.lstat() for path in theirs}
    cache = Cache(max_bytes=0, directory=tmp_path, max_disk_bytes=20_000)
    for i in range(30):
        cache.get(key_of(i), lambda: record(count=1000))
    assert {path: path.lstat().st_mtime_ns for path in theirs} == {
        path: stat.st_mtime_ns for path, stat in before.items()
    }
    left = {path for path in own.iterdir() if path not in theirs}
    assert left <= {own / f"{key_of(i)}.safetensors" for i in range(30)}


def test_temporary_files_of_killed_processes_go_when_they_are_old(tmp_path):
    (tmp_path / FOLDER).mkdir()
    ages = {"old": 4000, "from ahead, before the clock was set back": -4000, "young": 60}
    paths = {name: tmp_path / FOLDER / f".fast-instantid-{n:016x}.safetensors" for n, name in enumerate(ages)}
    for name, path in paths.items():
        path.write_bytes(b"x")
        os.utime(path, (time.time() - ages[name],) * 2)
    Cache(directory=tmp_path).get("key", record)
    assert [name for name, path in paths.items() if path.exists()] == ["young"]


def test_a_clock_that_was_set_back_keeps_no_file_for_ever(tmp_path):
    cache = Cache(max_bytes=0, directory=tmp_path, max_disk_bytes=20_000)
    for i in range(40):
        cache.get(key_of(i), lambda: record(count=1000))
        path = tmp_path / FOLDER / f"{key_of(i)}.safetensors"
        if i < 4:
            os.utime(path, (time.time() + 1e6,) * 2)
        assert path.exists(), "what was just written is not evicted in place of files from the future"
    assert not any((tmp_path / FOLDER / f"{key_of(i)}.safetensors").exists() for i in range(4))


@needs_posix
@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_files_are_for_their_owner_alone(umask, tmp_path):
    (tmp_path / "new").mkdir()
    before = os.umask(umask)
    try:
        Cache(directory=tmp_path / "new").get("key", record)
    finally:
        os.umask(before)
    own = tmp_path / "new" / FOLDER
    modes = {path.relative_to(own).as_posix(): path.stat().st_mode & 0o777 for path in (own, *own.rglob("*"))}
    assert modes == {".": 0o700, "key.safetensors": 0o600}


@needs_posix
@pytest.mark.parametrize("kind", ["file", "symlink", "dangling symlink", "pipe", "another user's", "open to all"])
def test_a_folder_that_is_not_its_own_is_not_used(kind, tmp_path, caplog):
    own, elsewhere = tmp_path / FOLDER, tmp_path / "elsewhere"
    Cache(directory=tmp_path / "good").get("key", lambda: record(1))
    {
        "file": lambda: own.write_bytes(b"x"),
        "symlink": lambda: own.symlink_to((tmp_path / "good" / FOLDER).rename(elsewhere)),
        "dangling symlink": lambda: own.symlink_to(elsewhere),
        "pipe": lambda: os.mkfifo(own),
        "another user's": lambda: (tmp_path / "good" / FOLDER).rename(own),
        "open to all": lambda: (tmp_path / "good" / FOLDER).rename(own),
    }[kind]()
    if kind == "another user's":
        if os.geteuid():
            pytest.skip("only root can give a folder to another user")
        os.chown(own, 65534, -1)
    if kind == "open to all":  # of ours: closed to others, and used
        own.chmod(0o777)
    before = sorted(elsewhere.rglob("*")) + files(own)
    value = Cache(directory=tmp_path).get("key", lambda: record(2))["x"][0]
    assert value == (1 if kind == "open to all" else 2)
    assert bool(caplog.records) == (kind != "open to all")
    assert sorted(elsewhere.rglob("*")) + files(own) == before
    assert kind != "open to all" or own.stat().st_mode & 0o777 == 0o700


def test_two_processes_share_the_bound(tmp_path):
    source = random.Random(0)
    pair = [Cache(max_bytes=0, directory=tmp_path, max_disk_bytes=200_000) for _ in range(2)]
    for i in range(300):
        cache = source.choices(pair, weights=(1, 9))[0]  # one knows little of what the other does
        cache.get(key_of(i), lambda: record(count=source.randrange(1024)))
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 200_000 * 17 / 16


def test_a_record_larger_than_the_disk_bound_evicts_nothing(tmp_path):
    cache = Cache(directory=tmp_path, max_disk_bytes=20_000)
    cache.get("small", record)
    before = files(tmp_path)
    cache.get("large", lambda: record(count=6000))
    assert files(tmp_path) == before


def test_a_file_evicted_while_it_is_read_is_not_left_empty(tmp_path, monkeypatch):
    Cache(directory=tmp_path).get("key", record)
    (path,) = files(tmp_path)
    utime = os.utime
    monkeypatch.setattr(os, "utime", lambda *args, **kwargs: (path.unlink(), utime(*args, **kwargs)))
    assert (Cache(directory=tmp_path).get("key", never)["x"] == 0).all()
    assert files(tmp_path) == []


@needs_posix
def test_a_folder_that_may_not_be_written_still_serves_and_only_warns(tmp_path, caplog):
    folder = tmp_path / "cache"
    Cache(directory=folder).get("key", lambda: record(3))
    before = files(folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o444 if path.is_file() else 0o555)
    with unprivileged(tmp_path):
        cache = Cache(directory="cache")
        assert (cache.get("key", never)["x"] == 3).all()
        assert not caplog.records
        assert (cache.get("another", lambda: record(4))["x"] == 4).all()
        assert (cache.get("another", never)["x"] == 4).all()
    assert "could not keep a result in the cache folder" in caplog.text
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700)
    assert files(folder) == before


@needs_posix
def test_files_that_may_not_be_read_are_computed_again(tmp_path, caplog):
    Cache(directory=tmp_path / "cache").get("key", lambda: record(3))
    (path,) = files(tmp_path)
    path.chmod(0)
    with unprivileged(tmp_path):
        assert (Cache(directory="cache").get("key", lambda: record(3))["x"] == 3).all()
    assert "could not keep a result" in caplog.text
    assert files(tmp_path) == [path]


@needs_posix
def test_a_full_disk_only_warns_and_leaves_nothing_behind(tmp_path, caplog):
    cache = Cache(directory=tmp_path)
    with full_disk():
        assert (cache.get("key", lambda: record(3, count=100_000))["x"] == 3).all()
    assert "could not keep a result" in caplog.text
    assert files(tmp_path) == []
    assert (cache.get("key", never)["x"] == 3).all()


def test_a_path_that_cannot_be_a_folder_only_warns(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"x")
    assert (Cache(directory=tmp_path / "file").get("key", lambda: record(3))["x"] == 3).all()
    assert "could not keep a result" in caplog.text


def test_the_process_shares_one_cache_without_files():
    with ThreadPoolExecutor(8) as pool:
        assert len({id(cache) for cache in pool.map(lambda _: shared_cache(), range(32))}) == 1


def test_an_environment_variable_gives_the_shared_cache_a_folder(tmp_path):
    code = "from fast_instantid.cache import shared_cache; print(shared_cache().persistent)"
    for folder, persistent in ((str(tmp_path), "True"), ("", "False")):
        environment = {**os.environ, "FAST_INSTANTID_CACHE": folder}
        assert fresh_python(code, env=environment).stdout.strip() == persistent
