# Everything needs Python 3.10+ and make, nothing else: each target makes .venv when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
RESULTS ?= benchmarks/results/here
MINUTES ?= 3
# Tests of what makes the miniature and the benchmarks, and those that start clusters.
TOOLS := $(wildcard tests/test_training*.py tests/test_benchmarks*.py tests/test_*_ray.py)
GPU_WHEELS := diffusers insightface==2.1 importlib_metadata zipp torchsde trampoline comfy-kitchen comfy-aimdo
GPU_WHEELS += jsonschema==4.17.3 pyrsistent  # the last that need no compiled package
PYTEST := -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

.PHONY: demo serve test test-tools trials test-comfyui lint docs bench bench-comfyui gpu-bundle clean

demo: $(VENV)/with-diffusers
	$(RUN) -m fast_instantid demo

serve: $(VENV)/with-diffusers,serve
	$(RUN) -m fast_instantid serve --base miniature

test: $(VENV)/with-dev
	$(RUN) $(PYTEST) $(TOOLS:%=--ignore=%)

test-tools: $(VENV)/with-dev
	$(RUN) $(PYTEST) $(TOOLS)

trials: $(VENV)/with-dev  # MINUTES=... for all together
	$(RUN) -m pytest trials --minutes $(MINUTES) -o faulthandler_timeout=$$($(RUN) -c 'print(900 + 60 * $(MINUTES))')

test-comfyui:  # COMFYUI_PATH=... names the checkout of ComfyUI
	.ci/comfyui -m pytest tests/comfyui

lint: $(VENV)/with-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

docs: $(VENV)/with-docs  # the site, in site/; `mike deploy VERSION` keeps one of each version
	$(RUN) -m mkdocs build --strict

bench: $(VENV)/with-dev  # RESULTS=... names the folder for the results
	for suite in faces pipelines startup; do \
		$(RUN) -m benchmarks $$suite --json $(RESULTS)/$$suite.json || exit; done

bench-comfyui:  # beside the old pack: REFERENCE_PATH=... names its checkout, and COMFYUI_PATH=... that of ComfyUI
	for suite in workflow headline startup memory; do \
		.ci/comfyui -m benchmarks $$suite --comfyui "$(COMFYUI_PATH)" --reference "$(REFERENCE_PATH)" \
			--json $(RESULTS)/$$suite.json || exit; done

# One archive for a machine that has a GPU, Python and torch, and no network: COMFYUI_PATH=... and REFERENCE_PATH=...
# name the checkouts that go into it. Of packages that such a machine may lack, those of pure Python go too.
gpu-bundle:
	rm -rf build/wheels
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --platform any --dest build/wheels \
		--constraint "$(COMFYUI_PATH)/requirements.txt" $(GPU_WHEELS)
	bash benchmarks/gpu/bundle.sh build/gpu-bundle.tar.gz build/wheels "$(COMFYUI_PATH)" "$(REFERENCE_PATH)"

# One environment, and a mark in it for each set of extras that was installed; dev includes diffusers and docs.
$(VENV)/with-%: pyproject.toml constraints.txt | $(RUN)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@ $(if $(filter dev,$*),$(VENV)/with-diffusers $(VENV)/with-docs)

$(RUN):
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) .venv-comfyui site fast-instantid-demo.png
