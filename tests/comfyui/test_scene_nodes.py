"""Scenes as nodes: poses, and several persons in one picture with one IdentityNet."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from tests.comfyui import tiny
from tests.comfyui.operations import Counts
from tests.comfyui.test_composition import bytes_held
from tests.comfyui.test_people_nodes import STRENGTHS, draw, find  # noqa: F401  # a fixture

LATENT = {"samples": torch.zeros(1, 4, 16, 24)}
SIZE = (192, 128)
PLACE = {"angle": "front", "x": 0.5, "y": 0.42, "size": 0.45, "yaw": 0.0, "pitch": 0.0, "roll": 0.0}


@pytest.fixture
def two(find, portraits):  # noqa: F811
    return find(portraits[:2], group="one person per photo")[0]


@pytest.fixture
def apply(ours, adapter, controlnet, model, positive, negative):
    """``apply(person, **inputs)``: the outputs of Apply InstantID Scene."""

    def apply(person: Any, **inputs: Any) -> Any:
        given = {"positive": positive, "negative": negative, "instantid": adapter, "noise": 0.35, **STRENGTHS}
        given |= {"combine_embeds": "average", "control_net": controlnet, "model": model, "latent": LATENT}
        return tiny.call(ours["ApplyInstantIDScene"], person=person, pairing="left to right", **(given | inputs))

    return apply


@pytest.fixture
def pose(ours):
    return lambda **inputs: tiny.call(ours["InstantIDPose"], latent=LATENT, **(PLACE | inputs))


def patched_regions(model: Any) -> torch.Tensor:
    """The mask of the first person."""
    patch = model.model_options["transformer_options"]["patches_replace"]["attn2"][("input", 4, 0)]
    return patch.kwargs[0]["face"].strength.mask


class TestPose:
    def test_poses_are_chained_and_drawn(self, pose):
        poses, picture = pose(x=0.25, angle="right", yaw=10.0)
        assert (poses[0].x, poses[0].yaw) == (0.25, 50)
        assert picture.shape == (1, 128, 192, 3)
        both, drawn = pose(before=poses, x=0.75)
        assert both[:1] == poses
        assert torch.equal(drawn[:, :, :80], picture[:, :, :80])
        assert drawn[:, :, 112:].sum() > 0
        assert picture[:, :, 112:].sum() == 0

    def test_jitter_is_the_same_for_a_seed(self, pose):
        plain, again, other = (pose(jitter=8.0, jitter_seed=seed)[0] for seed in (1, 1, 2))
        assert plain == again
        assert plain != other
        assert plain != pose()[0] == pose(jitter_seed=5)[0]

    def test_an_angle_stays_in_its_range(self, pose):
        ((placed,), _) = pose(angle="right", yaw=90.0)
        assert placed.yaw == 90


class TestScene:
    def test_one_identity_net_sees_all_persons(self, apply, two):
        patched, positive, negative, keypoints = apply(two)
        nets = {id(options["control"]) for _, options in (*positive, *negative)}
        assert len(nets) == 1
        assert positive[0][1]["control"].previous_controlnet is None
        for (_, options), width in ((positive[0], 32), (negative[0], 32)):
            assert options["cross_attn_controlnet"].shape[:2] == (1, width)
            assert "mask" not in options
        assert keypoints.shape == (1, 128, 192, 3)
        assert keypoints[:, :, :96].sum() > 0
        assert keypoints[:, :, 96:].sum() > 0
        patch = patched.model_options["transformer_options"]["patches_replace"]["attn2"][("input", 4, 0)]
        assert len(patch.callback) == 2

    def test_the_attention_is_that_of_a_chain_with_masks(
        self, ours, apply, two, adapter, faces, portraits, model, positive, negative
    ):
        masks = torch.zeros(2, 16, 24)
        masks[0, :, :12] = masks[1, :, 12:] = 1
        start = tiny.noise(1, height=128, width=192)
        scene = draw(apply(two, regions=masks, cn_strength=0.0)[:3], start)
        chained = model
        for number in range(2):
            inputs = {"instantid": adapter, "insightface": faces, "control_net": None, "image": portraits[number][None]}
            inputs |= {**STRENGTHS, "cn_strength": 0.0, "mask": masks[number], "noise": 0.35}
            chained, *_ = tiny.call(
                ours["ApplyInstantIDAdvanced"], model=chained, positive=positive, negative=negative, **inputs
            )
        assert torch.equal(scene, draw((chained, positive, negative), start))

    def test_swapping_two_persons_changes_the_picture_and_their_weights_act(self, apply, two):
        start = tiny.noise(1, height=128, width=192)
        picture = draw(apply(two)[:3], start)
        assert tiny.distance(draw(apply(two[::-1])[:3], start), picture) > 0.01
        assert tiny.distance(draw(apply(two, ip_weight=0.0)[:3], start), picture) > 0.01

    def test_poses_give_the_places(self, apply, two, pose):
        left, _ = pose(x=0.2, size=0.3)
        both, drawn = pose(before=left, x=0.8, size=0.3)
        assert torch.equal(apply(two, pose=both)[3], drawn)
        with pytest.raises(Exception, match="1 poses for 2 persons: give one InstantID Pose for each"):
            apply(two, pose=left)

    def test_the_faces_of_a_picture_give_the_places(self, apply, two, faces, portraits):
        picture = torch.cat([portraits[:1], portraits[1:2]], dim=2)
        keypoints = apply(two, pose_image=picture, faceanalysis=faces)[3]
        assert np.count_nonzero(keypoints[:, :, :96]) > 100
        assert np.count_nonzero(keypoints[:, :, 96:]) > 100
        crossed = apply(two, pose_image=picture, faceanalysis=faces, face_numbers="1, 0")
        assert torch.equal(crossed[3], keypoints)
        assert not torch.equal(
            patched_regions(crossed[0]), patched_regions(apply(two, pose_image=picture, faceanalysis=faces)[0])
        )
        with pytest.raises(Exception, match="faces 1 1 for 2 people, of 2 there"):
            apply(two, pose_image=picture, faceanalysis=faces, face_numbers="1 1")
        with pytest.raises(Exception, match="face_numbers 'left': expected whole numbers"):
            apply(two, pose_image=picture, faceanalysis=faces, face_numbers="left")
        with pytest.raises(Exception, match="1 faces for 2 people"):
            apply(two, pose_image=portraits[:1], faceanalysis=faces)
        with pytest.raises(Exception, match="pose_image without faceanalysis"):
            apply(two, pose_image=picture)

    def test_what_is_no_scene_is_refused(self, apply, two):
        with pytest.raises(Exception, match="a scene of nobody"):
            apply(())
        with pytest.raises(Exception, match="with a person that was not found"):
            apply((two[0], None))
        with pytest.raises(Exception, match="3 masks in regions for 2 persons"):
            apply(two, regions=torch.ones(3, 8, 8))
        with pytest.raises(Exception, match="the region of person 1 is empty"):
            apply(two, regions=torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]))
        with pytest.raises(Exception, match="a region holds values"):
            apply(two, regions=torch.full((2, 8, 8), 255.0))


class TestEnhanceNonFaceRegion:
    def test_off_changes_nothing(self, apply, two):
        start = tiny.noise(1, height=128, width=192)
        plain = draw(apply(two)[:3], start)
        assert torch.equal(draw(apply(two, enhance_non_face_region=False)[:3], start), plain)
        assert tiny.distance(draw(apply(two, enhance_non_face_region=True)[:3], start), plain) > 0.01

    def test_residuals_are_multiplied_by_the_faces_boxes(self, apply, two, pose):
        poses, _ = pose(x=0.25, size=0.3)
        control = apply(two[:1], pose=poses, enhance_non_face_region=True)[1][0][1]["control"]
        control.chunks = 2
        ones = {"input": [torch.ones(2, 4, 16, 24), torch.ones(2, 4, 8, 12)], "middle": [torch.ones(2, 4, 8, 12)]}
        merged = control.control_merge(ones | {"output": []}, None, None)
        for residual in (*merged["input"], *merged["middle"]):
            acts, half = residual / control.strength, residual.shape[-1] // 2
            assert acts[..., :half].amax() == 1
            assert acts[..., half + 1 :].abs().amax() == 0
            assert torch.equal(acts[0], acts[1])

    def test_without_the_attention_the_identity_net_still_differs(self, apply, two):
        start, alone = tiny.noise(1, height=128, width=192), {"ip_weight": 0.0}
        pictures = [draw(apply(two, enhance_non_face_region=on, **alone)[:3], start) for on in (False, True)]
        assert tiny.distance(*pictures) > 0.001

    def test_a_copy_keeps_it_and_the_original_has_none(self, apply, two, controlnet):
        control = apply(two, enhance_non_face_region=True)[1][0][1]["control"]
        copy = control.copy()
        assert type(copy) is type(control)
        assert torch.equal(copy.masks, control.masks)
        assert isinstance(copy, type(controlnet))
        assert not hasattr(controlnet, "masks")


def test_without_a_control_net_the_conditioning_has_none(apply, two):
    _, positive, negative, _ = apply(two, control_net=None)
    assert all("control" not in options for _, options in (*positive, *negative))


class TestCounts:
    """What a scene adds to the sampling, however many persons there are."""

    @pytest.fixture
    def three(self, find, portraits):  # noqa: F811
        return find(portraits[:3], group="one person per photo")[0]

    def added(self, applied: Any, plain: Any) -> Counter[str]:
        def counts(model: Any, positive: Any, negative: Any, steps: int) -> Counter[str]:
            with Counts() as counted:
                tiny.sample(model, positive, negative, steps=steps, width=192)
            return counted.calls

        for given in (applied, plain):
            counts(*given, 1)  # what is kept is made here
        one_more = [counts(*given, 3) - counts(*given, 2) for given in (applied, plain)]
        return one_more[0] - one_more[1]

    @pytest.mark.parametrize("number", [1, 3])
    def test_an_attention_and_a_sum_for_each_layer_and_person(self, apply, three, model, positive, negative, number):
        masks = torch.rand(number, 16, 24)
        patched, *_ = apply(three[:number], regions=masks, layers="paper")
        added = self.added((patched, positive, negative), (model, positive, negative))
        assert sum(calls for name, calls in added.items() if "scaled_dot_product" in name) == 70 * number
        assert added["addcmul"] == 70 * number
        for name in ("_local_scalar_dense", "repeat", "cat", "stack", "copy_", "mm", "addmm", "bmm", "linear", "add"):
            assert added[name] == 0, name

    def test_one_unet_and_one_identity_net_a_step(self, apply, three):
        applied = apply(three)[:3]
        unet, net = applied[0].model.diffusion_model, applied[1][0][1]["control"].control_model
        calls: list[str] = []
        hooks = [
            module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
            for name, module in (("unet", unet), ("net", net))
        ]
        tiny.sample(*applied, steps=3, width=192)
        for hook in hooks:
            hook.remove()
        assert (calls.count("unet"), calls.count("net")) == (3, 3)

    def test_a_person_more_is_a_bank_more(self, apply, three):
        held = [bytes_held(apply(three[:number], layers="paper")[0]) for number in (1, 2, 3)]
        bank = 2 * 2 * 16 * 4 * sum(tiny.LAYER_CHANNELS)  # cond and uncond, 16 tokens, float32
        masks = 16 * 24 * 4
        assert held[1] - held[0] == pytest.approx(bank, abs=2 * masks + 64)
        assert held[2] - held[1] == pytest.approx(bank, abs=masks + 64)
