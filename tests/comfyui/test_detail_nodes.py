"""Small faces as nodes: cut out, drawn by the host's own nodes, and pasted back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from examples.small_faces import crowd
from fast_instantid import miniature
from tests.comfyui import tiny

CUT = {"choose": "largest", "padding": 2.0, "side": 128}


def tensor(*images: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images])).float() / 255


@pytest.fixture(scope="module")
def people():
    return [Image.open(path) for path in miniature.files().portraits[:3]]


@pytest.fixture(scope="module")
def group():
    return tensor(crowd()[0])


@pytest.fixture(scope="module")
def analysis(our_pack):
    analyzer = __import__(f"{our_pack.__name__}.fast_instantid.faces", fromlist=["FaceAnalyzer"]).FaceAnalyzer
    return analyzer.load(miniature.files().pack, device="cpu")


@pytest.fixture
def cut(ours, analysis, group):
    return lambda **inputs: tiny.call(
        ours["InstantIDCropFace"], **({"image": group, "faceanalysis": analysis} | CUT | inputs)
    )


@pytest.fixture
def paste(ours, group):
    return lambda drawn, crop, **inputs: tiny.call(
        ours["InstantIDPasteFace"], **({"image": group, "drawn": drawn, "crop": crop} | inputs)
    )[0]


def middles(mask: torch.Tensor) -> list[int]:
    """The middle column of what a mask ``(B, H, W)`` shows."""
    return [int(np.average(np.arange(one.shape[1]), weights=one.sum(dim=0))) for one in mask]


def places(paste: Any, crop: Any, group: torch.Tensor) -> list[int]:
    """The middle column of each crop in the picture."""
    white = torch.ones(1, 128, 128, 3)
    shown = [paste(white, (one,), image=torch.zeros_like(group))[0, ..., 0] for one in crop]
    return middles(torch.stack(shown))


def test_each_way_to_choose(cut, paste, group, ours, analysis, people):
    everyone = places(paste, cut(choose="all")[3], group)
    assert everyone == sorted(everyone)
    assert np.diff(everyone).min() > 100
    assert places(paste, cut(choose="right to left")[3], group) == everyone[2:]
    assert places(paste, cut(choose="index", index=1)[3], group) == everyone[1:2]
    persons, *_ = tiny.call(
        ours["InstantIDPerson"],
        faceanalysis=analysis,
        image=tensor(*crowd()[1]),
        group="one person per photo",
        choose="largest",
        no_face="error",
        doubtful="keep",
    )["result"]
    assert places(paste, cut(choose="like", like=persons[::-1])[3], group) == everyone[::-1]
    assert places(paste, cut(choose="like", like=persons[1:2])[3], group) == everyone[1:2]
    for like, words in (((), "0 persons in like for 3 faces"), (persons * 2, "6 persons in like for 3 faces")):
        with pytest.raises(Exception, match=words):
            cut(choose="like", like=like)


def test_a_batch_of_crops_and_their_keypoints(cut, group):
    image, mask, keypoints, crop = cut(choose="all", side=192)
    assert image.shape == keypoints.shape == (3, 192, 192, 3)
    assert mask.shape == (3, 192, 192)
    assert (mask[:, 0].max(), mask[:, 96, 96].min()) == (0, 1)
    assert len(crop) == 3
    for one in keypoints:  # upright, and in the middle
        y, x = np.nonzero(one.sum(dim=-1).numpy())
        assert (np.mean([x.min(), x.max()]), np.mean([y.min(), y.max()])) == pytest.approx((96, 96), abs=12)


def test_pasting_changes_the_faces_alone(cut, paste, group):
    image, _, _, crop = cut(choose="all")
    back = paste(image, crop)
    assert (back - group).abs().max() < 0.1
    white = paste(torch.ones_like(image), crop)
    changed = (white != group).any(dim=-1)[0]
    assert 0.05 < changed.float().mean() < 0.5
    assert torch.equal(white[0][~changed], group[0][~changed])
    half = torch.zeros(1, 8, 8)
    half[:, :, :4] = 1
    assert (paste(torch.ones_like(image), crop, mask=half) != group).sum() < changed.sum() * 3 * 0.8


def test_pictures_of_a_batch_each_have_their_own_crop(cut, paste, group):
    both = torch.cat([group, group.flip(2)])
    image, _, _, crop = cut(image=both, choose="left to right")
    assert len(image) == 2
    pasted = paste(torch.ones_like(image), crop, image=both)
    assert (pasted != both).flatten(1).any(dim=1).all()
    upscaled = torch.nn.functional.interpolate(both.permute(0, 3, 1, 2), scale_factor=2).permute(0, 2, 3, 1)
    assert paste(image, crop, image=upscaled).shape == upscaled.shape


def test_bad_input_is_named(cut, paste, group):
    image, _, _, crop = cut(choose="all")
    with pytest.raises(Exception, match="no face found in image"):
        cut(image=torch.zeros(1, 128, 128, 3))
    with pytest.raises(Exception, match="face 7 of 3"):
        cut(choose="index", index=7)
    for drawn, more in ((image[:2], {}), (image, {"mask": torch.ones(2, 8, 8)})):
        with pytest.raises(Exception, match="for 3 crops of 1 pictures: give one for each crop"):
            paste(drawn, crop, **more)
    with pytest.raises(Exception, match="does not fit one of"):
        paste(image, crop, image=group.transpose(1, 2))


def test_the_hosts_own_nodes_draw_a_person_into_the_crop(real_host, ours, cut, paste, group, people):
    """VAE Encode, Set Latent Noise Mask and KSampler of the host: the face becomes that of the person."""
    import nodes

    loaded = tiny.call(ours["InstantIDMiniature"], portrait="person 1")
    model, clip, vae, net, adapter, analysis, portrait = loaded
    found = {"group": "one person", "choose": "largest", "no_face": "error", "doubtful": "keep"}
    person, *_ = tiny.call(ours["InstantIDPerson"], faceanalysis=analysis, image=portrait, **found)["result"]
    image, mask, keypoints, crop = cut(faceanalysis=analysis, padding=1.7, choose="index", index=1)

    def text(words: str) -> Any:
        return tiny.call(nodes.CLIPTextEncode, clip=clip, text=words)[0]

    strengths = {"ip_weight": 0.8, "cn_strength": 0.8, "start_at": 0.0, "end_at": 1.0, "noise": 0.0}
    applied = tiny.call(
        ours["ApplyInstantIDPerson"],
        person=person,
        control_net=net,
        model=model,
        positive=text("flat portrait, hilly green background, red jacket"),
        negative=text(""),
        combine_embeds="average",
        instantid=adapter,
        image_kps=keypoints,
        layers="paper",
        **strengths,
    )
    (latent,) = tiny.call(nodes.VAEEncode, pixels=image, vae=vae)
    (latent,) = tiny.call(nodes.SetLatentNoiseMask, samples=latent, mask=mask)
    (drawn,) = tiny.call(
        nodes.KSampler,
        model=applied[0],
        positive=applied[1],
        negative=applied[2],
        latent_image=latent,
        seed=3,
        steps=8,
        cfg=2.0,
        sampler_name="ddim",
        scheduler="simple",
        denoise=0.9,
    )
    after = paste(tiny.call(nodes.VAEDecode, samples=drawn, vae=vae)[0], crop)

    def alike(picture: torch.Tensor) -> float:
        shown, *_ = tiny.call(
            ours["InstantIDPerson"], faceanalysis=analysis, image=picture, **(found | {"choose": "index"}), index=1
        )["result"]
        return shown[0].likeness(person[0])

    assert alike(after) > alike(group) + 0.2
    changed = (after != group).any(dim=-1)[0].any(dim=0)
    (place,) = places(paste, crop, group)
    assert not changed[: place - 90].any()
    assert not changed[place + 90 :].any()
