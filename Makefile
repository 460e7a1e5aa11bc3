# Everything needs Python 3.10+ and make, nothing else: each target makes .venv when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-comfyui lint bench clean

demo: $(VENV)/installed
	$(RUN) -m fast_instantid demo

test: $(VENV)/installed
	$(RUN) -m pytest

test-comfyui:  # COMFYUI_PATH=... names the checkout of ComfyUI
	.ci/comfyui

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

bench: $(VENV)/installed
	$(RUN) -m benchmarks faces

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-comfyui fast-instantid-demo.png
