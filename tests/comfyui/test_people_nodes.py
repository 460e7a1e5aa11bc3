"""Persons as nodes: found, kept, joined, applied one by one and in a batch, and compared."""

from __future__ import annotations

import stat
from typing import Any

import comfy.sample
import folder_paths
import pytest
import torch

from tests.comfyui import tiny

SAME = 1e-5
"""Of two batches of other sizes, in units of the largest latent."""
FIND = {"group": "one person", "choose": "largest", "no_face": "error", "doubtful": "keep"}
STRENGTHS = {"ip_weight": 0.8, "cn_strength": 0.6, "start_at": 0.0, "end_at": 1.0}


def shown(returned: dict[str, Any]) -> tuple[Any, ...]:
    """The outputs of a node that shows its report."""
    assert returned["ui"]["text"] == [returned["result"][-1]]
    return returned["result"]


@pytest.fixture
def find(ours, faces):
    """``find(image, **inputs)``: person, preview, has_face and report of InstantID Person."""
    return lambda image, **inputs: shown(
        tiny.call(ours["InstantIDPerson"], faceanalysis=faces, image=image, **(FIND | inputs))
    )


@pytest.fixture
def apply(ours, adapter, controlnet, model, positive, negative):
    """``apply(person, **inputs)``: model, positive and negative of Apply InstantID Person."""

    def apply(person: Any, **inputs: Any) -> Any:
        given = {"positive": positive, "negative": negative, "instantid": adapter, "noise": 0.35, **STRENGTHS, **inputs}
        given = {"combine_embeds": "average", "control_net": controlnet, "model": model} | given
        return tiny.call(ours["ApplyInstantIDPerson"], person=person, **given)

    return apply


@pytest.fixture(scope="module")
def blank(portrait):
    return torch.zeros_like(portrait)


@pytest.fixture(autouse=True)
def people_folder(monkeypatch, tmp_path):
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "instantid_people", ([str(tmp_path / "people")], {".safetensors"})
    )
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path / "people"


@torch.inference_mode()
def draw(applied: Any, start: torch.Tensor) -> torch.Tensor:
    model, positive, negative = applied
    zeros = torch.zeros_like(start)
    options = {"disable_pbar": True, "seed": 0}
    return comfy.sample.sample(model, start, 2, 4.5, "euler", "normal", positive, negative, zeros, **options)


class TestFinding:
    def test_one_person_of_several_photographs(self, find, portraits):
        (person,), preview, has_face, report = find(portraits, name="Anna", weights="1, 2 0")
        assert person.name == "Anna"
        assert person.weights.tolist() == [1, 2, 0]
        assert preview.shape == portraits.shape
        assert not torch.equal(preview, portraits)
        assert has_face is True
        assert report.startswith("Anna: 3 photograph(s), alike by ")

    def test_another_person_in_each_photograph(self, find, portraits):
        people, *_ = find(portraits, group="one person per photo", name="Anna")
        assert [one.name for one in people] == ["Anna 1", "Anna 2", "Anna 3"]
        assert [len(one.embeddings) for one in people] == [1, 1, 1]

    def test_all_faces_from_left_to_right(self, find, portrait):
        both = torch.cat([portrait, portrait * 0.9], dim=2)
        people, *_ = find(both, group="all faces")
        lefts = [float(one.face.bbox[0]) for one in people]
        assert len(people) == 2
        assert lefts == sorted(lefts)
        (second,), *_ = find(both, choose="index", index=1)
        assert second.face.bbox.tolist() == people[1].face.bbox.tolist()
        (alike,), *_ = find(both, choose="like", like=people[1:])
        assert alike.face.bbox.tolist() == people[1].face.bbox.tolist()

    def test_photographs_without_a_face(self, find, portrait, blank):
        pictures = torch.cat([portrait, blank, portrait])
        with pytest.raises(Exception, match=r"image\[1\]"):
            find(pictures)
        with pytest.raises(Exception, match=r"image\[1\]"):
            find(pictures, group="one person per photo")
        (person,), _, has_face, report = find(pictures, no_face="skip")
        assert len(person.embeddings) == 2
        assert has_face is True
        assert report.endswith("no face found in image[1]")
        assert [one is None for one in find(pictures, group="one person per photo", no_face="skip")[0]] == [False] * 2
        people, *_ = find(pictures, group="one person per photo", no_face="none")
        assert [one is None for one in people] == [False, True, False]
        people, _, has_face, report = find(blank, no_face="none")
        assert (people, has_face) == ((None,), False)
        assert report == "no person\nno face found in image"

    def test_a_photograph_is_searched_once_by_an_analysis_of_another_pack(self, ours, faces, portraits):
        searched = []

        class Chooser:
            det_model = faces.det_model

            def get(self, image):
                searched.append(image.shape)
                return faces.get(image)

        for number, group in enumerate(("one person", "one person per photo", "all faces"), 1):
            inputs = FIND | {"group": group}
            shown(tiny.call(ours["InstantIDPerson"], faceanalysis=Chooser(), image=portraits, **inputs))
            assert len(searched) == number * len(portraits)

    def test_bad_input_is_named(self, find, portrait):
        with pytest.raises(Exception, match="weights 'many'"):
            find(portrait, weights="many")
        with pytest.raises(Exception, match="2 weights for 1 photographs"):
            find(portrait, weights="1 2")
        with pytest.raises(Exception, match="no person is connected to like"):
            find(portrait, choose="like")
        with pytest.raises(Exception, match="face 3 of 1"):
            find(portrait, choose="index", index=3)


class TestFiles:
    def test_a_saved_person_is_loaded_without_face_models(self, ours, find, portraits, people_folder):
        person, *_ = find(portraits, name="Anna")
        result = tiny.call(ours["InstantIDSavePerson"], person=person, name="", overwrite=False)
        file = people_folder / "Anna.safetensors"
        assert result == {"ui": {"text": [str(file)]}, "result": (person,)}
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        load = ours["InstantIDLoadPerson"]
        assert load.INPUT_TYPES()["required"]["person"][0] == [file.name]
        assert load.VALIDATE_INPUTS(person=file.name) is True
        (loaded,), picture = tiny.call(load, person=file.name)
        assert loaded.embeddings.tolist() == person[0].embeddings.tolist()
        assert picture.shape == (1, 112, 112, 3)
        assert picture.std() > 0
        assert file.name not in str(ours["InstantIDModelLoader"].INPUT_TYPES()), "a person is no adapter"
        before = load.IS_CHANGED(person=file.name)
        tiny.call(ours["InstantIDSavePerson"], person=find(portraits[1:], name="Anna")[0], name="", overwrite=True)
        assert load.IS_CHANGED(person=file.name) != before
        assert "there is no person 'Bob.safetensors'" in load.VALIDATE_INPUTS(person="Bob.safetensors")

    @pytest.mark.parametrize("name", ["a/b", "..", "a\\b", "con", "x?", " ", ".hidden", "a" * 101, "C:x", "end."])
    def test_what_is_no_file_name_is_refused(self, ours, find, portrait, people_folder, name):
        with pytest.raises(Exception, match="cannot be the name of a file"):
            tiny.call(ours["InstantIDSavePerson"], person=find(portrait)[0], name=name, overwrite=True)
        assert not list(people_folder.glob("*"))

    def test_nothing_is_replaced_or_half_written(self, ours, find, portraits, people_folder):
        def save(person: Any, name: str = "") -> None:
            tiny.call(ours["InstantIDSavePerson"], person=person, name=name, overwrite=False)

        (anna,), *_ = find(portraits, name="Anna")
        (bob,), *_ = find(portraits, name="Bob")
        save((bob,))
        written = (people_folder / "Bob.safetensors").read_bytes()
        with pytest.raises(Exception, match=r"Bob is in .* already"):
            save((anna, bob))
        with pytest.raises(Exception, match="2 people, and several are called Anna"):
            save((anna, anna))
        with pytest.raises(Exception, match="no person to save"):
            save((None,))
        assert [file.name for file in people_folder.glob("*")] == ["Bob.safetensors"]
        assert (people_folder / "Bob.safetensors").read_bytes() == written
        save((anna, None, bob), "Team")
        assert sorted(file.stem for file in people_folder.glob("Team*")) == ["Team 1", "Team 2"]

    def test_no_name_leads_out_of_the_folder(self, ours):
        with pytest.raises(Exception, match="there is no person"):
            tiny.call(ours["InstantIDLoadPerson"], person="../../secret.safetensors")


class TestApplying:
    def test_a_person_is_what_the_photograph_is(
        self, ours, find, apply, adapter, faces, portraits, controlnet, model, positive, negative
    ):
        person, *_ = find(portraits)
        old = tiny.call(
            ours["ApplyInstantIDAdvanced"],
            instantid=adapter,
            insightface=faces,
            control_net=controlnet,
            image=portraits,
            model=model,
            positive=positive,
            negative=negative,
            noise=0.35,
            **STRENGTHS,
        )
        start = tiny.noise(1)
        picture = draw(old, start)
        assert torch.equal(draw(apply(person), start), picture)
        (saved,) = tiny.call(ours["InstantIDJoinPeople"], first=person, second=(None,), how="one person")
        assert torch.equal(draw(apply(saved), start), picture)

    @pytest.mark.parametrize("node", ["ApplyInstantID", "ApplyInstantIDAdvanced"])
    def test_the_old_nodes_take_a_person(
        self, ours, find, apply, adapter, faces, portraits, blank, controlnet, model, positive, negative, node
    ):
        person, *_ = find(portraits)
        inputs = {"weight": 0.8} if node == "ApplyInstantID" else {"ip_weight": 0.8, "cn_strength": 0.8, "noise": 0.35}
        inputs |= {"instantid": adapter, "insightface": faces, "control_net": controlnet, "image": blank}
        inputs |= {"model": model, "positive": positive, "negative": negative, "start_at": 0.0, "end_at": 1.0}
        start = tiny.noise(1)
        drawn = draw(tiny.call(ours[node], **inputs, person=person), start)
        assert torch.equal(drawn, draw(apply(person, cn_strength=0.8), start))
        with pytest.raises(Exception, match="No face detected"):
            tiny.call(ours[node], **inputs)
        assert tiny.call(ours[node], **inputs, no_face="none") == (model, positive, negative)

    def test_a_batch_draws_one_picture_of_each(self, find, apply, portraits, blank):
        people, *_ = find(torch.cat([portraits[:2], blank]), group="one person per photo", no_face="none")
        start = tiny.noise(1, batch=3)
        batch = draw(apply(people), start)
        for number, one in enumerate(people[:2]):
            alone = draw(apply((one,)), start[number : number + 1])
            assert tiny.distance(batch[number : number + 1], alone) < SAME
        assert tiny.distance(batch[:1], batch[1:2]) > 0.01
        without = draw(apply(people, cn_strength=0.0), start)[2:]
        plain = draw(apply((None,)), start[2:])
        assert tiny.distance(without, plain) < SAME

    def test_a_longer_batch_begins_again(self, find, apply, portraits):
        people, *_ = find(portraits[:2], group="one person per photo")
        start = tiny.noise(1).expand(5, -1, -1, -1).contiguous()
        batch = draw(apply(people, latent={"samples": start}), start)
        for number in range(2, 5):
            assert tiny.distance(batch[number], batch[number % 2]) < SAME
        shorter = draw(apply(people, latent={"samples": start[:1]}), start[:1])
        assert tiny.distance(shorter, batch[:1]) < SAME

    def test_prompts_differ_in_a_batch(self, find, apply, portraits, positive):
        people, *_ = find(portraits[:2], group="one person per photo")
        other = tiny.conditioning(seed=9)
        both = [[torch.cat([positive[0][0], other[0][0]]), {"pooled_output": positive[0][1]["pooled_output"]}]]
        both[0][1]["pooled_output"] = torch.cat([given[0][1]["pooled_output"] for given in (positive, other)])
        start = tiny.noise(1, batch=2)
        batch = draw(apply(people, positive=both), start)
        assert tiny.distance(batch[1:], draw(apply(people[1:], positive=other), start[1:])) < SAME

    def test_a_kept_identity_needs_no_adapter(self, find, apply, adapter, portrait):
        (person,), *_ = find(portrait)
        with pytest.raises(Exception, match="keeps no identity: connect Load InstantID Model"):
            apply((person,), instantid=None)
        kept = person.with_identity(adapter.identity(person.rows, noise=0.35))
        start = tiny.noise(1)
        assert torch.equal(draw(apply((kept,), instantid=None), start), draw(apply((person,)), start))

    def test_concat_is_for_one_person(self, find, apply, portraits):
        people, *_ = find(portraits[:2], group="one person per photo")
        with pytest.raises(Exception, match="concat cannot draw several people"):
            apply(people, combine_embeds="concat")

    def test_the_latent_gives_the_keypoint_picture_its_size(self, find, apply, portrait):
        person, *_ = find(portrait)
        _, positive, _ = apply(person, latent={"samples": torch.zeros(1, 4, 12, 20)})
        assert positive[0][1]["control"].cond_hint_original.shape[-2:] == (96, 160)

    def test_each_picture_of_a_batch_keeps_to_its_own_face(self, find, apply, portraits, blank):
        people, *_ = find(torch.cat([portraits[:2], blank]), group="one person per photo", no_face="none")
        start, inside = tiny.noise(1, batch=3), {"enhance_non_face_region": True}
        batch = draw(apply(people, **inside), start)
        for number, one in enumerate(people[:2]):
            alone = draw(apply((one,), **inside), start[number : number + 1])
            assert tiny.distance(batch[number : number + 1], alone) < SAME
            assert tiny.distance(alone, draw(apply((one,)), start[number : number + 1])) > 0.001
        plain = draw(apply((None,)), start[2:])
        assert tiny.distance(draw(apply(people, cn_strength=0.0, **inside), start)[2:], plain) < SAME

    def test_a_keypoint_picture_does_not_say_where_the_face_is(self, find, apply, portrait):
        person, *_ = find(portrait)
        with pytest.raises(Exception, match="image_kps does not say where the face is"):
            apply(person, image_kps=portrait, enhance_non_face_region=True)

    def test_without_a_control_net_only_the_attention_acts(self, find, apply, portrait):
        person, *_ = find(portrait)
        start = tiny.noise(1)
        patched, positive, negative = apply(person, control_net=None)
        assert all("control" not in options for _, options in (*positive, *negative))
        assert torch.equal(draw((patched, positive, negative), start), draw(apply(person, cn_strength=0.0), start))


class TestLikeness:
    def test_of_pictures(self, ours, faces, find, portraits, blank):
        person, *_ = find(portraits[:1], name="Anna")
        pictures = torch.cat([blank, portraits])
        options = {"shown": "one person each", "at_least": 0.3, "faceanalysis": faces}
        image, best, is_alike, report = shown(
            tiny.call(ours["InstantIDLikeness"], person=person, image=pictures, **options)
        )
        lines = report.splitlines()
        assert torch.equal(image[0], portraits[0])
        assert torch.equal(image[-1], blank[0])
        assert best == pytest.approx(1, abs=1e-5)
        assert is_alike is True
        assert lines[0] == "image[1]: Anna 1.00 (strong)"
        assert lines[-1] == "image[0]: Anna no face"
        values = [float(line.split()[2]) for line in lines[:-1]]
        assert values == sorted(values, reverse=True)
        nobody = shown(tiny.call(ours["InstantIDLikeness"], person=person, image=blank, **options))
        assert nobody[1] != nobody[1]
        assert nobody[2] is False

    def test_of_persons(self, ours, find, portraits):
        (anna,), *_ = find(portraits[:1], name="Anna")
        (bob,), *_ = find(portraits[1:2], name="Bob")
        options = {"shown": "one person each", "at_least": 0.0}
        _, likeness, _, report = shown(
            tiny.call(ours["InstantIDLikeness"], person=(anna,), other=(bob, anna), **options)
        )
        assert likeness == pytest.approx(1, abs=1e-5)
        assert report.splitlines()[0].startswith(f"Anna and Bob: {anna.likeness(bob):.2f} (")
        with pytest.raises(Exception, match="nothing to compare"):
            tiny.call(ours["InstantIDLikeness"], person=(anna,), **options)
        with pytest.raises(Exception, match="no person to compare"):
            tiny.call(ours["InstantIDLikeness"], person=(anna,), other=(None,), **options)
