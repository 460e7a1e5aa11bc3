"""How many times faster than the reference each case must be."""

FACES = {
    "one new face": 2.4,
    "the same face again": 100,
    "six new images": 1.45,
    "one of six replaced": 8,
    "group of six, one identity": 7.5,
    "networks alone": 1,
}
"""The last row's reference is onnxruntime, which torch is to keep up with."""
WORKFLOW = {
    "cold first run": 5,
    "weight edited": 100,
    "range edited": 100,
    "new image, one face": 2.4,
    "group photo, six faces": 7.5,
    "six new references": 1.45,
    "one of six replaced": 8,
}
"""All cases of the suite; of nodes and sampling together."""
