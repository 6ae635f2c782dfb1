PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO ?= demo-output
EXTRAS ?= dev

.PHONY: help demo test lint types docs pictures bench clean

help:
	@echo "make demo   install, write a small inspection set, inspect it, show where to look"
	@echo "make test   install, run the whole test suite"
	@echo "make lint   ruff: style and format"
	@echo "make types  mypy"
	@echo "make docs   write the generated reference in docs/"
	@echo "make pictures  write docs/images from the examples of the documentation"
	@echo "make bench  time the main job (see docs/PERFORMANCE.md)"
	@echo "make clean  remove the environment and what the demo wrote"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(INSTALLED)
	@rm -rf $(DEMO)
	$(BIN)/python -m pyimgano_dask.synthesis $(DEMO)/parts
	$(BIN)/pyimgano-infer --model vision_pixel_mad_map --train-dir $(DEMO)/parts/train/good --input $(DEMO)/parts/test \
	    --defects --defect-border-ignore-px 16 --defect-min-area 12 \
	    --run-dir $(DEMO)/run --save-maps $(DEMO)/maps --save-masks $(DEMO)/masks --save-overlays $(DEMO)/overlays --save-jsonl $(DEMO)/results.jsonl
	@echo "Look at $(DEMO)/overlays (what was found, and where) and $(DEMO)/results.jsonl (one line an image)."

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/python -m pyimgano_dask.settings.reference docs
	$(BIN)/python -m pyimgano_dask.detectors.index docs

pictures: demo
	$(BIN)/python docs/make_pictures.py

bench: $(INSTALLED)
	$(BIN)/python tests/benchmarks/bench_main_job.py

clean:
	rm -rf $(VENV) $(DEMO)
