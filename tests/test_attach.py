"""Attached and detached: the person travels with the call, and nothing that happens meanwhile is ignored in silence."""

from __future__ import annotations

import asyncio
import copy
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context

import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    TextToVideoZeroSDXLPipeline,
)
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from PIL import Image

from fast_instantid.errors import BackendError, FastInstantIDError, ModelFileError
from fast_instantid.pipelines import Approximations, InstantID, Subject, attachment
from fast_instantid.pipelines.drawing import Drawing, drawing_of
from fast_instantid.pipelines.halves import IdentityNetHalf, UNetHalf
from tests.adversity import interrupts
from tests.tiny_pipelines import (
    KEYPOINTS,
    SIZE,
    assert_unchanged,
    load_tiny_ip_adapter,
    make,
    picture,
    sample,
    state_of,
)

pytest_plugins = ["tests.tiny_pipelines"]


@pytest.fixture
def plain_pipe(components):
    return make(StableDiffusionXLPipeline, components)


def alone(pipe, identity, **arguments):
    with InstantID(pipe).attached(identity):
        return sample(pipe, **arguments)


def at_once(*calls):
    """Results of calls that all begin before any ends, each in a thread of its own."""
    barrier = threading.Barrier(len(calls))

    def run(call):
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(run, call) for call in calls]]


class TestThreads:
    def test_one_pipeline_draws_each_threads_own_person(self, pipe, identity, someone_else):
        wanted = [alone(pipe, identity), alone(pipe, someone_else)]
        before = state_of(pipe)
        for _ in range(2):
            found = at_once(lambda: alone(pipe, identity), lambda: alone(pipe, someone_else))
            assert all(map(torch.equal, found, wanted))
        assert_unchanged(pipe, before)
        assert type(pipe) is StableDiffusionXLControlNetPipeline

    def test_one_object_in_two_threads(self, pipe, identity, someone_else):
        wanted = [alone(pipe, identity), alone(pipe, someone_else)]
        instantid = InstantID(pipe)

        def draw(person):
            instantid.attach(person)
            try:
                return sample(pipe)
            finally:
                instantid.detach()

        found = at_once(lambda: draw(identity), lambda: draw(someone_else))
        assert all(map(torch.equal, found, wanted))

    @pytest.mark.parametrize("own_scheduler", [False, True])
    def test_two_pipelines_that_share_a_unet(self, components, nets, identity, someone_else, own_scheduler):
        first = make(StableDiffusionXLControlNetPipeline, components, controlnet=nets[0])
        parts = components | {"scheduler": copy.deepcopy(components["scheduler"])} if own_scheduler else components
        second = make(StableDiffusionXLPipeline, parts)
        size = {"height": SIZE, "width": SIZE}
        wanted = [alone(first, identity), alone(second, someone_else, **size)]
        found = at_once(lambda: alone(first, identity), lambda: alone(second, someone_else, **size))
        assert all(map(torch.equal, found, wanted))

    def test_a_pipeline_without_anybody_beside_one_with(self, components, identity):
        first = make(StableDiffusionXLPipeline, components)
        # A call sets the padding of its tokenizers, which threads must not share (transformers).
        own = {name: copy.deepcopy(components[name]) for name in ("scheduler", "tokenizer", "tokenizer_2")}
        second = make(StableDiffusionXLPipeline, components | own)
        size = {"height": SIZE, "width": SIZE}
        plain, wanted = sample(second, **size), alone(first, identity, **size)
        found = at_once(lambda: alone(first, identity, **size), lambda: sample(second, **size))
        assert all(map(torch.equal, found, [wanted, plain]))

    def test_a_block_is_not_for_other_threads(self, pipe, identity):
        with (
            InstantID(pipe).attached(identity),
            ThreadPoolExecutor(1) as other,
            pytest.raises(BackendError, match="another thread"),
        ):
            other.submit(sample, pipe).result()

    def test_what_is_attached_for_good_is_for_all_threads(self, pipe, identity, someone_else):
        wanted = alone(pipe, identity)
        instantid = InstantID(pipe)
        instantid.attach(identity)
        with ThreadPoolExecutor(1) as other:
            assert torch.equal(other.submit(sample, pipe).result(), wanted)
            other.submit(instantid.attach, someone_else).result()
            assert torch.equal(sample(pipe), wanted), "this thread's own person"
            other.submit(instantid.detach).result()
        instantid.detach()
        assert type(pipe) is StableDiffusionXLControlNetPipeline

    def test_one_thread_cannot_detach_what_another_draws(self, pipe, identity, someone_else):
        wanted, plain, instantid = alone(pipe, identity), sample(pipe), InstantID(pipe)
        with ThreadPoolExecutor(1) as other, ThreadPoolExecutor(1) as third:
            other.submit(instantid.attach, identity).result()
            assert torch.equal(sample(pipe), wanted)
            instantid.detach()
            with pytest.raises(BackendError, match="another thread or task"):
                sample(pipe)
            assert torch.equal(other.submit(sample, pipe).result(), wanted)
            instantid.attach(someone_else)
            other.submit(instantid.attach, identity).result()
            with pytest.raises(BackendError, match="another thread or task"):
                third.submit(sample, pipe).result()  # for all, but which?
            instantid.detach()
            assert torch.equal(third.submit(sample, pipe).result(), wanted)
            other.submit(instantid.detach).result()
            assert torch.equal(sample(pipe), plain)
        assert type(pipe) is StableDiffusionXLControlNetPipeline

    def test_the_thread_that_attached_is_over(self, pipe, identity, someone_else):
        """A notebook's cells and ``asyncio.to_thread`` work in contexts that end with them."""
        wanted, plain, instantid = [alone(pipe, identity), alone(pipe, someone_else)], sample(pipe), InstantID(pipe)
        cell = copy_context().run
        cell(instantid.attach, identity)
        assert torch.equal(cell(sample, pipe), wanted[0])
        cell(instantid.attach, someone_else)
        assert torch.equal(cell(sample, pipe), wanted[1])
        del cell
        again = InstantID(pipe)
        copy_context().run(again.attach, identity)
        assert torch.equal(copy_context().run(sample, pipe), wanted[0])
        copy_context().run(again.detach)
        assert torch.equal(copy_context().run(sample, pipe), wanted[1])
        copy_context().run(instantid.detach)
        assert torch.equal(sample(pipe), plain)
        assert type(pipe) is StableDiffusionXLControlNetPipeline

    def test_a_copy_of_a_context_outlives_the_block(self, pipe, identity):
        """A task that is started in a block and draws after it, and a task that detaches its parent's people."""
        wanted, plain, instantid = alone(pipe, identity), sample(pipe), InstantID(pipe)
        with instantid.attached(identity):
            inner = copy_context()
            assert torch.equal(inner.run(sample, pipe), wanted)
        with pytest.raises(BackendError, match="were detached"):
            inner.run(sample, pipe)
        assert torch.equal(sample(pipe), plain)
        inner.run(instantid.detach)
        assert torch.equal(inner.run(sample, pipe), plain)
        instantid.attach(identity)
        copy_context().run(instantid.detach)
        with pytest.raises(BackendError, match="were detached"):
            sample(pipe)
        with pytest.raises(BackendError, match="were detached"):
            instantid.scale = 0.5
        instantid.attach(identity)
        assert torch.equal(sample(pipe), wanted)
        instantid.detach()
        assert torch.equal(sample(pipe), plain)
        assert type(pipe) is StableDiffusionXLControlNetPipeline

    def test_tasks_that_inherit_a_person(self, pipe, identity, someone_else):
        wanted, instantid = alone(pipe, someone_else), InstantID(pipe)

        async def other():
            instantid.attach(someone_else)  # in place of the one that both tasks inherit
            found = sample(pipe)
            await asyncio.sleep(0)
            instantid.detach()
            return found

        async def both():
            instantid.attach(identity)
            task = asyncio.create_task(other())
            await asyncio.sleep(0)
            with pytest.raises(BackendError, match="were detached"):
                sample(pipe)
            return await task

        assert torch.equal(asyncio.run(both()), wanted)

    def test_tasks_of_one_thread_with_two_objects(self, pipe, identity, someone_else):
        objects = InstantID(pipe), InstantID(pipe)

        async def attach(instantid, person, done):
            instantid.attach(person)
            await done.wait()

        async def three():
            done = asyncio.Event()
            tasks = [
                asyncio.create_task(attach(*what, done)) for what in zip(objects, (identity, someone_else), strict=True)
            ]
            await asyncio.sleep(0)
            with pytest.raises(BackendError, match="another thread or task"):
                sample(pipe)
            done.set()
            await asyncio.gather(*tasks)

        asyncio.run(three())
        for instantid in objects:
            instantid.detach()
        assert type(pipe) is StableDiffusionXLControlNetPipeline

    def test_detached_by_another_thread_while_it_draws(self, pipe, identity):
        instantid = InstantID(pipe)
        instantid.attach(identity)

        def end(pipe, step, timestep, tensors):
            with ThreadPoolExecutor(1) as other:
                other.submit(copy_context().run, instantid.detach).result()
            return tensors

        with pytest.raises(BackendError, match="were detached"):
            sample(pipe, callback_on_step_end=end)
        instantid.detach()
        assert type(pipe) is StableDiffusionXLControlNetPipeline

    def test_blocks_that_end_out_of_order(self, pipe, identity, someone_else):
        wanted, plain = alone(pipe, someone_else), sample(pipe)

        def generator():
            with InstantID(pipe).attached(identity):
                yield

        with InstantID(pipe).attached(someone_else):
            suspended = generator()
            next(suspended)
            suspended.close()
            assert torch.equal(sample(pipe), wanted)
        outer, inner = ExitStack(), ExitStack()
        outer.enter_context(InstantID(pipe).attached(identity))
        inner.enter_context(InstantID(pipe).attached(someone_else))
        outer.close()
        assert torch.equal(sample(pipe), wanted)
        inner.close()
        assert torch.equal(sample(pipe), plain)
        assert type(pipe) is StableDiffusionXLControlNetPipeline

    def test_tasks_of_one_event_loop(self, pipe, identity, someone_else):
        wanted = [alone(pipe, identity), alone(pipe, someone_else)]

        async def draw(person):
            with InstantID(pipe).attached(person):
                await asyncio.sleep(0)
                return await asyncio.to_thread(sample, pipe)

        async def both():
            return await asyncio.gather(draw(identity), draw(someone_else))

        assert all(map(torch.equal, asyncio.run(both()), wanted))


class TestNesting:
    def test_the_outer_person_draws_again(self, pipe, identity, someone_else):
        wanted, before = [alone(pipe, identity), alone(pipe, someone_else)], state_of(pipe)
        with InstantID(pipe).attached(identity):
            with InstantID(pipe).attached(someone_else):
                assert torch.equal(sample(pipe), wanted[1])
            assert torch.equal(sample(pipe), wanted[0])
        assert_unchanged(pipe, before)

    def test_of_one_object(self, pipe, identity, someone_else):
        wanted, instantid = [alone(pipe, identity), alone(pipe, someone_else)], InstantID(pipe)
        instantid.attach(identity)
        with instantid.attached(someone_else):
            assert torch.equal(sample(pipe), wanted[1])
        assert torch.equal(sample(pipe), wanted[0])
        instantid.detach()

    def test_a_pipeline_dropped_while_attached_is_freed(self, files, identity):
        pipe = make(StableDiffusionXLPipeline, StableDiffusionXLPipeline.from_pretrained(files.base).components)
        instantid = InstantID(pipe)
        instantid.attach(identity)
        sample(pipe, height=SIZE, width=SIZE)
        unet = weakref.ref(pipe.unet)
        del pipe, instantid
        gc.collect()
        assert unet() is None


class TestScale:
    def test_it_changes_while_attached(self, pipe, identity, someone_else):
        instantid = InstantID(pipe)
        with instantid.attached(identity, scale=0.3):
            wanted = sample(pipe)
        with instantid.attached(identity):
            assert instantid.scale == 0.8
            instantid.scale = 0.3
            assert torch.equal(sample(pipe), wanted)
            instantid.scale = 0
            assert torch.equal(sample(pipe, scale=0.0), sample_without(pipe))
        people = [Subject(identity, 0.2), Subject(someone_else, 0.9)]
        with instantid.attached(people):
            wanted = sample(pipe)
        with instantid.attached([identity, someone_else]):
            instantid.scale = [0.2, 0.9]
            assert instantid.scale == [0.2, 0.9]
            assert torch.equal(sample(pipe), wanted)
        with instantid.attached([identity, someone_else], scale=[0.2, 0.9]):
            assert torch.equal(sample(pipe), wanted)

    def test_between_two_steps(self, plain_pipe, identity):
        size = {"height": SIZE, "width": SIZE, "steps": 3}
        instantid = InstantID(plain_pipe)

        def louder(pipe, step, timestep, tensors):
            instantid.scale = 0.8
            return tensors

        with instantid.attached(identity, scale=0.0):
            changed = sample(plain_pipe, callback_on_step_end=louder, **size)
        with instantid.attached(identity, approximations=Approximations(identity_range=(0.3, 1))):
            assert torch.equal(changed, sample(plain_pipe, **size))

    @pytest.mark.parametrize("scale", [-0.1, float("nan"), 6, [0.1, 0.2], "much"])
    def test_what_is_no_scale_is_refused(self, pipe, identity, scale):
        instantid = InstantID(pipe)
        with pytest.raises(FastInstantIDError, match="no person is attached"):
            instantid.scale = 1.0
        with instantid.attached(identity), pytest.raises(FastInstantIDError):
            instantid.scale = scale


def sample_without(pipe):
    """With the tokens in the IdentityNet, which does not act, and nobody in the attention."""
    return sample(pipe, scale=0.0)


class TestWhichIdentityNet:
    def test_none_leaves_the_controlnet_alone(self, pipe, identity):
        with InstantID(pipe, identity_net=None).attached(identity, scale=0.0):
            attention_off = sample(pipe)
        assert torch.equal(attention_off, sample(pipe))

    def test_the_model_itself(self, components, nets, identity):
        pipe = make(StableDiffusionXLControlNetPipeline, components, controlnet=nets)
        pictures = {"image": [KEYPOINTS, picture(3)]}
        with InstantID(pipe, identity_net=1).attached(identity):
            wanted = sample(pipe, **pictures)
        with InstantID(pipe, identity_net=nets[1]).attached(identity):
            assert torch.equal(sample(pipe, **pictures), wanted)

    def test_one_that_cannot_be_told_is_left_alone_and_that_is_said(self, components, nets, identity, caplog):
        pipe = make(StableDiffusionXLControlNetPipeline, components, controlnet=nets[1])  # from a folder "other"
        plain = sample(pipe)
        with InstantID(pipe).attached(identity, scale=0.0):
            assert torch.equal(sample(pipe), plain)
        assert "left alone" in caplog.text
        assert "other" in caplog.text
        caplog.clear()
        with InstantID(pipe, identity_net=0).attached(identity):
            assert not torch.equal(sample(pipe), plain)
        assert not caplog.text

    def test_one_of_two_is_told_by_its_name(self, components, nets):
        pipe = make(StableDiffusionXLControlNetPipeline, components, controlnet=[nets[1], nets[0]])
        assert InstantID(pipe).networks()[1] is nets[0]

    @pytest.mark.parametrize("which", [2, -1, "depth", 1.5, True])
    def test_what_it_has_not_is_refused(self, pipe, which):
        with pytest.raises(BackendError):
            InstantID(pipe, identity_net=which)

    def test_a_controlnet_union_works_beside_it(self, components, identity, caplog):
        union = ControlNetUnionModel.from_unet(components["unet"])
        width = union.config.block_out_channels[0]
        union = ControlNetUnionModel.from_config(
            union.config, num_trans_channel=width, num_proj_channel=width, num_trans_head=2
        )
        pipe = make(StableDiffusionXLControlNetUnionPipeline, components, controlnet=union)

        plain = draw_union(pipe)
        instantid = InstantID(pipe)
        with instantid.attached(identity, scale=0.0):
            assert torch.equal(draw_union(pipe), plain)
        with instantid.attached(identity):
            assert (draw_union(pipe) - plain).abs().max() > 1e-2
        with pytest.raises(BackendError, match="ControlNetUnionModel"):
            InstantID(pipe, identity_net=0)


def draw_union(pipe):
    return pipe(
        "a man",
        control_image=[KEYPOINTS],
        control_mode=[0],
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images


class TestRefused:
    @pytest.mark.parametrize("pipeline", [StableDiffusionXLInstructPix2PixPipeline, TextToVideoZeroSDXLPipeline])
    def test_pipelines_that_make_up_batches_of_their_own(self, components, pipeline):
        parts = {name: part for name, part in components.items() if name not in ("feature_extractor", "image_encoder")}
        with pytest.raises(BackendError, match=pipeline.__name__):
            InstantID(pipeline(**parts))

    def test_another_kind_of_unet(self, components):
        pipe = make(StableDiffusionXLPipeline, components)
        pipe.unet = ControlNetModel.from_unet(components["unet"])
        with pytest.raises(BackendError, match=r"StableDiffusionXLPipeline has a ControlNetModel"):
            InstantID(pipe)

    def test_arguments_of_instantx_are_warned_of(self, pipe, identity):
        with InstantID(pipe).attached(identity), pytest.warns(UserWarning, match="image_embeds= of InstantX"):
            sample(pipe, image_embeds=torch.zeros(1, 512))
        with InstantID(pipe).attached(identity), pytest.warns(UserWarning, match="ip_adapter_scale=") as said:
            sample(pipe, ip_adapter_scale=0.5)
        assert said[0].filename == sample.__code__.co_filename
        with pytest.warns(UserWarning, match="ip_adapter_scale=") as said:
            InstantID(pipe)("a man", identity, keypoints=KEYPOINTS, ip_adapter_scale=0.5, num_inference_steps=1)
        assert said[0].filename == __file__


class TestChangesInTheBlock:
    """Each does what it does without InstantID, and the person is drawn all the same."""

    def test_an_ip_adapter_is_loaded_scaled_and_unloaded(self, own_pipe, identity):
        instantid = InstantID(own_pipe)
        arguments = load_tiny_ip_adapter(own_pipe.unet)
        own_pipe.set_ip_adapter_scale(0.3)
        with instantid.attached(identity):
            wanted = sample(own_pipe, **arguments)
        own_pipe.unload_ip_adapter()
        with instantid.attached(identity):
            without = sample(own_pipe)
            load_tiny_ip_adapter(own_pipe.unet)
            loud = sample(own_pipe, **arguments)
            own_pipe.set_ip_adapter_scale(0.3)
            assert torch.equal(sample(own_pipe, **arguments), wanted)
            own_pipe.unload_ip_adapter()
            assert torch.equal(sample(own_pipe), without)
        assert (loud - wanted).abs().max() > 1e-3

    def test_attention_slicing(self, own_pipe, identity):
        with InstantID(own_pipe).attached(identity):
            wanted = sample(own_pipe)
            own_pipe.enable_attention_slicing(1)
            torch.testing.assert_close(sample(own_pipe), wanted, rtol=0, atol=1e-4)
        kinds = {type(processor) for processor in own_pipe.unet.attn_processors.values()}
        assert kinds == {SlicedAttnProcessor}

    def test_fused_projections(self, own_pipe, identity):
        with InstantID(own_pipe).attached(identity):
            wanted = sample(own_pipe)
            own_pipe.unet.fuse_qkv_projections()
            torch.testing.assert_close(sample(own_pipe), wanted, rtol=0, atol=1e-4)
            own_pipe.unet.unfuse_qkv_projections()

    def test_processors_of_the_users_own(self, own_pipe, identity):
        with InstantID(own_pipe).attached(identity):
            wanted = sample(own_pipe)
            own_pipe.unet.set_attn_processor(AttnProcessor())
            torch.testing.assert_close(sample(own_pipe), wanted, rtol=0, atol=1e-4)

    def test_another_unet(self, own_pipe, components, identity):
        first, before = own_pipe.unet, state_of(own_pipe)
        other = copy.deepcopy(components["unet"])
        with torch.no_grad():
            other.conv_out.bias.add_(0.5)
        with InstantID(own_pipe).attached(identity):
            drawn = sample(own_pipe)
            own_pipe.unet = other
            changed = sample(own_pipe)
            own_pipe.unet = first
            assert torch.equal(sample(own_pipe), drawn)
            own_pipe.unet = other
        own_pipe.unet = first
        assert_unchanged(own_pipe, before)
        own_pipe.unet = other
        assert torch.equal(alone(own_pipe, identity), changed)
        assert "forward" not in vars(other)

    def test_a_deep_copy_runs_its_own_networks(self, own_pipe, identity):
        plain = sample(own_pipe)
        with InstantID(own_pipe).attached(identity):
            net = copy.deepcopy(own_pipe.controlnet)
            with torch.no_grad():
                net.controlnet_mid_block.bias.add_(1.0)
            unet = copy.deepcopy(own_pipe.unet)
        own_pipe.controlnet = net
        assert (sample(own_pipe) - plain).abs().max() > 1e-2
        own_pipe.unet = unet
        changed = sample(own_pipe)
        with torch.no_grad():
            unet.conv_out.bias.add_(1.0)
        assert (sample(own_pipe) - changed).abs().max() > 1e-2

    @pytest.mark.parametrize("pipeline", [StableDiffusionXLInpaintPipeline, StableDiffusionXLControlNetInpaintPipeline])
    def test_a_region_moves_with_the_part_that_is_painted(self, components, nets, identity, pipeline):
        """``padding_mask_crop`` draws a part of the picture at full size: the region is cropped as the picture is."""
        more = {} if pipeline is StableDiffusionXLInpaintPipeline else {"controlnet": nets[0]}
        pipe = make(pipeline, components, **more)
        mask = Image.new("L", (SIZE, SIZE))
        mask.paste(255, (8, 8, 56, 56))
        arguments = {"image": picture(1), "mask_image": mask, "strength": 0.99, "padding_mask_crop": 4}
        if more:
            arguments["control_image"] = KEYPOINTS
        corner = torch.zeros(SIZE, SIZE)
        corner[: SIZE // 2, : SIZE // 2] = 1
        call = {"num_inference_steps": 2, "output_type": "pil", "height": SIZE, "width": SIZE}

        def draw(who):
            with InstantID(pipe).attached(who):
                generator = torch.Generator().manual_seed(0)
                return pipe("a man", generator=generator, **call, **arguments).images[0].tobytes()

        everywhere = draw(Subject(identity))
        assert draw(Subject(identity, region=corner)) == everywhere
        assert draw(Subject(identity, region=1 - corner)) != everywhere


class TestHalves:
    """Each apart: injected and ejected, it leaves its network as it was, and a call that draws nobody is untouched."""

    def test_of_the_unet(self, plain_pipe):
        size = {"height": SIZE, "width": SIZE}
        plain, unet = sample(plain_pipe, **size), plain_pipe.unet
        before = [dict(vars(module)) for module in unet.modules()]
        half = UNetHalf(unet, lambda _: None)
        for _ in range(2):
            half.inject()
            assert torch.equal(sample(plain_pipe, **size), plain)
            assert "forward" in vars(unet)
            half.eject()
        assert [dict(vars(module)) for module in unet.modules()] == before

    def test_of_the_identitynet(self, pipe):
        plain, net = sample(pipe), pipe.controlnet
        before = [dict(vars(module)) for module in net.modules()]
        half = IdentityNetHalf(net, lambda _: None)
        half.inject()
        assert torch.equal(sample(pipe), plain)
        half.eject()
        half.eject()
        assert [dict(vars(module)) for module in net.modules()] == before

    def test_only_one_acts(self, pipe, identity):
        """The IdentityNet alone sees the tokens, with nobody in the attention."""
        drawing: list[Drawing] = []
        half = IdentityNetHalf(pipe.controlnet, lambda _: drawing[0])
        drawing.append(drawing_of(InstantID(pipe), identity, None, Approximations(), None))
        with InstantID(pipe).attached(identity, scale=0.0):
            wanted = sample(pipe)
        half.inject()
        try:
            assert torch.equal(sample(pipe), wanted)
        finally:
            half.eject()


def traces_in(pipe):
    """What an attachment left in a pipeline and its networks."""
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    parts = [part for network in networks for part in network.modules()]
    found = [vars(part).get(name) for part in parts for name in ("forward", "_compiled_call_impl")]
    found += [hook for part in parts for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())]
    found = [str(one) for one in found if "fast_instantid" in str(getattr(one, "__module__", ""))]
    return found + (["class"] if "_fast_instantid" in vars(type(pipe)) else [])


def test_an_interrupt_while_the_lock_is_released_leaves_nothing(shallow_pipe, shallow_identity, monkeypatch):
    """Its traceback is alive meanwhile, with the locals of all that was called."""

    class Interrupted:
        def __init__(self, lock):
            self.lock, self.left = lock, 1

        def __enter__(self):
            return self.lock.__enter__()

        def __exit__(self, *error):
            self.lock.__exit__(*error)
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    monkeypatch.setattr(attachment, "_lock", Interrupted(attachment._lock))
    with pytest.raises(KeyboardInterrupt) as interrupt, InstantID(shallow_pipe).attached(shallow_identity):
        raise AssertionError("it was not interrupted")
    assert interrupt.traceback[-2].name == "attach"
    assert traces_in(shallow_pipe) == []


def test_an_interrupt_while_attaching_leaves_nothing(shallow_pipe, shallow_identity):
    """At every seventeenth line; the trials take all."""
    instantid, done = InstantID(shallow_pipe), []
    files = [f"pipelines/{name}.py" for name in ("attachment", "halves", "cross_attention", "drawing", "instantid")]
    files += ["fast_instantid/reuse.py", "fast_instantid/recorder.py"]

    def block():
        with instantid.attached(shallow_identity):
            pass

    def attach_and_detach():
        done.clear()
        instantid.attach(shallow_identity)
        done.append("attached")
        instantid.detach()

    assert traces_in(shallow_pipe) == []
    places = []
    for place in interrupts(block, *files, every=17):
        places.append(place)
        assert traces_in(shallow_pipe) == [], f"a block, interrupted at {place}"
    assert len(places) > 20
    for place in interrupts(attach_and_detach, *files, first=9, every=17):
        if done:
            instantid.detach()
        assert traces_in(shallow_pipe) == [], f"{done or 'attaching'}, interrupted at {place}"
    assert torch.equal(sample(shallow_pipe), sample(shallow_pipe))
    assert not torch.equal(alone(shallow_pipe, shallow_identity), sample(shallow_pipe))


def test_a_compiled_unet_has_one_graph_for_all_people_and_scales(shallow_pipe, shallow_identity, shallow_other):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    shallow_pipe.unet = torch.compile(shallow_pipe.unet, backend=backend, fullgraph=True)
    instantid = InstantID(shallow_pipe)
    with torch.no_grad():
        for person in (shallow_identity, shallow_other):
            for scale in (0.8, 0.5, 0.0):
                with instantid.attached(person, scale=scale):
                    sample(shallow_pipe)
        with instantid.attached(shallow_identity):
            for scale in (0.1, 1.2):
                instantid.scale = scale
                sample(shallow_pipe, steps=3)
    torch._dynamo.reset()
    assert len(graphs) == 1


def test_image_to_image_through_the_call(components, identity):
    pipe = make(StableDiffusionXLImg2ImgPipeline, components)
    picture_ = InstantID(pipe)("a man", identity, image=picture(1), strength=0.9, num_inference_steps=2).images[0]
    assert picture_.size == (SIZE, SIZE)


def test_a_unet_that_the_person_does_not_fit_is_refused_when_it_is_called(own_pipe, identity):
    small = type(own_pipe.unet).from_config(own_pipe.unet.config, transformer_layers_per_block=(1, 1, 1))
    with InstantID(own_pipe).attached(identity):
        own_pipe.unet = small
        with pytest.raises(ModelFileError, match="cross-attention layers"):
            sample(own_pipe)
