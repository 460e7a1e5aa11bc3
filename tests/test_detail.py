"""Small faces: cut out upright, drawn at the resolution of the model, and put back without a seam."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from examples.small_faces import crowd, seam
from fast_instantid import Crop, InstantID, Person, Pose, Scene, Subject, cli, detail, miniature
from fast_instantid.errors import BackendError, FastInstantIDError, NoFaceError
from fast_instantid.faces import Face
from fast_instantid.faces.keypoints import drawn_points
from fast_instantid.people import cosine, find_faces, ordered
from fast_instantid.pipelines.load import inpainting

SIZE = (400, 300)
PROMPT = "flat portrait, hilly green background, red jacket"
STEPS = {"num_inference_steps": 6, "padding": 1.7, "seed": 3}


def picture(size: tuple[int, int] = SIZE, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def apart(one: Image.Image, other: Image.Image) -> np.ndarray:
    """``(H, W)``: largest difference of a channel, in levels of 8 bits."""
    return np.abs(np.asarray(one).astype(int) - np.asarray(other)).max(axis=2)


class TestCrop:
    @pytest.mark.parametrize("roll", [0, 30, 90, 180, -135])
    @pytest.mark.parametrize("place", [(0.5, 0.5), (0.02, 0.05), (0.98, 0.6)])
    def test_the_face_is_upright_and_in_the_middle_and_comes_back(self, roll, place):
        points = Pose(*place, size=0.2, roll=roll).keypoints(SIZE)
        crop = Crop.of(points, SIZE, 256, padding=2)
        seen = crop.keypoints(points)
        assert seen == pytest.approx(Pose(y=0.5, size=0.5).keypoints((256, 256)), abs=0.01)
        back = (seen - crop.matrix[:, 2]) @ np.linalg.inv(crop.matrix[:, :2]).T
        assert back == pytest.approx(points, abs=0.01)

    @pytest.mark.parametrize("roll", [0, 25, 90])
    @pytest.mark.parametrize("side", [64, 256])
    def test_pixels_move_as_keypoints_do(self, roll, side):
        """A dot drawn at each keypoint is found at the keypoint in the crop, to a third of its pixels."""
        points = Pose(0.4, 0.5, size=0.4, roll=roll).keypoints(SIZE)
        crop = Crop.of(points, SIZE, side)
        y, x = np.mgrid[: SIZE[1], : SIZE[0]]
        for point, wanted in zip(points, crop.keypoints(points), strict=True):
            dot = np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / 32)
            seen = crop.cut(torch.from_numpy(dot).float()[..., None])[..., 0].numpy()
            middle = [(seen * axis).sum() / seen.sum() for axis in np.mgrid[:side, :side][::-1]]
            assert middle == pytest.approx(wanted, abs=0.34)

    @pytest.mark.parametrize("roll", [0, 40, 90])
    def test_beyond_the_border_the_outermost_pixels_are_repeated(self, roll):
        crop = Crop.of(Pose(0.0, 0.0, size=0.3, roll=roll).keypoints(SIZE), SIZE, 128)
        flat = Image.new("RGB", SIZE, (200, 10, 60))
        assert np.unique(np.asarray(crop.cut(flat)).reshape(-1, 3), axis=0).tolist() == [[200, 10, 60]]

    @pytest.mark.parametrize(("roll", "place"), [(0, (0.5, 0.5)), (35, (0.3, 0.6)), (90, (0.97, 0.1))])
    def test_nothing_changes_outside_of_the_mask(self, roll, place):
        points = Pose(*place, size=0.25, roll=roll).keypoints(SIZE)
        crop, given = Crop.of(points, SIZE, 128), picture()
        pasted = crop.paste(given, Image.new("RGB", (128, 128), "white"))
        reach = crop.paste(Image.new("RGB", SIZE), Image.new("RGB", (128, 128), "white"))
        outside = np.asarray(reach).max(axis=2) == 0
        assert 0.2 < outside.mean() < 1
        assert not apart(pasted, given)[outside].any()
        nose = np.clip(points[2].round().astype(int), 0, np.array(SIZE) - 1)
        assert np.asarray(pasted)[nose[1], nose[0]].tolist() == [255, 255, 255]

    def test_a_mask_of_ones_reaches_the_border_of_the_crop_and_not_further(self):
        crop = Crop.of(Pose(0.5, 0.5, size=0.25, roll=45).keypoints(SIZE), SIZE, 128)
        black, white = Image.new("RGB", SIZE), Image.new("RGB", (128, 128), "white")
        share = (np.asarray(crop.paste(black, white, torch.ones(128, 128))) > 127).mean()
        assert share == pytest.approx(150 * 150 / (400 * 300), rel=0.02)

    @pytest.mark.parametrize("roll", [0, 20, 90])
    def test_what_was_cut_and_not_changed_fits(self, roll):
        """To two levels of 8 bits, in a smooth picture: cutting and pasting sample it twice."""
        given = picture()
        crop = Crop.of(Pose(0.5, 0.5, size=0.3, roll=roll).keypoints(SIZE), SIZE, 256)
        assert apart(crop.paste(given, crop.cut(given)), given).max() <= 2

    def test_a_crop_drawn_larger_is_averaged_and_not_thinned_out(self):
        """Checks of one pixel become grey, in a face eight times larger and in one eight times smaller."""
        checks = Image.fromarray(np.indices((1024, 1024)).sum(axis=0).astype(np.uint8) % 2 * 255).convert("RGB")
        crop = Crop.of(Pose(0.5, 0.5, size=0.2).keypoints(SIZE), SIZE, 1024)
        pasted = np.asarray(crop.paste(Image.new("RGB", SIZE), checks))[150, 200].astype(int)
        assert pasted == pytest.approx([127, 127, 127], abs=3)
        far = Crop.of(Pose(0.5, 0.5, size=0.5).keypoints((1024, 1024)), (1024, 1024), 128)
        assert np.asarray(far.cut(checks))[64, 64].astype(int) == pytest.approx([127, 127, 127], abs=3)

    def test_tensors_keep_their_precision(self):
        given = torch.rand(300, 400, 3)
        crop = Crop.of(Pose(0.5, 0.5, size=0.2).keypoints(SIZE), SIZE, 64)
        pasted = crop.paste(given, crop.cut(given))
        assert pasted.dtype == torch.float32
        assert torch.equal(pasted[:50], given[:50])
        assert not torch.equal(pasted, given)

    def test_a_larger_copy_of_the_picture_is_pasted_into(self):
        points = Pose(0.3, 0.5, size=0.3).keypoints(SIZE)
        crop, twice = Crop.of(points, SIZE, 128), picture((800, 600))
        words = r"a crop of a picture of \(400, 300\) does not fit one of \(300, 400\)"
        assert apart(crop.paste(twice, crop.cut(picture())), twice).max() <= 6
        with pytest.raises(FastInstantIDError, match=words):
            crop.paste(picture((300, 400)), picture((128, 128)))

    @pytest.mark.parametrize("mask", [torch.ones(1, 8, 8), torch.full((8, 8), 2.0), torch.ones(0, 8)])
    def test_what_is_no_mask_is_refused(self, mask):
        crop = Crop.of(Pose().keypoints(SIZE), SIZE, 64)
        with pytest.raises(FastInstantIDError, match="the mask of a crop is"):
            crop.paste(picture(), picture((64, 64)), mask)

    def test_keypoints_that_show_no_face_are_refused(self):
        with pytest.raises(FastInstantIDError, match="the keypoints of the face coincide"):
            Crop.of(np.full((5, 2), 7.0, np.float32), SIZE, 64)
        with pytest.raises(FastInstantIDError, match=r"padding 0\.5: expected 1 to 10"):
            Crop.of(Pose().keypoints(SIZE), SIZE, 64, padding=0.5)


class TestSeenThrough:
    def person(self, **subject) -> Subject:
        face = Face(np.zeros(4, np.float32), Pose().keypoints(SIZE), 1.0)
        return Subject(Person(np.ones((1, 512)), face, SIZE), **subject)

    def test_keypoints_and_regions_move_with_the_crop(self):
        left, right = np.zeros((30, 40), np.float32), np.zeros((30, 40), np.float32)
        left[:, :20] = right[:, 20:] = 1
        scene = Scene(SIZE, [self.person(pose=Pose(x=x, size=0.2), region=m) for x, m in ((0.42, left), (0.58, right))])
        crop = Crop.of(scene.keypoints[0], SIZE, 128, padding=3)
        seen = scene.seen_through(crop)
        assert seen.size == (128, 128)
        for points, whole in zip(seen.keypoints, scene.keypoints, strict=True):
            assert points == pytest.approx(crop.keypoints(whole))
        border = crop.keypoints([[199.5, y] for y in range(5)])[0, 0]
        first, second = (one.mask[0].numpy() for one in seen.subjects)
        assert first[:, : int(border) - 8].min() > 0.999
        assert first[:, int(border) + 8 :].max() == 0
        assert first + second == pytest.approx(np.ones((128, 128)), abs=0.2)

    def test_faces_beside_the_crop_are_left_out(self):
        scene = Scene(SIZE, [self.person(pose=Pose(x=x, size=0.2)) for x in (0.1, 0.9)])
        assert len(scene.seen_through(Crop.of(scene.keypoints[1], SIZE, 128)).people) == 1
        with pytest.raises(FastInstantIDError, match="a scene of nobody"):
            scene.seen_through(Crop.of(Pose(x=0.5, size=0.1).keypoints(SIZE), SIZE, 128, padding=1))


@pytest.fixture(scope="module")
def instantid():
    return InstantID.from_pretrained("miniature", device="cpu")


@pytest.fixture(scope="module")
def three(instantid):
    """A picture of three blurred strangers, their faces, and three persons."""
    blurred, _ = crowd()
    faces = ordered(find_faces(instantid.faces, blurred)[0], "left to right")
    people = [instantid.person(portrait) for portrait in (miniature.files().portraits[i] for i in (0, 3, 5))]
    return SimpleNamespace(picture=blurred, faces=faces, people=people)


@pytest.fixture(scope="module")
def drawn(instantid, three):
    return detail(instantid, three.picture, PROMPT, three.people, strength=0.9, **STEPS)


class TestDetail:
    def cosines(self, instantid: InstantID, three, image: Image.Image) -> np.ndarray:
        points = [face.kps for face in three.faces]
        rows = instantid.faces.embed([image] * len(points), points)
        return np.array([[cosine(one.embedding, row) for one in three.people] for row in rows])

    def test_each_face_becomes_that_of_its_person(self, instantid, three, drawn):
        before, after = (self.cosines(instantid, three, image) for image in (three.picture, drawn))
        assert before.argmax(axis=1).tolist() != [0, 1, 2]
        assert after.argmax(axis=1).tolist() == [0, 1, 2]
        assert (after.diagonal() > before.diagonal() + 0.2).all()

    def test_swapped_persons_swap_the_faces(self, instantid, three):
        subjects = [Subject(three.people[n], pose=three.faces[1 - n].kps) for n in (0, 1)]
        after = self.cosines(
            instantid, three, detail(instantid, three.picture, PROMPT, subjects, strength=0.9, **STEPS)
        )
        assert after[:2].argmax(axis=1).tolist() == [1, 0]

    def test_there_is_no_seam(self, instantid, three):
        """Where the mask ends, the mean step is below a fifth of a level of 255; a hard paste steps by two or more."""
        points = three.faces[0].kps
        crop = Crop.of(points, three.picture.size, 128, STEPS["padding"])
        alone = detail(instantid, three.picture, PROMPT, [Subject(three.people[0], pose=points)], strength=0.9, **STEPS)
        painter = InstantID(inpainting(instantid.pipe), 0, adapter=instantid.adapter, defaults=instantid.defaults)
        image = painter(
            PROMPT,
            Scene(crop.size, [Subject(three.people[0], pose=crop.keypoints(points))]),
            image=crop.cut(three.picture),
            mask_image=Image.fromarray((crop.mask > 0).byte().mul(255).numpy()),
            strength=0.9,
            num_inference_steps=6,
            seed=3,
        ).images[0]
        assert crop.paste(three.picture, image) == alone
        hard = crop.paste(three.picture, image, (crop.mask > 0).float())
        assert seam(three.picture, alone, crop) < 0.2
        assert seam(three.picture, hard, crop) > 2

    def test_a_turned_face_is_drawn_upright_and_put_back_turned(self, instantid, three):
        quarter = three.picture.transpose(Image.Transpose.ROTATE_270)
        width = quarter.width
        turned = [np.stack([width - 1 - face.kps[:, 1], face.kps[:, 0]], axis=1) for face in three.faces[:1]]
        subject = Subject(three.people[0], pose=turned[0])
        done = detail(instantid, quarter, PROMPT, subject, strength=0.9, **STEPS)
        upright = done.transpose(Image.Transpose.ROTATE_90)
        straight = detail(
            instantid, three.picture, PROMPT, replace(subject, pose=three.faces[0].kps), strength=0.9, **STEPS
        )
        assert apart(upright, straight).max() <= 12
        assert apart(upright, three.picture).max() > 60

    def test_a_low_strength_is_gentle(self, instantid, three, drawn):
        gentle = detail(instantid, three.picture, PROMPT, three.people, strength=0.2, **STEPS)
        assert 0 < apart(gentle, three.picture).mean() < apart(drawn, three.picture).mean()

    def test_a_region_bounds_the_change(self, instantid, three):
        face = three.faces[0]
        middle = float(face.kps[:, 0].mean())
        subject = Subject(three.people[0], pose=face.kps, region=(0, 0, middle / three.picture.width, 1))
        changed = apart(detail(instantid, three.picture, PROMPT, subject, strength=0.9, **STEPS), three.picture)
        assert changed[:, : int(middle)].any()
        assert not changed[:, int(middle) + 6 :].any()

    def test_the_pipeline_is_left_as_it_was(self, instantid, three, drawn):
        scene = Scene((128, 128), [three.people[0]])
        before = instantid(PROMPT, scene, seed=1, num_inference_steps=2).images[0]
        detail(instantid, three.picture, PROMPT, three.people[:1], **{**STEPS, "num_inference_steps": 2})
        assert instantid(PROMPT, scene, seed=1, num_inference_steps=2).images[0] == before

    def test_bad_input_is_named(self, instantid, three):
        def fails(error: type[Exception], words: str, given=three.picture, people=three.people, **options) -> None:
            with pytest.raises(error, match=words):
                detail(instantid, given, options.pop("prompt", PROMPT), people, **options)

        alone = Subject(three.people[0], pose=three.faces[0].kps)
        blank = Image.new("RGB", (200, 200))
        fails(NoFaceError, "0 faces for 3 people", blank)
        fails(NoFaceError, "3 faces for 4 people", people=[*three.people, three.people[0]])
        fails(FastInstantIDError, "strength 0 of 20 steps: expected 0 to 1", strength=0)
        fails(FastInstantIDError, "at least one step", strength=0.1, num_inference_steps=4)
        fails(FastInstantIDError, "side 100: expected a multiple of 8", side=100)
        fails(FastInstantIDError, "2 prompts for 3 people", prompt=["a", "b"])
        fails(FastInstantIDError, "padding 20: expected", padding=20)
        fails(FastInstantIDError, "a scene of nobody", people=[])
        fails(FastInstantIDError, "lies outside of the picture", people=replace(alone, pose=Pose(x=1.9, size=0.1)))
        fails(FastInstantIDError, "leaves nothing of the face", people=replace(alone, region=(0.9, 0.9, 1, 1)))
        fails(FastInstantIDError, "the region of person 0 is empty", people=replace(alone, region=np.zeros((8, 8))))
        fails(FastInstantIDError, r"a scene of \(9, 9\) for a picture", people=Scene((9, 9), three.people))
        fails(FastInstantIDError, "Subjects have weights", people=alone, scale=0.3)
        fails(FastInstantIDError, "takes no colour=", people=alone, colour=1)
        nameless = [instantid.identity(three.people[0])]
        fails(FastInstantIDError, "pairing by likeness needs Persons", people=nameless, pairing="likeness")
        fails(FastInstantIDError, "unknown pairing 'size'", pairing="size")
        faceless = InstantID(instantid.pipe, 0, adapter=instantid.adapter)
        with pytest.raises(BackendError, match="no face analyzer"):
            detail(faceless, three.picture, PROMPT, three.people)


class TestPaddingMaskCrop:
    """diffusers' own crop enlarges a part of the picture: the keypoints are drawn anew for it."""

    def test_a_keypoint_picture_remembers_its_keypoints_while_it_shows_them(self):
        scene = Scene(SIZE, [Subject(Person(np.ones((1, 512)), Face(np.zeros(4), Pose().keypoints(SIZE), 1.0), SIZE))])
        image = scene.keypoint_picture()
        assert drawn_points(image)[0] == pytest.approx(scene.keypoints[0])
        assert drawn_points(image.copy())
        for changed in (ImageOps.mirror(image), image.resize((200, 150)), image.crop((9, 0, 400, 300)), picture()):
            assert drawn_points(changed) == []

    def test_the_face_is_alike_and_in_its_place(self, instantid, three):
        """The control cuts the keypoint picture itself, whose dots then grow to twice their size."""
        half = three.picture.resize((256, 160), Image.Resampling.LANCZOS)
        points = (three.faces[0].kps + 0.5) / 2 - 0.5
        left, top, right, bottom = three.faces[0].bbox / 2
        mask = Image.new("L", half.size)
        mask.paste(255, (int(left - 8), int(top - 10), int(right + 8), int(bottom + 8)))
        painter = InstantID(inpainting(instantid.pipe), 0, adapter=instantid.adapter, defaults=instantid.defaults)
        scene = Scene(half.size, [Subject(three.people[1], pose=points)])
        likeness = []
        for keypoints in (scene.keypoint_picture(), Image.fromarray(np.array(scene.keypoint_picture()))):
            options = {"image": half, "mask_image": mask, "padding_mask_crop": 6, "width": 128, "height": 128}
            options |= {"strength": 0.9, "seed": 3, "num_inference_steps": 6}
            drawn = painter(PROMPT, scene, keypoints=keypoints, **options).images[0].resize(three.picture.size)
            (row,) = instantid.faces.embed([drawn], [three.faces[0].kps])
            likeness.append(cosine(three.people[1].embedding, row))
        assert likeness[0] > 0.6
        assert likeness[0] > likeness[1] + 0.2


class TestShell:
    def run(self, capsys, *arguments) -> str:
        assert cli.main(["detail", *map(str, arguments)]) == 0
        out, err = capsys.readouterr()
        assert "AutoencoderKL" not in err, "diffusers warns of nothing that a user could mend"
        return out

    def test_a_person_is_put_into_a_picture(self, three, tmp_path, capsys):
        three.picture.save(tmp_path / "group.png")
        ada = miniature.files().portraits[0]
        given = [tmp_path / "group.png", "--photo", ada, "--prompt", PROMPT, "--base", "miniature"]
        given += ["--steps", 6, "--strength", 0.9, "--padding", 1.7, "--seed", 3, "-o", tmp_path / "better.png"]
        report = json.loads(self.run(capsys, *given, "--index", 1, "--json"))
        (alike,) = report["likeness"]
        assert alike["person"] == "ada"
        assert alike["after"] > alike["before"] + 0.2
        better = Image.open(tmp_path / "better.png")
        assert better.size == three.picture.size
        changed = apart(better, three.picture).any(axis=0)
        middle = int(three.faces[1].kps[:, 0].mean())
        assert changed[middle]
        assert not changed[: middle - 100].any()
        assert not changed[middle + 100 :].any()

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--index", 7], "faces 7 for 1 people, of 3 there: give each another number, 0 is the left one"),
            (["--index", 1, 1], "faces 1 1 for 1 people"),
            (["--seed", 1, 2], "several seeds"),
            (["--strength", 2], "strength 2 of 20 steps"),
            (["--scale", 9], "scale 9.0: expected 0 to 5"),
        ],
    )
    def test_bad_input_is_named(self, three, tmp_path, capsys, more, words):
        three.picture.save(tmp_path / "group.png")
        given = [tmp_path / "group.png", "--photo", miniature.files().portraits[0], "--prompt", "a", "--base"]
        given += ["miniature", "-o", tmp_path / "better.png", *more]
        assert cli.main(["detail", *map(str, given)]) == 1
        assert words in capsys.readouterr().err
        assert not (tmp_path / "better.png").exists()
