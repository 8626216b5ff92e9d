# `make` alone lists what there is. Options: make run PRESET=smoke DATA_DIR=elsewhere SEED=0
PRESET   ?= laptop
DATA_DIR ?=
SEED     ?= 0
NB       ?= [0-9]*.ipynb index.ipynb
PYTHON   ?= $(shell command -v python3.11 || command -v python3)

BIN   := $(CURDIR)/.venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install run test lab play notebooks export readme docs clean

help: ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-10s %s\n", $$1, $$2}'

run: install ## record, train every model, analyse, draw the GIF (PRESET=smoke|laptop|evening|paper)
	$(BIN)/lapa_breakout run --preset $(PRESET) --seed $(SEED) $(if $(DATA_DIR),--data-dir '$(DATA_DIR)')

test: install ## every notebook and every check
	$(BIN)/python -m pytest

lab: install ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

play: install ## play the learned game in the browser, the real one beside it
	$(BIN)/voila --show_tracebacks=True tools/play_app.ipynb

notebooks: install ## execute notebooks at full size and keep the outputs (NB=02_lam.ipynb for one)
	cd nbs && $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=-1 $(NB)
	$(BIN)/nbdev_clean

export: install ## write lapa_breakout/ from the notebooks, and clean them
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

readme: install ## write README.md from nbs/index.ipynb
	$(BIN)/python tools/make_readme.py

docs: install ## build the site in _docs/, the game on its first page (needs npm)
	$(BIN)/python tools/build_docs.py

clean: ## remove what was built, not what was recorded or trained
	rm -rf _docs _proc build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find lapa_breakout tests tools -name __pycache__ -prune -exec rm -rf {} +

install: $(STAMP) ## make .venv with the pinned packages (done by the others when needed)

$(STAMP): constraints.txt settings.ini setup.py
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lapa_breakout needs Python 3.11 or newer; found '$(PYTHON)'. Try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make a virtual environment. On Debian or Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	@echo "Installing the pinned packages into .venv: once, a few minutes"
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
