"""Workflows as people publish them: one small graph with the oddities of three years, in the API's format and saved.

A prompt is what the API takes, ``{id: {"class_type": ..., "inputs": ...}}``. A workflow is what the page saves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Prompt = dict[str, dict[str, Any]]
Schema = dict[str, Any]  # the server's /object_info

ADAPTER_NAMES = ("ip-adapter.bin", "instantid-ip-adapter.bin", "ip-adapter_instant_id_sdxl.bin")


def prompt(name: Callable[[str], str] = str, **changes: dict[str, Any] | None) -> Prompt:
    """A picture of one person.

    Args:
        name: makes each id from ``apply``, ``photo``, ...
        changes: by id: inputs that differ, with ``class_type`` for another node; None leaves a node out. A link names
            an id.
    """
    nodes: dict[str, dict[str, Any]] = {
        "checkpoint": {"class_type": "CheckpointLoaderSimple", "ckpt_name": "sd_xl_base_1.0.safetensors"},
        "positive": {"class_type": "CLIPTextEncode", "text": "film still", "clip": ["checkpoint", 1]},
        "negative": {"class_type": "CLIPTextEncode", "text": "blurry", "clip": ["checkpoint", 1]},
        "instantid": {"class_type": "InstantIDModelLoader", "instantid_file": "ip-adapter.bin"},
        "analysis": {"class_type": "InstantIDFaceAnalysis", "provider": "CPU"},
        "net": {"class_type": "ControlNetLoader", "control_net_name": "instantid/diffusion_pytorch_model.safetensors"},
        "photo": {"class_type": "LoadImage", "image": "instantid_example_person.jpg"},
        "apply": {
            "class_type": "ApplyInstantID",
            **{"instantid": ["instantid", 0], "insightface": ["analysis", 0], "control_net": ["net", 0]},
            **{"image": ["photo", 0], "model": ["checkpoint", 0]},
            **{"positive": ["positive", 0], "negative": ["negative", 0]},
            **{"weight": 0.8, "start_at": 0, "end_at": 1},
        },
        "latent": {"class_type": "EmptyLatentImage", "width": 256, "height": 256, "batch_size": 1},
        "sampler": {
            "class_type": "KSampler",
            **{
                "model": ["apply", 0],
                "positive": ["apply", 1],
                "negative": ["apply", 2],
                "latent_image": ["latent", 0],
            },
            **{
                "seed": 1631591050,
                "steps": 2,
                "cfg": 4.5,
                "sampler_name": "ddpm",
                "scheduler": "karras",
                "denoise": 1.0,
            },
        },
        "decode": {"class_type": "VAEDecode", "samples": ["sampler", 0], "vae": ["checkpoint", 2]},
        "save": {"class_type": "SaveImage", "images": ["decode", 0], "filename_prefix": "public"},
    }
    for node_id, inputs in changes.items():
        nodes[node_id] = {**nodes.get(node_id, {}), **(inputs or {})}
        nodes = nodes if inputs is not None else {id: node for id, node in nodes.items() if id != node_id}
    return {
        name(id): {
            "class_type": node["class_type"],
            "inputs": {
                key: [name(value[0]), value[1]] if isinstance(value, list) else value
                for key, value in node.items()
                if key != "class_type" and value is not None
            },
        }
        for id, node in nodes.items()
    }


ADVANCED = {
    "class_type": "ApplyInstantIDAdvanced",
    "weight": None,
    "ip_weight": 0.8,
    "cn_strength": 0.35,
    "noise": 0.35,
}
SPLIT = {
    "class_type": "ApplyInstantIDControlNet",
    **{"instantid": None, "insightface": None, "image": None, "model": None, "weight": None},
    **{"face_embeds": ["patch", 1], "image_kps": ["keypoints", 0], "strength": 1.0},
}
PATCH = {
    "class_type": "InstantIDAttentionPatch",
    **{
        "instantid": ["instantid", 0],
        "insightface": ["analysis", 0],
        "image": ["photo", 0],
        "model": ["checkpoint", 0],
    },
    **{"weight": 1.0, "start_at": 0.0, "end_at": 1.0, "noise": 0.0},
}
KEYPOINTS = {"class_type": "FaceKeypointsPreprocessor", "faceanalysis": ["analysis", 0], "image": ["pose", 0]}
POSE = {"class_type": "LoadImage", "image": "instantid_example_pose.jpg"}
LEFT_HALF = {"class_type": "SolidMask", "value": 1.0, "width": 256, "height": 256}
SECOND = {
    "class_type": "ApplyInstantID",
    **{"instantid": ["instantid", 0], "insightface": ["analysis", 0], "control_net": ["net", 0], "image": ["pose", 0]},
    **{"model": ["apply", 0], "positive": ["apply", 1], "negative": ["apply", 2], "mask": ["mask", 0]},
    **{"weight": 0.9, "start_at": 0.0, "end_at": 1.0},
}

TWO_PEOPLE = prompt(
    apply={"weight": 1.2, "start_at": 0, "end_at": 0.9500000000000001},
    second=SECOND,
    pose=POSE,
    mask=LEFT_HALF,
    sampler={"model": ["second", 0], "positive": ["second", 1], "negative": ["second", 2]},
)
PROMPTS: dict[str, Prompt] = {
    "plain": prompt(),
    "numbers beside the steps": prompt(apply={"weight": 1.2, "start_at": 0, "end_at": 0.9500000000000001}),
    "ids of a subgraph": prompt(lambda id: f"102:{len(id)}:{id}"),
    "ids that are names": prompt(lambda id: f"__face_{id}__"),
    "ids that are numbers": prompt(lambda id: str(sum(map(ord, id)))),
    **{f"{name}": prompt(instantid={"instantid_file": name}) for name in ADAPTER_NAMES[1:]},
    "a path of Windows": prompt(instantid={"instantid_file": "SDXL\\InstantID\\ip-adapter.bin"}),
    "CUDA on a CPU": prompt(analysis={"provider": "CUDA"}),
    "advanced, with a pose and a mask": prompt(
        apply=ADVANCED | {"combine_embeds": "average", "image_kps": ["pose", 0], "mask": ["mask", 0]},
        pose=POSE,
        mask=LEFT_HALF,
    ),
    "advanced, with our input": prompt(apply=ADVANCED | {"combine_embeds": "concat", "layers": "paper"}),
    "in two halves": prompt(
        apply=SPLIT,
        patch=PATCH,
        keypoints=KEYPOINTS,
        pose=POSE,
        sampler={"model": ["patch", 0], "positive": ["apply", 0], "negative": ["apply", 1]},
    ),
    "two people": TWO_PEOPLE,
    "inputs of another time": prompt(apply={"image_features": "none", "attn_mask": None, "_meta": "x"}),
}
REFUSED: dict[str, tuple[Prompt, str]] = {
    "no combine_embeds": (prompt(apply=ADVANCED), "combine_embeds"),
    "a weight beyond the range": (prompt(apply={"weight": 5.1}), "5.0"),
    "no such provider": (prompt(analysis={"provider": "NPU"}), "NPU"),
}

# Saved by the page. The first versions list sockets only; a widget that was converted has a link. Newer ones list each
# widget among the inputs, and may hold a part of the graph as a subgraph.
STYLES = ("sockets only", "converted to a primitive", "converted to a node", "every widget listed", "a subgraph")
_INSIDE = ("instantid", "analysis", "net", "apply")  # of the subgraph
_SUBGRAPH = "5a1f0e3c-7c2b-4f5e-9d6a-1b2c3d4e5f60"


def saved(prompt: Prompt, schema: Schema, style: str) -> dict[str, Any]:
    """The workflow of a prompt whose ids are those of :func:`prompt`, as a version of the page saved it."""
    prompt = {id: {**node, "inputs": dict(node["inputs"])} for id, node in prompt.items()}
    if style == "converted to a node":
        weight = prompt["apply"]["inputs"]["weight"]
        prompt["number"] = {"class_type": "PrimitiveFloat", "inputs": {"value": weight}}
        prompt["apply"]["inputs"]["weight"] = ["number", 0]
    numbers = {id: number for number, id in enumerate(prompt, start=1)}
    nodes = {id: _node(numbers[id], node, schema, style) for id, node in prompt.items()}
    links: list[list[Any]] = []
    for id, node in prompt.items():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                source, slot = (
                    nodes[value[0]]["outputs"][value[1]],
                    [x["name"] for x in nodes[id]["inputs"]].index(name),
                )
                link = [len(links) + 1, numbers[value[0]], value[1], numbers[id], slot, source["type"]]
                links.append(link)
                source["links"] = [*(source["links"] or []), link[0]]
                nodes[id]["inputs"][slot]["link"] = link[0]
    if style == "converted to a primitive":
        _add_primitive(nodes, links)
    whole = {"last_node_id": 99, "last_link_id": 99, "groups": [], "config": {}, "extra": {}, "version": 0.4}
    if style == "a subgraph":
        return whole | _with_subgraph(nodes, links)
    return whole | {"nodes": list(nodes.values()), "links": links}


def _node(number: int, node: dict[str, Any], schema: Schema, style: str) -> dict[str, Any]:
    about = schema[node["class_type"]]
    inputs: list[dict[str, Any]] = []
    values: list[Any] = []
    for section in ("required", "optional"):
        for name, spec in about["input"].get(section, {}).items():
            kind = "COMBO" if isinstance(spec[0], list) else spec[0]
            value = node["inputs"].get(name)
            is_widget = kind in ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN")
            slot = {"name": name, "type": kind, "link": None}
            if is_widget and (isinstance(value, list) or style in ("every widget listed", "a subgraph")):
                slot |= {"widget": {"name": name}, "localized_name": name}
            if not is_widget or "widget" in slot:
                inputs.append(slot)
            if is_widget and not (section == "optional" and value is None and style == "sockets only"):
                default = dict(*spec[1:]).get("default")
                values.append(default if value is None or isinstance(value, list) else value)
            if is_widget and name == "seed":
                values.append("fixed")
    if node["class_type"] == "LoadImage":
        values.append("image")
    outputs = [
        {"name": name, "type": kind, "links": None, "slot_index": slot}
        for slot, (name, kind) in enumerate(zip(about["output_name"], about["output"], strict=True))
    ]
    return {
        "id": number,
        "type": node["class_type"],
        "pos": [300 * number, 100],
        "size": [270, 200],
        "flags": {},
        "order": number,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": {"Node name for S&R": node["class_type"], "cnr_id": "comfyui_instantid", "ver": "1.0.0"},
        "widgets_values": values,
    }


def _add_primitive(nodes: dict[str, Any], links: list[list[Any]]) -> None:
    """A node of the page alone, whose value the page puts in place of the link."""
    apply, link = nodes["apply"], len(links) + 1
    names = ("weight", "start_at", "end_at")
    value = apply["widgets_values"][names.index("weight")]
    apply["inputs"].append({"name": "weight", "type": "FLOAT", "link": link, "widget": {"name": "weight"}})
    links.append([link, 90, 0, apply["id"], len(apply["inputs"]) - 1, "FLOAT"])
    output = {"name": "FLOAT", "type": "FLOAT", "links": [link], "slot_index": 0, "widget": {"name": "weight"}}
    place = {"pos": [0, 400], "size": [210, 82], "flags": {}, "order": 0, "mode": 0}
    properties = {"Run widget replace on values": False}
    nodes["primitive"] = {"id": 90, "type": "PrimitiveNode", **place, "outputs": [output], "properties": properties}
    nodes["primitive"]["widgets_values"] = [value, "fixed"]


def _with_subgraph(nodes: dict[str, Any], links: list[list[Any]]) -> dict[str, Any]:
    """Loaders and Apply in one box, with everything else around it."""
    inside = {nodes[id]["id"] for id in _INSIDE}
    box = {"id": 80, "type": _SUBGRAPH, "pos": [0, 0], "size": [270, 200], "flags": {}, "order": 3, "mode": 0}
    box |= {"inputs": [], "outputs": [], "properties": {}, "widgets_values": []}
    definition: dict[str, Any] = {"id": _SUBGRAPH, "version": 1, "revision": 0, "config": {}, "name": "InstantID"}
    definition |= {"state": {"lastGroupId": 0, "lastNodeId": 99, "lastLinkId": 99, "lastRerouteId": 0}}
    definition |= {"inputNode": {"id": -10, "bounding": [-200, 0, 120, 160]}, "inputs": [], "widgets": [], "groups": []}
    definition |= {"outputNode": {"id": -20, "bounding": [900, 0, 120, 100]}, "outputs": [], "links": []}
    outer: list[list[Any]] = []
    for link, start, out_slot, end, in_slot, kind in links:
        inner = {"id": link, "origin_id": start, "origin_slot": out_slot, "target_id": end, "target_slot": in_slot}
        if (start in inside) == (end in inside):
            if start in inside:
                definition["links"].append(inner | {"type": kind})
            else:
                outer.append([link, start, out_slot, end, in_slot, kind])
            continue
        side = "inputs" if end in inside else "outputs"
        slot = len(box[side])
        name = f"{kind.lower()}_{slot}"
        definition[side].append({"id": f"{_SUBGRAPH[:-2]}{link:02}", "name": name, "type": kind, "linkIds": [link]})
        if side == "inputs":
            box[side].append({"name": name, "type": kind, "link": link})
            outer.append([link, start, out_slot, 80, slot, kind])
            inner |= {"origin_id": -10, "origin_slot": slot}
        else:
            box[side].append({"name": name, "type": kind, "links": [link]})
            outer.append([link, 80, slot, end, in_slot, kind])
            inner |= {"target_id": -20, "target_slot": slot}
        definition["links"].append(inner | {"type": kind})
    definition["nodes"] = [node for node in nodes.values() if node["id"] in inside]
    around = [box, *(node for node in nodes.values() if node["id"] not in inside)]
    return {"nodes": around, "links": outer, "definitions": {"subgraphs": [definition]}}
