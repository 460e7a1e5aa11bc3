"""A stand-in for ComfyUI: the few behaviours of the host that the node pack relies on, on plain torch.

It has the host's names, signatures and orders of calls, and no more of it than the tests need; each module's first line
says what of its namesake is here. ``tests/comfyui/test_standin.py`` holds it against a real ComfyUI: the same weights
give the same latents.
"""
