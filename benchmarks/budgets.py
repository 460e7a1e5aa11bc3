"""How many times faster than the reference each row of a result must be. Rows that are not here have no goal."""

FACES = {
    "one new face": 2.4,
    "the same face again": 100,
    "six new images": 1.45,
    "one of six replaced": 8,
    "group of six, one identity": 7.5,
    "networks alone": 1,
}
"""The last row's reference is onnxruntime, which torch is to keep up with."""

_NEW = {"new image, one face": 2.4, "group photo, six faces": 7.5, "six new references": 1.45, "one of six replaced": 8}
WORKFLOW = {
    "cold first run: nodes": 5,
    "weight edited: nodes": 100,
    "range edited: nodes": 100,
    **{f"{case}: nodes": must for case, must in _NEW.items()},
    **{f"{case}: in all": must for case, must in _NEW.items()},
}
"""Somebody new counts with sampling too: ours does in the nodes what the reference leaves to each step."""

STARTUP = {"all of it": 5, "from disk: all of it": 5}
HEADLINE = {"in all": 3}
IMPORT_SECONDS = 0.3
"""Of the package and of the pack, beyond torch."""
MUSTS = {"faces": FACES, "workflow": WORKFLOW, "startup": STARTUP, "headline": HEADLINE}
"""By suite."""
