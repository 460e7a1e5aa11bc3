"""The world of the miniature: portraits of invented people, drawn from parameters.

A :class:`Person` holds the constant traits of a person in every picture: the colours and shapes of a face. A
:class:`Pose` says where the face is in the picture, a :class:`Scene` what is around it and how it is drawn; only the
scene has words. Everything is drawn at four times its size with PIL and reduced.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 128
"""Height and width of a picture in pixels."""
_SCALE = 4  # drawn so much larger
_EYE_LINE, _NOSE_LINE, _MOUTH_LINE = -0.08, 0.34, 0.64  # heights in a face, in units of half its usual width

COLORS = {
    "red": (205, 52, 48),
    "orange": (238, 138, 44),
    "yellow": (246, 211, 75),
    "green": (82, 160, 84),
    "teal": (58, 172, 176),
    "blue": (52, 96, 190),
    "purple": (128, 72, 168),
    "pink": (240, 150, 186),
    "white": (244, 244, 240),
    "black": (44, 44, 52),
}
"""RGB of the colours that a background or clothes can have, by their names in a caption."""
MOTIFS = ("plain", "starry", "striped", "hilly", "sunny")
CLOTHES = ("shirt", "jacket", "jumper")
STYLES = ("flat", "outlined", "soft")

HAIR_STYLES = ("bald", "short", "parted", "bob", "long", "curly", "bun", "spiky")
GLASSES = ("none", "round", "square", "dark")
BEARDS = ("none", "moustache", "goatee", "full")
_HAIR_COLORS = (
    (34, 28, 30), (86, 52, 32), (150, 88, 44), (196, 74, 30), (232, 190, 104), (226, 224, 220), (52, 92, 178),
    (222, 92, 150), (70, 150, 92), (118, 72, 158),
)  # fmt: skip
_FRAME_COLORS = ((30, 30, 34), (190, 40, 44), (40, 90, 190), (236, 188, 60))
_EYE_COLORS = ((70, 44, 26), (58, 118, 186), (66, 140, 74), (40, 40, 46), (150, 104, 40))


@dataclass(frozen=True)
class Person:
    """The features of a person. Numbers without a unit are 0..1; colours are RGB, 0..255."""

    skin_tone: float
    skin_warmth: float
    face_width: float
    face_height: float
    jaw: float
    eye_distance: float
    eye_size: float
    eye_color: tuple[int, int, int]
    brow_thickness: float
    brow_tilt: float
    nose_size: float
    mouth_width: float
    lip_fullness: float
    hair_style: str
    hair_color: tuple[int, int, int]
    glasses: str
    glasses_color: tuple[int, int, int]
    beard: str
    earrings: bool
    freckles: bool

    @classmethod
    def random(cls, random: np.random.Generator) -> Person:
        def pick(options: tuple) -> object:
            return options[random.integers(len(options))]

        hair = np.array(pick(_HAIR_COLORS)) + random.normal(0, 9, 3)
        glasses = pick(GLASSES) if random.random() < 0.6 else "none"
        return cls(
            **{name: float(random.random()) for name in SHAPES},
            eye_color=pick(_EYE_COLORS),
            hair_style=pick(HAIR_STYLES),
            hair_color=tuple(int(value) for value in hair.clip(0, 255)),
            glasses=glasses,
            glasses_color=pick(_FRAME_COLORS),
            beard=pick(BEARDS) if random.random() < 0.6 else "none",
            earrings=bool(random.random() < 0.3),
            freckles=bool(random.random() < 0.25),
        )  # pyright: ignore[reportArgumentType]  # pick() returns what it is given

    @property
    def skin(self) -> tuple[int, int, int]:
        """RGB of the skin."""
        light, dark = np.array([252, 220, 190]), np.array([84, 50, 34])
        color = light + (dark - light) * self.skin_tone
        color = color + (self.skin_warmth - 0.5) * np.array([24, -6, -34])
        return _rgb(color)

    def attributes(self) -> np.ndarray:
        """Return the visible features as numbers 0..1: shapes, colours, and one number for each choice."""
        colors = [*self.skin, *self.hair_color] if self.hair_style != "bald" else [*self.skin, *self.skin]
        frames = self.glasses_color if self.glasses in ("round", "square") else (128, 128, 128)
        choices = [
            [float(value == option) for option in options]
            for value, options in (
                (self.hair_style, HAIR_STYLES),
                (self.glasses, GLASSES),
                (self.beard, BEARDS),
            )
        ]
        numbers = [getattr(self, name) for name in SHAPES]
        numbers += [value / 255 for value in (*colors, *frames, *self.eye_color)]
        numbers += [value for choice in choices for value in choice]
        return np.array([*numbers, float(self.earrings), float(self.freckles)], np.float32)


SHAPES = (
    "skin_tone", "skin_warmth", "face_width", "face_height", "jaw", "eye_distance", "eye_size", "brow_thickness",
    "brow_tilt", "nose_size", "mouth_width", "lip_fullness",
)  # fmt: skip


@dataclass(frozen=True)
class Pose:
    """Where a face is: its middle and its scale in pixels of a picture of :data:`SIZE`, roll in radians, yaw -1..1."""

    x: float
    y: float
    scale: float
    roll: float
    yaw: float
    smile: float

    @classmethod
    def random(cls, random: np.random.Generator) -> Pose:
        scale = random.uniform(28, 38)
        return cls(
            x=SIZE / 2 + random.uniform(-1, 1) * (SIZE / 2 - 1.15 * scale) * 0.8,
            y=SIZE * 0.5 + random.uniform(-1, 1) * (SIZE / 2 - 1.3 * scale) * 0.7,
            scale=scale,
            roll=random.normal(0, 0.16),
            yaw=float(np.clip(random.normal(0, 0.45), -1, 1)),
            smile=random.uniform(-0.3, 1),
        )


@dataclass(frozen=True)
class Scene:
    """Surroundings and style of a picture, all of them in ``caption``."""

    background: str
    motif: str
    clothes: str
    clothes_color: str
    style: str

    @classmethod
    def random(cls, random: np.random.Generator) -> Scene:
        background, clothes_color = random.choice(list(COLORS), 2, replace=False)
        motif, clothes, style = (str(random.choice(options)) for options in (MOTIFS, CLOTHES, STYLES))
        return cls(str(background), motif, clothes, str(clothes_color), style)

    @property
    def caption(self) -> str:
        return f"{self.style} portrait, {self.motif} {self.background} background, {self.clothes_color} {self.clothes}"


@dataclass(frozen=True)
class Portrait:
    """A drawn picture: ``(SIZE, SIZE, 3)`` uint8 RGB, and the five keypoints ``(5, 2)`` float32 in its pixels."""

    picture: np.ndarray
    keypoints: np.ndarray


def draw(person: Person, pose: Pose, scene: Scene, seed: int = 0) -> Portrait:
    """Draw a portrait; the same one for the same arguments.

    Args:
        seed: of what is neither person, pose nor caption: places of stars, freckles and hills, tint of colours.
    """
    brush = Brush(Image.new("RGB", (SIZE * _SCALE,) * 2), pose, scene.style)
    random = np.random.default_rng(seed)
    _draw_background(brush.image, scene, random)
    keypoints = draw_person(brush, person, scene, random)
    return Portrait(np.asarray(brush.image.reduce(_SCALE)), keypoints)


def draw_person(brush: Brush, person: Person, scene: Scene, random: np.random.Generator) -> np.ndarray:
    """Draw a person over the canvas; return the keypoints in pixels of the finished picture."""
    clothes = _tinted(COLORS[scene.clothes_color], random)
    _draw_hair_behind(brush, person)
    _draw_body(brush, person, scene.clothes, clothes)
    _draw_head(brush, person, random)
    keypoints = _draw_features(brush, person)
    _draw_hair(brush, person)
    _draw_glasses(brush, person)
    return brush.points(keypoints, depth=0.3).astype(np.float32) / _SCALE


class Brush:
    """Draws in the coordinates of a face: its middle is 0, half its usual width is 1, y points down to the chin."""

    def __init__(self, image: Image.Image, pose: Pose, style: str, scale: int = _SCALE) -> None:
        self.image, self.pose, self.style, self.canvas = image, pose, style, ImageDraw.Draw(image)
        self._scale = scale
        cos, sin = math.cos(pose.roll), math.sin(pose.roll)
        self._turn = pose.scale * scale * np.array([[cos, sin], [-sin, cos]])

    def points(self, points: Iterable[tuple[float, float]] | np.ndarray, depth: float = 0.0) -> np.ndarray:
        """To pixels of the canvas. ``depth`` is how far in front of the head's middle: turning moves it sideways."""
        points = np.array(points, float) + np.array([self.pose.yaw * depth, 0.0])
        return points @ self._turn + np.array([self.pose.x, self.pose.y]) * self._scale

    def shape(self, points: np.ndarray, color: tuple[int, int, int], depth: float = 0.0, line: float = 0.035) -> None:
        corners = [tuple(point) for point in self.points(points, depth)]
        self.canvas.polygon(corners, fill=color)
        if self.style == "outlined" and line:
            self.canvas.line([*corners, corners[0]], _darker(color, 0.35), self._width(line), joint="curve")

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, color: tuple[int, int, int], depth: float = 0.0,
        line: float = 0.035,
    ) -> None:  # fmt: skip
        self.shape(_ellipse(x, y, rx, ry), color, depth, line)

    def line(self, points: np.ndarray, color: tuple[int, int, int], width: float, depth: float = 0.0) -> None:
        corners = [tuple(point) for point in self.points(points, depth)]
        self.canvas.line(corners, color, self._width(width), joint="curve")
        radius = self._width(width) / 2
        for x, y in (corners[0], corners[-1]):
            self.canvas.ellipse((x - radius, y - radius, x + radius, y + radius), color)

    def shade(self, points: np.ndarray, amount: float, depth: float = 0.0, blur: float = 0.12) -> None:
        """Darken a region softly if the style is soft."""
        if self.style != "soft":
            return
        quarter = Image.new("L", tuple(side // 4 for side in self.image.size))
        corners = [tuple(point / 4) for point in self.points(points, depth)]
        ImageDraw.Draw(quarter).polygon(corners, fill=int(255 * amount))
        quarter = quarter.filter(ImageFilter.GaussianBlur(blur * self.pose.scale * self._scale / 4))
        self.image.paste((30, 20, 40), (0, 0), quarter.resize(self.image.size, Image.Resampling.BILINEAR))

    def _width(self, width: float) -> int:
        return max(1, round(width * self.pose.scale * self._scale))


def _draw_background(image: Image.Image, scene: Scene, random: np.random.Generator) -> None:
    color, canvas, size = _tinted(COLORS[scene.background], random), ImageDraw.Draw(image), image.size[0]
    light, dark = _lighter(color, 0.3), _darker(color, 0.75)
    canvas.rectangle((0, 0, size, size), color)
    if scene.motif == "starry":
        mark = light if sum(color) < 600 else dark
        for x, y, radius in zip(*random.uniform(0, size, (2, 20)), random.uniform(8, 16, 20), strict=True):
            corners = [
                (x + math.sin(i * math.pi / 5) * (radius if i % 2 == 0 else radius * 0.45),
                 y - math.cos(i * math.pi / 5) * (radius if i % 2 == 0 else radius * 0.45))
                for i in range(10)
            ]  # fmt: skip
            canvas.polygon(corners, fill=mark)
    elif scene.motif == "striped":
        for x in range(0, size, size // 4):
            canvas.rectangle((x, 0, x + size // 8 - 1, size), dark if sum(color) > 200 else light)
    elif scene.motif == "hilly":
        for height, shade in ((0.56, 0.86), (0.72, 0.72)):
            phase = random.uniform(0, 2 * math.pi)
            ridge = [(x, size * (height + 0.05 * math.sin(x / size * 7 + phase))) for x in range(0, size + 1, 16)]
            hill = _darker(color, shade) if sum(color) > 200 else _lighter(color, 0.5 * (1 - shade))
            canvas.polygon([(0, size), *ridge, (size, size)], fill=hill)
    elif scene.motif == "sunny":
        x, y, radius = size * random.uniform(0.1, 0.9), size * 0.14, size * 0.11
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), light if sum(color) < 600 else (250, 214, 90))


def _draw_hair_behind(brush: Brush, person: Person) -> None:
    width, height = _head_size(person)
    color = _darker(person.hair_color, 0.82)
    if person.hair_style == "long":
        drop = height + 0.75
        sides = [(-width - 0.24, -0.2), (-width - 0.3, drop), (width + 0.3, drop), (width + 0.24, -0.2)]
        brush.shape(np.concatenate([_ellipse(0, -0.3, width + 0.24, height * 0.9, 180, 360), sides[::-1]]), color)
    elif person.hair_style == "bob":
        brush.shape(_superellipse(0, -0.08, width + 0.3, height * 0.98, 0.72), color)
    elif person.hair_style == "curly":
        for angle in range(150, 391, 24):
            x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            brush.ellipse(x * (width + 0.14), y * height * 0.9 - 0.1, 0.36, 0.36, color)
    elif person.hair_style == "bun":
        brush.ellipse(0, -height - 0.3, 0.42, 0.38, person.hair_color)


def _draw_body(brush: Brush, person: Person, clothes: str, color: tuple[int, int, int]) -> None:
    _, height = _head_size(person)
    neck, shoulders = height + 0.42, height + 0.34
    brush.shape(
        np.array([(-0.36, 0.5), (-0.4, neck), (0, neck + 0.3), (0.4, neck), (0.36, 0.5)]), _darker(person.skin, 0.86)
    )
    left = [(-0.42, shoulders), (-1.0, shoulders + 0.16), (-1.55, shoulders + 0.5), (-1.75, 9)]
    brush.shape(np.array([*left, *((-x, y) for x, y in left[::-1]), (0, shoulders + 0.34)]), color)
    if clothes == "jacket":
        inner = _lighter(color, 0.75) if sum(color) < 560 else _darker(color, 0.45)
        brush.shape(np.array([(-0.42, shoulders), (0, shoulders + 0.34), (0.42, shoulders), (0, 9)]), inner)
    elif clothes == "jumper":
        collar = [(-0.5, shoulders + 0.02), (0, shoulders + 0.42), (0.5, shoulders + 0.02)]
        brush.line(np.array(collar), _darker(color, 0.7) if sum(color) > 200 else _lighter(color, 0.3), 0.18)


def _draw_head(brush: Brush, person: Person, random: np.random.Generator) -> None:
    width, _ = _head_size(person)
    skin = person.skin
    for side in (-1, 1):
        brush.ellipse(side * (width + 0.02), 0.08, 0.17, 0.24, _darker(skin, 0.92))
        if person.earrings:
            brush.ellipse(side * (width + 0.07), 0.42, 0.1, 0.1, (250, 205, 60))
    outline = _head_outline(person)
    brush.shape(outline, skin, line=0.045)
    if person.beard == "full":
        lower = outline[outline[:, 1] > 0.3]
        lower = lower[np.argsort(np.arctan2(lower[:, 1], lower[:, 0]))]
        mouth = _ellipse(0, 0.46, 0.52, 0.3, 180, 360)[::-1] * [-1, 1]
        brush.shape(np.concatenate([lower, mouth[::-1]]), _darker(person.hair_color, 0.9), depth=0.04)
    if person.freckles:
        for side in (-1, 1):
            for x, y in random.uniform(-0.14, 0.14, (6, 2)):
                brush.ellipse(side * 0.52 + x, 0.3 + y * 0.7, 0.032, 0.032, _darker(skin, 0.62), 0.2, line=0)


def _draw_features(brush: Brush, person: Person) -> np.ndarray:
    """Eyes, brows, nose and mouth; returns the five keypoints in coordinates of the face."""
    skin, apart = person.skin, 0.36 + 0.12 * person.eye_distance
    radius = 0.15 + 0.09 * person.eye_size
    brow = _darker(person.hair_color, 0.75) if person.hair_style != "bald" else _darker(skin, 0.4)
    for side in (-1, 1):
        brush.shade(_ellipse(side * 0.56, 0.36, 0.26, 0.2), 0.16, 0.2)
        brush.ellipse(side * apart, _EYE_LINE, radius * 1.25, radius, (250, 250, 250), 0.3, line=0.03)
        brush.ellipse(side * apart, _EYE_LINE, radius * 0.72, radius * 0.78, person.eye_color, 0.33, line=0)
        brush.ellipse(side * apart, _EYE_LINE, radius * 0.36, radius * 0.38, (16, 16, 20), 0.33, line=0)
        height = _EYE_LINE - radius - 0.13
        tilt = 0.16 * (person.brow_tilt - 0.5) * 2
        ends = [(side * (apart - 0.2), height + tilt), (side * apart, height - 0.04), (side * (apart + 0.24), height)]
        brush.line(np.array(ends), brow, 0.05 + 0.12 * person.brow_thickness, 0.3)
    nose = 0.1 + 0.13 * person.nose_size
    bridge = np.array([(-0.05, _NOSE_LINE - 0.34), (-nose, _NOSE_LINE), (0, _NOSE_LINE + 0.07), (nose, _NOSE_LINE),
                       (0.05, _NOSE_LINE - 0.34)])  # fmt: skip
    brush.shape(bridge, _darker(skin, 0.8), 0.32)
    half = 0.26 + 0.2 * person.mouth_width
    curve = 0.16 * brush.pose.smile
    lips = _mixed(skin, (178, 44, 60), 0.62)
    if person.beard in ("moustache", "full"):
        hair = _darker(person.hair_color, 0.9)
        brush.shape(np.array([(-0.44, 0.6), (-0.2, 0.44), (0.2, 0.44), (0.44, 0.6), (0, 0.58)]), hair, 0.26)
    if person.beard == "goatee":
        brush.ellipse(0, 0.94, 0.24, 0.22, _darker(person.hair_color, 0.9), 0.2)
    points = [(x * half, _MOUTH_LINE + curve * (1 - x * x)) for x in np.linspace(-1, 1, 9)]
    brush.line(np.array(points), lips, 0.07 + 0.1 * person.lip_fullness, 0.25)
    return np.array([(-apart, _EYE_LINE), (apart, _EYE_LINE), (0, _NOSE_LINE), (-half, _MOUTH_LINE),
                     (half, _MOUTH_LINE)])  # fmt: skip


def _draw_hair(brush: Brush, person: Person) -> None:
    style, color = person.hair_style, person.hair_color
    if style == "bald":
        return
    width, height = _head_size(person)
    crown = _ellipse(0, -0.16, width + 0.08, height - 0.02, 180, 360)
    if style in ("short", "bun"):
        fringe = [(width * 0.86, -0.42), (0.4, -0.66), (0, -0.7), (-0.4, -0.66), (-width * 0.86, -0.42)]
    elif style == "parted":
        fringe = [(width * 0.92, -0.2), (width * 0.55, -0.7), (0.3, -0.92), (-0.3, -0.62), (-width * 0.98, -0.25)]
    elif style in ("bob", "long"):
        fringe = [(width * 0.94, -0.1), (0.72 * width, -0.5), (0, -0.58), (-0.72 * width, -0.5), (-width * 0.94, -0.1)]
    elif style == "curly":
        fringe = [(width * 0.94, -0.2), (0.5, -0.64), (0, -0.58), (-0.5, -0.64), (-width * 0.94, -0.2)]
    else:  # spiky
        angles = np.radians(np.linspace(188, 352, 15))
        reach = np.where(np.arange(15) % 2 == 0, 0.96, 1.36)[:, None]
        crown = np.stack([np.cos(angles) * (width + 0.04), np.sin(angles) * (height - 0.06)], 1) * reach + [0, -0.1]
        fringe = [(width * 0.84, -0.5), (0.3, -0.74), (0, -0.64), (-0.3, -0.74), (-width * 0.84, -0.5)]
    brush.shape(np.concatenate([crown, fringe]), color)
    if style == "curly":
        for angle in range(195, 350, 30):
            x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            brush.ellipse(x * width * 0.86, y * height * 0.8 - 0.12, 0.27, 0.25, color, 0.05)


def _draw_glasses(brush: Brush, person: Person) -> None:
    if person.glasses == "none":
        return
    apart, color = 0.36 + 0.12 * person.eye_distance, person.glasses_color
    for side in (-1, 1):
        exponent = 1.0 if person.glasses == "round" else 0.5
        frame = _superellipse(side * apart, _EYE_LINE + 0.02, 0.33, 0.31 if exponent == 1 else 0.27, exponent)
        if person.glasses == "dark":
            brush.shape(frame, (28, 28, 34), 0.4)
        else:
            brush.line(np.concatenate([frame, frame[:2]]), color, 0.085, 0.4)
        arm = [(side * (apart + 0.3), _EYE_LINE - 0.02), (side * 0.98, _EYE_LINE - 0.04)]
        brush.line(np.array(arm), color if person.glasses != "dark" else (28, 28, 34), 0.06, 0.2)
    bridge = [(-apart + 0.3, _EYE_LINE - 0.02), (apart - 0.3, _EYE_LINE - 0.02)]
    brush.line(np.array(bridge), color if person.glasses != "dark" else (28, 28, 34), 0.07, 0.4)


def _head_size(person: Person) -> tuple[float, float]:
    """Half the width and half the height of a head."""
    return 0.8 + 0.2 * person.face_width, 1.04 + 0.2 * person.face_height


def _head_outline(person: Person) -> np.ndarray:
    """An oval above; below, from pointed (jaw 0) to square (jaw 1)."""
    width, height = _head_size(person)
    angles = np.radians(np.linspace(0, 360, 64, endpoint=False))
    x, y = np.cos(angles), np.sin(angles)
    lower = y > 0
    power = 1.5 - 0.95 * person.jaw
    x = np.where(lower, np.sign(x) * np.abs(x) ** power, x)
    return np.stack([width * x, height * y], 1)


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360) -> np.ndarray:
    angles = np.radians(np.linspace(start, end, 25))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], 1)


def _superellipse(x: float, y: float, rx: float, ry: float, power: float) -> np.ndarray:
    angles = np.radians(np.linspace(0, 360, 32, endpoint=False))
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([x + rx * np.sign(cos) * np.abs(cos) ** power, y + ry * np.sign(sin) * np.abs(sin) ** power], 1)


def _tinted(color: tuple[int, int, int], random: np.random.Generator) -> tuple[int, int, int]:
    """Return a variation of a colour with the same name: a little lighter, darker or paler."""
    hue, light, saturation = colorsys.rgb_to_hls(*(value / 255 for value in color))
    light, saturation = light * random.uniform(0.94, 1.06), saturation * random.uniform(0.9, 1.0)
    return _rgb(255 * np.array(colorsys.hls_to_rgb(hue, min(light, 1.0), saturation)))


def _darker(color: tuple[int, int, int], factor: float) -> tuple[int, int, int]:
    return _rgb(np.array(color) * factor)


def _lighter(color: tuple[int, int, int], amount: float) -> tuple[int, int, int]:
    return _mixed(color, (255, 255, 255), amount)


def _mixed(color: tuple[int, int, int], other: tuple[int, int, int], amount: float) -> tuple[int, int, int]:
    return _rgb(np.array(color) * (1 - amount) + np.array(other) * amount)


def _rgb(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in np.clip(values, 0, 255))
    return red, green, blue
