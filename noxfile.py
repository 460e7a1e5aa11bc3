"""Sessions in clean environments, for releases: ``pip install nox``, then ``nox --list`` or ``nox -s dist install``.

docs/versions.md says which of them were run where. Sessions whose Python is not installed are skipped, and fail in CI.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]
PROJECT = nox.project.load_toml("pyproject.toml")["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
USERS = [name for name in EXTRAS if name not in ("docs", "dev")]
NO_TEST_TOOLS = ("fast-instantid", "ruff", "pyright", "pre-commit")
JOB = """
import sys
import fast_instantid
from fast_instantid import miniature

for name in fast_instantid.__all__:
    try:
        getattr(fast_instantid, name)
    except ModuleNotFoundError as error:
        sys.exit(f"{name}: {error}") if "diffusers" in sys.argv else print(f"{name}: {error}")
print(miniature.files().portraits[0])
"""


@nox.session
def dist(session: nox.Session) -> None:
    """Build dist/*.tar.gz and dist/*.whl and check their metadata; tests/test_dist.py checks what is in them."""
    session.install("build", "twine")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    session.run("python", "-m", "twine", "check", "--strict", *map(str, Path("dist").iterdir()))


@nox.session(python=PYTHONS)
@nox.parametrize("extra", ["core", *USERS], ids=["core", *USERS])
def install(session: nox.Session, extra: str) -> None:
    """Install the wheel of ``dist`` with one extra, and analyse a face with it."""
    wheels = [str(path) for path in Path("dist").glob("*.whl")]
    if len(wheels) != 1:
        session.error(f"expected one wheel in dist/, found {len(wheels)}: run 'nox -s dist' first")
    session.install(wheels[0] if extra == "core" else f"{wheels[0]}[{extra}]")
    session.run("pip", "check")
    session.chdir(session.create_tmp())  # the package is the installed one, not the one beside this file
    printed = session.run("python", "-c", JOB, extra, silent=True)
    session.log(printed)
    portrait = printed.splitlines()[-1]
    session.run("fast-instantid", "--help", silent=True)
    session.run("fast-instantid", "doctor", success_codes=[0, 1])  # 1: there are no real models here
    session.run("fast-instantid", "embed", portrait, "--pack", "miniature", "--json", silent=True)
    if extra == "onnxruntime":
        session.run("fast-instantid", "embed", portrait, "--pack", "miniature", "--backend", "onnxruntime")
    if extra == "diffusers":
        session.run("fast-instantid", "demo", "--steps", "2")
    if extra == "download":
        session.run("fast-instantid", "download", "--offline", success_codes=[1])


@nox.session(python=PYTHONS)
@nox.parametrize("bounds", ["oldest", "newest", "next"], ids=["oldest", "newest", "next"])
def versions(session: nox.Session, bounds: str) -> None:
    """Run the tests, or those named after ``--``.

    Args:
        bounds: "oldest", the first release (or the last of its patches) that each bound of pyproject.toml allows;
            "newest", the newest releases; "next", these and diffusers from its repository.
    """
    tools = [tool for tool in EXTRAS["dev"] if not tool.startswith(NO_TEST_TOOLS)]
    install = ["-e", f".[{','.join(USERS)}]", *tools]
    if bounds == "oldest":
        needed = [*PROJECT["dependencies"], *(line for extra in USERS for line in EXTRAS[extra])]
        constraints = Path(session.create_tmp()) / "constraints-oldest.txt"
        constraints.write_text("\n".join(re.sub(r">=([^,;]+)[^;]*", r"==\1.*", line) for line in needed))
        install = ["-c", str(constraints), *install]
    elif bounds == "next":
        install.append("diffusers @ git+https://github.com/huggingface/diffusers")
    session.install("--upgrade", "--upgrade-strategy", "eager", *install)
    session.run("pip", "list")
    own_pickles = ["-p", "tests.trusting"] if bounds == "oldest" else []  # torch before 2.6 opens none
    tests = session.posargs or ["--numprocesses", "logical", "-m", "not slow", "tests"]
    session.run("python", "-m", "pytest", *own_pickles, *tests)
