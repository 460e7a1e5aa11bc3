"""The identity inside of faces' boxes only, pictures without the IdentityNet, and the IdentityNet alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fast_instantid import InstantID, Pose, Scene, Subject, miniature
from fast_instantid.errors import FastInstantIDError
from fast_instantid.people.face_box import box_of_keypoints
from fast_instantid.people.subject import box_mask, within

PROMPT = "flat portrait, hilly green background, red jacket"
RUN = {"seed": 3, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def instantid():
    return InstantID.from_pretrained("miniature", device="cpu")


@pytest.fixture(scope="module")
def people(instantid):
    return [instantid.person(portrait) for portrait in miniature.files().portraits[:2]]


class Seen:
    """The residuals of the IdentityNet that reach a UNet, and the number of its calls."""

    def __init__(self, instantid):
        self.residuals, self.net_calls = [], 0
        self._hooks = [
            instantid.pipe.unet.register_forward_pre_hook(self._unet, with_kwargs=True),
            instantid.pipe.controlnet.conv_in.register_forward_hook(self._net),
        ]

    def _unet(self, module, args, kwargs):
        self.residuals.append([*kwargs["down_block_additional_residuals"], kwargs["mid_block_additional_residual"]])

    def _net(self, module, args, output):
        self.net_calls += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self._hooks:
            hook.remove()


def drawn(instantid, people, **options):
    with Seen(instantid) as seen:
        image = instantid(PROMPT, people, **(RUN | options)).images[0]
    return np.asarray(image).astype(int), seen


class TestBox:
    @pytest.mark.parametrize("portrait", range(6))
    def test_the_estimate_lies_as_the_detectors_box(self, instantid, portrait):
        face = instantid.person(miniature.files().portraits[portrait]).face
        box = np.array(box_of_keypoints(face.kps, (128, 128))) * 128
        low, high = np.maximum(box[:2], face.bbox[:2]), np.minimum(box[2:], face.bbox[2:])
        overlap = np.prod(high - low)
        union = np.prod(box[2:] - box[:2]) + np.prod(face.bbox[2:] - face.bbox[:2]) - overlap
        assert overlap / union > 0.5

    @pytest.mark.parametrize("yaw", [-60, 0, 60])
    @pytest.mark.parametrize("roll", [-90, -30, 0, 30, 180])
    def test_a_turned_face_has_a_box_of_its_size_around_its_keypoints(self, yaw, roll):
        points = Pose(size=0.4, yaw=yaw, roll=roll).keypoints((400, 400))
        left, top, right, bottom = np.array(box_of_keypoints(points, (400, 400))) * 400
        assert left < points[:, 0].min() < points[:, 0].max() < right
        assert top < points[:, 1].min() < points[:, 1].max() < bottom
        assert 120 < max(bottom - top, right - left) < 260

    def test_a_box_is_clipped_to_the_picture(self):
        box = box_of_keypoints(Pose(x=0.02, y=0.05, size=0.5).keypoints((400, 300)), (400, 300))
        assert box[:2] == (0, 0)

    def test_a_mask_of_any_size_is_limited(self):
        mask = torch.zeros(1, 7, 9)
        mask[:, :, :5] = 0.5
        limited = within(mask, box_mask((0.25, 0, 1, 0.5)))
        assert limited.shape == (1, 128, 128)
        assert limited[0, :64, 32:64].unique().tolist() == [0.5]
        assert limited[0, 64:].max() == limited[0, :, :32].max() == limited[0, :, 80:].max() == 0


class TestEnhanceNonFaceRegion:
    def test_off_is_the_picture_as_before_to_the_bit(self, instantid, people):
        off, _ = drawn(instantid, people[0], enhance_non_face_region=False)
        assert np.array_equal(off, drawn(instantid, people[0])[0])

    def test_residuals_are_multiplied_by_the_mask_as_in_instantx(self, instantid, people):
        """InstantX's pipeline_stable_diffusion_xl_instantid_full.py: each residual by the mask, resized bilinearly."""
        scene = Scene((256, 128), [Subject(people[0], pose=Pose(x=0.3, size=0.6))])
        _, plain = drawn(instantid, scene)
        _, masked = drawn(instantid, scene, enhance_non_face_region=True)
        (box,) = (one.face_box for one in scene.subjects)
        for before, after in zip(plain.residuals[0], masked.residuals[0], strict=True):
            size = before.shape[-2:]
            mask = torch.nn.functional.interpolate(box_mask(box)[None], size=size, mode="bilinear")
            assert torch.equal(after, before * mask)
        assert 0 < mask.mean() < 1

    def test_the_attention_is_limited_too(self, instantid, people):
        scene = Scene((256, 128), [Subject(people[0], pose=Pose(x=0.3, size=0.6))])
        region = replace_region(scene)
        ours, _ = drawn(instantid, scene, enhance_non_face_region=True, controlnet_conditioning_scale=0.0)
        assert np.array_equal(ours, drawn(instantid, region, controlnet_conditioning_scale=0.0)[0])
        assert not np.array_equal(ours, drawn(instantid, scene, controlnet_conditioning_scale=0.0)[0])

    def test_every_picture_of_a_batch_has_its_own_boxes(self, instantid, people):
        batch = {"enhance_non_face_region": True, "generator": [torch.Generator("cpu").manual_seed(3) for _ in "ab"]}
        run = {"num_inference_steps": 2, "width": 128, "height": 128}
        together = instantid([PROMPT] * 2, [[people[0]], [people[1]]], **batch, **run).images
        for person, image in zip(people, together, strict=True):
            alone = instantid(PROMPT, person, seed=3, enhance_non_face_region=True, **run).images[0]
            assert np.abs(np.asarray(alone).astype(int) - np.asarray(image)).max() <= 2

    def test_a_scene_acts_in_all_of_its_boxes(self, instantid, people):
        scene = Scene((256, 128), people)
        _, seen = drawn(instantid, scene, enhance_non_face_region=True)
        outer = np.abs(seen.residuals[0][0].numpy()).sum(axis=(0, 1))
        columns = np.flatnonzero(outer.sum(axis=0))
        assert columns.min() < 16 < columns.max()
        assert outer.sum(axis=0)[15:17].max() == 0, "nothing acts between the two"

    def test_attached_people_are_limited_until_they_are_detached(self, instantid, people):
        with instantid.attached(people[0], enhance_non_face_region=True), Seen(instantid) as seen:
            instantid.pipe(PROMPT, image=Image.new("RGB", (128, 128), "white"), num_inference_steps=1)
        assert (seen.residuals[0][0][:, :, -1] == 0).all()

    def test_a_face_that_is_nowhere_is_an_error(self, instantid, people):
        blank = Image.new("RGB", (128, 128))
        for given, options, wanted in (
            (people, {}, "where each face is"),
            (instantid.identity(people[0]), {}, "where each face is"),
            (people[0], {"keypoints": blank}, "where each face is"),
        ):
            with pytest.raises(FastInstantIDError, match=wanted):
                instantid(PROMPT, given, enhance_non_face_region=True, **RUN, **options)


def replace_region(scene):
    (one,) = scene.subjects
    return Scene(scene.size, [Subject(one.identity, one.weight, box_mask(one.face_box)[0], one.pose)])


class TestHalves:
    def test_without_keypoints_the_identity_net_does_not_run(self, instantid, people):
        image, seen = drawn(instantid, people[0], keypoints=False)
        assert seen.net_calls == 0
        assert image.shape == drawn(instantid, people[0])[0].shape
        other, _ = drawn(instantid, people[1], keypoints=False)
        assert np.abs(image - other).mean() > 1, "the attention half still draws the person"

    def test_at_scale_0_the_identity_net_acts_alone(self, instantid, people):
        image, seen = drawn(instantid, people[0], scale=0)
        assert seen.net_calls == 2
        other, _ = drawn(instantid, people[1], scale=0, keypoints=keypoints_of(people[0]))
        assert np.abs(image - other).mean() > 0.3, "the IdentityNet reads who it is"

    def test_without_both_there_is_no_person(self, instantid, people):
        none, _ = drawn(instantid, people[0], keypoints=False, scale=0)
        assert np.array_equal(none, drawn(instantid, None)[0])


def keypoints_of(person):
    from fast_instantid.faces import keypoint_picture

    return keypoint_picture(person.face, person.photo_size, (128, 128))
