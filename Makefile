# Everything needs Python 3.10+ and make, nothing else: each target makes .venv when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
RESULTS ?= benchmarks/results/here

.PHONY: demo test test-comfyui lint bench bench-comfyui clean

demo: $(VENV)/installed
	$(RUN) -m fast_instantid demo

test: $(VENV)/installed
	$(RUN) -m pytest

test-comfyui:  # COMFYUI_PATH=... names the checkout of ComfyUI
	.ci/comfyui -m pytest tests/comfyui

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

bench: $(VENV)/installed  # RESULTS=... names the folder for the results
	for suite in faces pipelines startup; do \
		$(RUN) -m benchmarks $$suite --json $(RESULTS)/$$suite.json || exit; done

bench-comfyui:  # beside the old pack: REFERENCE_PATH=... names its checkout, and COMFYUI_PATH=... that of ComfyUI
	for suite in workflow headline startup memory; do \
		.ci/comfyui -m benchmarks $$suite --comfyui "$(COMFYUI_PATH)" --reference "$(REFERENCE_PATH)" \
			--json $(RESULTS)/$$suite.json || exit; done

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-comfyui fast-instantid-demo.png
