"""InstantID Pose Editor: the node, and its canvas in a browser, driven with mouse and keyboard."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from fast_instantid import Pose, draw_keypoints
from fast_instantid.people.pose import ANGLES
from tests.comfyui import tiny
from tests.comfyui.test_server import front_end, server  # noqa: F401  # fixtures

if TYPE_CHECKING:
    from tests.comfyui.server.frontend import FrontEnd
    from tests.comfyui.server.host import ComfyServer

LATENT = {"samples": torch.zeros(1, 4, 16, 24)}
TWO = [
    {"x": 0.3, "y": 0.5, "size": 0.5, "yaw": 20, "pitch": -5, "roll": 10},
    {"x": 0.7, "y": 0.45, "size": 0.4, "yaw": 0, "pitch": 0, "roll": 0},
]


class TestNode:
    @pytest.fixture
    def edit(self, ours):
        return lambda poses, **inputs: tiny.call(
            ours["InstantIDPoseEditor"],
            latent=LATENT,
            poses=poses if isinstance(poses, str) else json.dumps(poses),
            **inputs,
        )

    def test_poses_and_picture_are_those_of_a_chain(self, edit, ours):
        before: Any = ()
        for face in TWO:
            before, drawn = tiny.call(ours["InstantIDPose"], latent=LATENT, angle="front", before=before, **face)
        poses, picture = edit(TWO)["result"]
        assert poses == before
        assert [vars(pose) for pose in poses] == TWO
        assert torch.equal(picture, drawn)

    def test_the_default_is_one_face_in_front(self, edit, ours):
        inputs = ours["InstantIDPoseEditor"].INPUT_TYPES()["required"]
        assert edit(inputs["poses"][1]["default"])["result"][0] == edit([{}])["result"][0]
        assert vars(edit([{}])["result"][0][0]) == vars(Pose())

    def test_the_page_learns_the_size_and_the_background(self, edit):
        assert edit(TWO)["ui"] == {"canvas": [{"width": 192, "height": 128, "background": None}]}
        import folder_paths

        picture = torch.rand(2, 40, 60, 3)
        (shown,) = edit(TWO, background=picture)["ui"]["canvas"]
        kept = Path(folder_paths.get_temp_directory(), shown["background"]["filename"])
        with Image.open(kept) as seen:
            assert seen.size == (60, 40)
        written = kept.stat().st_mtime_ns
        assert edit(TWO, background=picture[:1])["ui"]["canvas"] == [shown]
        assert kept.stat().st_mtime_ns == written

    @pytest.mark.parametrize(
        ("poses", "said"),
        [
            ("", "no JSON"),
            ("[{'x': 0.5}]", "no JSON"),
            ("[" * 100_000, "no JSON"),
            ([], "no face"),
            ({"x": 0.5}, "no face"),
            ("null", "no face"),
            ("0.5", "no face"),
            ([[0.5, 0.5]], "face 1 of poses is '\\[0.5, 0.5\\]'"),
            ([{}, None], "face 2 of poses is 'None'"),
            ([{"z": 1}], "face 1 of poses has 'z': expected x, y, size, yaw, pitch, roll"),
            ([{"x": "0.5"}], "face 1 of poses: x is '0.5': expected a number"),
            ([{"x": True}], "x is 'True': expected a number"),
            ([{"x": None}], "x is 'None': expected a number"),
            ([{"x": []}], "expected a number"),
            ("[{'x': NaN}]".replace("'", '"'), "face 1 of poses: x nan of a pose: expected -1 to 2"),
            ("[{'size': 1e999}]".replace("'", '"'), "size inf of a pose"),
            (f"[{{'x': 1{'0' * 400}}}]".replace("'", '"'), "face 1 of poses: int too large"),
            ([{}, {"x": 7}], "face 2 of poses: x 7.0 of a pose"),
            ([{"size": 0}], "size 0.0 of a pose: expected 0.01 to 4"),
            ([{"yaw": 91}], "yaw 91.0"),
            ([{"roll": -181}], "roll -181.0"),
        ],
    )
    def test_what_is_no_pose_is_refused_before_and_in_a_run(self, edit, ours, poses, said):
        text = poses if isinstance(poses, str) else json.dumps(poses)
        with pytest.raises(Exception, match=said) as refused:
            edit(text)
        assert len(str(refused.value)) < 400
        assert ours["InstantIDPoseEditor"].VALIDATE_INPUTS(text) == str(refused.value)

    @pytest.mark.parametrize("background", [torch.full((1, 8, 8, 3), math.nan), torch.zeros(0, 8, 8, 3)])
    def test_what_is_no_background_is_refused(self, edit, background):
        with pytest.raises(Exception, match="image") as refused:
            edit(TWO, background=background)
        assert type(refused.value).__name__ == "ImageError"

    def test_a_link_is_read_in_the_run(self, ours):
        validate = ours["InstantIDPoseEditor"].VALIDATE_INPUTS
        assert validate() is validate(None) is validate(json.dumps(TWO)) is True


# The canvas

WIDTH, HEIGHT = 896, 640
PORTRAIT = "instantid_example_person.jpg"
_VIEW = """([scale]) => {
    app.canvas.ds.scale = scale;
    [app.canvas.ds.offset[0], app.canvas.ds.offset[1]] = [80, 80];
    app.canvas.setDirty(true, true);
}"""
_EDITOR = "app.graph.nodes.find((node) => node.type === 'InstantIDPoseEditor')"
_VALUE = f"() => {_EDITOR}.widgets.find((widget) => widget.name === 'poses').value"
_BOX = """() => {
    const svg = document.querySelector('.instantid-poses svg');
    const { left, top, width, height } = svg.getBoundingClientRect();
    const { width: w, height: h } = svg.viewBox.baseVal;
    return [left, top, width, height, w, h];
}"""
_POINTS = """() => [...document.querySelectorAll('.instantid-poses circle:not([data-face])')
    ].map((circle) => [Number(circle.getAttribute('cx')), Number(circle.getAttribute('cy'))])"""
_HANDLE = """(how) => {
    const { left, top, width, height } = document.querySelector(`[data-handle=${how}]`).getBoundingClientRect();
    return [left + width / 2, top + height / 2];
}"""
_AGAIN = "async () => app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize())))"
_COPIED = """async () => {
    const editors = () => app.graph.nodes.filter((node) => node.type === 'InstantIDPoseEditor');
    app.canvas.deselectAll();
    app.canvas.selectNode(editors()[0]);
    app.canvas.copyToClipboard();
    app.canvas.pasteFromClipboard();
    return editors().map((node) => node.widgets[0].value);
}"""
_SEEN = """() => [
    document.activeElement.tagName, document.querySelectorAll('.side-bar-panel').length, app.graph.nodes.length,
]"""


def _node(
    id: int, type: str, at: tuple[int, int], size: tuple[int, int], inputs: Any, outputs: Any, values: Any
) -> Any:
    place = {"id": id, "type": type, "pos": at, "size": size, "flags": {}, "order": id, "mode": 0, "properties": {}}
    sockets = {
        "inputs": [{"name": name, "type": kind, "link": link} for name, kind, link in inputs],
        "outputs": [{"name": name, "type": kind, "links": links} for name, kind, links in outputs],
    }
    return {**place, **sockets, "widgets_values": values}


def _workflow(poses: Any, behind: str = "LoadImage") -> dict[str, Any]:
    values = {"LoadImage": [PORTRAIT, "image"], "EmptyImage": [60, 40, 1, 0x3366CC]}[behind]
    text = poses if isinstance(poses, str) else json.dumps(poses)
    nodes = [
        _node(1, "EmptyLatentImage", (0, 40), (300, 106), [], [("LATENT", "LATENT", [1])], [WIDTH, HEIGHT, 1]),
        _node(2, behind, (0, 200), (300, 314), [], [("IMAGE", "IMAGE", [2])], values),
        _node(
            3,
            "InstantIDPoseEditor",
            (340, 40),
            (420, 560),
            [("latent", "LATENT", 1), ("background", "IMAGE", 2)],
            [("pose", "POSE", []), ("image_kps", "IMAGE", [3])],
            [text],
        ),
        _node(4, "PreviewImage", (800, 40), (300, 300), [("images", "IMAGE", 3)], [], []),
    ]
    links = [[1, 1, 0, 3, 0, "LATENT"], [2, 2, 0, 3, 1, "IMAGE"], [3, 3, 1, 4, 0, "IMAGE"]]
    return {"last_node_id": 4, "last_link_id": 3, "nodes": nodes, "links": links, "groups": [], "version": 0.4}


class Canvas:
    """The canvas of the open workflow, as a user has it."""

    def __init__(self, front_end: FrontEnd, folder: Path) -> None:  # noqa: F811
        self.front_end, self.page, self.file = front_end, front_end.page, folder / "workflow.json"

    def open(self, poses: Any = TWO, behind: str = "LoadImage", scale: float = 1.0) -> dict[str, Any]:
        self.file.write_text(json.dumps(_workflow(poses, behind)))
        opened = self.front_end.open(self.file)
        self.page.evaluate(_VIEW, [scale])
        self.page.wait_for_function(f"() => ({_BOX})().slice(4).join() === '{WIDTH},{HEIGHT}'")
        self.page.wait_for_timeout(200)  # the node follows the view
        return opened

    @property
    def faces(self) -> list[dict[str, float]]:
        return json.loads(self.page.evaluate(_VALUE))

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Where a place of the picture is on the page."""
        left, top, width, height, w, h = self.page.evaluate(_BOX)
        scale = min(width / w, height / h)
        return left + width / 2 + (x - 0.5) * w * scale, top + height / 2 + (y - 0.5) * h * scale

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = self.page.mouse
        mouse.move(*start)
        mouse.down()
        mouse.move(*((a + b) / 2 for a, b in zip(start, end, strict=True)))
        mouse.move(*end)
        mouse.up()

    def handle(self, how: str) -> tuple[float, float]:
        return tuple(self.page.evaluate(_HANDLE, how))

    def focus(self) -> None:
        self.page.focus(".instantid-poses svg")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)


@pytest.fixture(params=["classic", "Nodes 2.0"])
def canvas(request: Any, front_end: FrontEnd, tmp_path: Path) -> Iterator[Canvas]:  # noqa: F811
    canvas = Canvas(front_end, tmp_path)
    if request.param == "classic":
        yield canvas
    elif front_end.version < (1, 49):
        pytest.skip("needs a front end whose Nodes 2.0 draw where the workflow says: 1.49 or newer")
    else:
        with front_end.nodes_2():
            yield canvas


def test_the_canvas_draws_the_keypoints_of_python(canvas: Canvas) -> None:
    random = np.random.default_rng(0)
    poses = [Pose.of(angle, x=0.2, y=0.7, size=0.6) for angle in ANGLES]
    poses += [Pose(*random.uniform([0, 0, 0.1, -90, -90, -180], [1, 1, 2, 90, 90, 180]).tolist()) for _ in range(20)]
    opened = canvas.open([vars(pose) for pose in poses])
    assert (opened["dialogs"], opened["problems"]) == ([], [])
    expected = np.concatenate([pose.keypoints((WIDTH, HEIGHT)) for pose in poses])
    np.testing.assert_allclose(canvas.page.evaluate(_POINTS), expected, atol=0.01)


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_a_dragged_face_moves_as_far_as_the_mouse(canvas: Canvas, scale: float) -> None:
    canvas.open(scale=scale)
    canvas.drag(canvas.point(0.7, 0.5), canvas.point(0.5, 0.6))
    first, second = canvas.faces
    assert first == TWO[0]
    assert (second["x"], second["y"]) == pytest.approx((0.5, 0.55), abs=0.003)
    assert {**second, "x": 0.7, "y": 0.45} == TWO[1]
    canvas.drag(canvas.point(0.5, 0.6), canvas.point(-0.2, 2.0))
    assert (canvas.faces[1]["x"], canvas.faces[1]["y"]) == (0, 1), "stays in the picture"


def test_handles_scale_tilt_and_turn(canvas: Canvas) -> None:
    canvas.open()
    canvas.drag(canvas.point(0.7, 0.5), canvas.point(0.7, 0.5))  # chooses it
    middle, corner = canvas.point(0.7, 0.45), canvas.handle("size")
    canvas.drag(corner, tuple(m + (c - m) * 1.5 for m, c in zip(middle, corner, strict=True)))
    assert canvas.faces[1]["size"] == pytest.approx(0.6, abs=0.01)
    (x, y), (_, top) = middle, canvas.handle("roll")
    angle = math.radians(30)
    canvas.drag(canvas.handle("roll"), (x + (y - top) * math.sin(angle), y - (y - top) * math.cos(angle)))
    assert canvas.faces[1]["roll"] == pytest.approx(30, abs=1)
    canvas.press("0")
    (x, y), half = canvas.handle("turn"), (canvas.point(0, 0.3)[1] - canvas.point(0, 0)[1])  # half of the face's size
    canvas.drag((x, y), (x + half / 3, y - half / 6))
    turned = canvas.faces[1]
    assert (turned["yaw"], turned["pitch"], turned["roll"]) == pytest.approx((30, 15, 0), abs=1)
    canvas.page.keyboard.down("Shift")
    canvas.drag(canvas.point(0.7, 0.6), canvas.point(0.2, 0.6))
    canvas.page.keyboard.up("Shift")
    assert canvas.faces[1] == {**turned, "yaw": -90}
    assert canvas.faces[0] == TWO[0]


def test_the_wheel_scales_the_face_only_in_the_focused_canvas(canvas: Canvas) -> None:
    canvas.open()
    canvas.page.mouse.move(*canvas.point(0.5, 0.5))
    canvas.page.mouse.wheel(0, -120)
    canvas.page.wait_for_function("() => app.canvas.ds.scale > 1")
    assert canvas.faces == TWO
    canvas.open()
    canvas.drag(canvas.point(0.3, 0.6), canvas.point(0.3, 0.6))
    canvas.page.mouse.wheel(0, -120)
    canvas.page.wait_for_function(f"() => JSON.parse(({_VALUE})())[0].size > 0.5")
    assert canvas.faces[0]["size"] == pytest.approx(0.525)
    assert canvas.page.evaluate("() => app.canvas.ds.scale") == 1


def test_keys_do_all_and_the_host_hears_none(canvas: Canvas) -> None:
    canvas.open()
    canvas.page.evaluate(f"() => app.canvas.selectNode({_EDITOR})")
    canvas.focus()
    before = canvas.page.evaluate(_SEEN)
    canvas.press(
        "ArrowRight", "ArrowRight", "ArrowDown", "Shift+ArrowUp", "+", "+", "-", "d", "s", "Shift+w", "e", "e", "q"
    )
    first = {"x": 0.32, "y": 0.509, "size": 0.51, "yaw": 25, "pitch": -9.5, "roll": 15}
    assert canvas.faces == [first, TWO[1]]
    canvas.press("Tab", "0", "]", "2", "[", "[", "1", "0", "r", "n", "h", "v", "m", ".")
    front = {"yaw": 0, "pitch": 0, "roll": 0}
    assert canvas.faces == [{**first, **front}, {**TWO[1], "roll": -5}]
    canvas.press("Insert")
    assert len(canvas.faces) == 3
    canvas.press("Shift+Tab", "Delete", "Backspace", "Delete")
    assert canvas.faces == [{**first, **front}], "the last face stays"
    assert canvas.page.evaluate(_SEEN) == before
    canvas.press("Tab")
    assert canvas.page.evaluate("() => document.activeElement.tagName") != "svg", "no trap"
    canvas.focus()
    canvas.press("Escape")
    assert canvas.page.evaluate("() => document.activeElement.tagName") == "BODY"


def test_buttons_add_remove_and_set_an_angle(canvas: Canvas) -> None:
    canvas.open(TWO[:1])
    remove = canvas.page.get_by_role("button", name="Remove the face")
    assert remove.is_disabled()
    canvas.page.get_by_role("button", name="Add a face").click()
    canvas.page.get_by_label("Angle of the face").select_option("up right")
    added = canvas.faces[1]
    assert (added["yaw"], added["pitch"], added["roll"]) == ANGLES["up right"]
    assert abs(added["x"] - TWO[0]["x"]) > 0.3
    remove.click()
    assert canvas.faces == TWO[:1]


def test_undo_and_redo_are_the_hosts(canvas: Canvas) -> None:
    canvas.open()
    canvas.focus()
    canvas.press("ArrowRight", "ArrowRight")
    canvas.page.wait_for_timeout(600)
    canvas.drag(canvas.point(0.7, 0.5), canvas.point(0.6, 0.5))
    canvas.page.wait_for_timeout(600)
    moved = canvas.faces
    assert moved[1]["x"] == pytest.approx(0.6, abs=0.003)
    for key, faces in (("z", [moved[0], TWO[1]]), ("z", TWO), ("y", [moved[0], TWO[1]]), ("y", moved)):
        canvas.press(f"Control+{key}")
        canvas.page.wait_for_timeout(600)
        assert canvas.faces == faces


def test_faces_are_kept_in_the_workflow_and_in_a_copy(canvas: Canvas) -> None:
    canvas.open()
    canvas.focus()
    canvas.press("ArrowLeft", "Insert")
    faces = canvas.page.evaluate(_VALUE)
    assert len(json.loads(faces)) == 3
    assert canvas.page.evaluate(_COPIED) == [faces, faces]
    canvas.page.evaluate(_AGAIN)
    assert canvas.page.evaluate(_VALUE) == faces
    assert len(canvas.page.evaluate(_POINTS)) == 30


def test_the_canvas_has_the_shape_of_the_latent_or_of_the_background(canvas: Canvas) -> None:
    canvas.open()
    for change, shape in (
        ("(node) => (node.getInputNode(0).widgets[0].value = 1280)", "1280,640"),
        ("(node) => node.disconnectInput(0)", "1024,1024"),  # the photograph is a square
        ("(node) => node.disconnectInput(1)", "1024,1024"),
    ):
        canvas.page.evaluate(f"() => ({change})({_EDITOR})")
        canvas.page.wait_for_function(f"() => ({_BOX})().slice(4).join() === '{shape}'")
    canvas.page.wait_for_function("() => !document.querySelector('.instantid-poses image').hasAttribute('href')")


@pytest.mark.parametrize("behind", ["LoadImage", "EmptyImage"])
def test_a_run_draws_these_faces_and_shows_the_background(
    canvas: Canvas,
    server: ComfyServer,  # noqa: F811
    behind: str,
) -> None:
    canvas.open(behind=behind)
    shown = "() => document.querySelector('.instantid-poses image').getAttribute('href') ?? ''"
    if behind == "LoadImage":
        canvas.page.wait_for_function(f"() => ({shown})().includes('{PORTRAIT}')")
    else:
        assert canvas.page.evaluate(shown) == ""
    canvas.focus()
    canvas.press("ArrowLeft", "d")
    expected = [Pose(**face).keypoints((WIDTH, HEIGHT)) for face in canvas.faces]
    before = {*(server.base / "temp").glob("*.png")}
    canvas.page.get_by_role("button", name="Run", exact=True).first.click()
    canvas.page.wait_for_function(
        "() => app.graph.nodes.find((node) => node.type === 'PreviewImage').imgs?.length || app.nodeOutputs[4]?.images"
    )
    (drawn,) = {*(server.base / "temp").glob("*.png")} - before
    with Image.open(drawn) as picture:
        np.testing.assert_array_equal(np.array(picture), draw_keypoints((WIDTH, HEIGHT), *expected))
    canvas.page.wait_for_function(f"() => ({shown})() !== ''")
    address = canvas.page.evaluate(shown)
    assert server.get(address[address.index("/view") :])
    assert ("type=temp" in address) == (behind == "EmptyImage")


def test_faces_that_cannot_be_read_are_kept_told_and_refused(canvas: Canvas, server: ComfyServer) -> None:  # noqa: F811
    for poses in ("nonsense", "[]", '[{"x": "left"}]', '[{"z": 1}]', "5", "[null]", "[5]", "[[]]"):
        opened = canvas.open(poses)
        assert canvas.page.evaluate(_VALUE) == poses
        assert canvas.page.get_by_text("No face can be read here").is_visible(), poses
        with pytest.raises(RuntimeError, match="expected"):
            server.queue(opened["prompt"])
    canvas.page.get_by_role("button", name="Add a face").click()
    assert canvas.faces == [vars(Pose())]
