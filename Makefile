# Every command of the project. `make help` lists them.

PYTHON ?= python3
# Further words for pip, such as: make quickstart PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_FLAGS ?=
# FORCE=1 starts the main job over; without it, finished stages are skipped.
FORCE ?=

# Words for the fuzzer, such as FUZZ="--minutes 1 --seed 3" or FUZZ="--target png --replay 158".
FUZZ ?=

# The GPU acceptance run: PART=1 or 2 for a half, GPU=0 to rehearse on a CPU, FRESH=1 to start over.
PART ?=
GPU ?=
FRESH ?=

BIN := .venv/bin
# What programs need; and all that the suite runs, the optional packages included.
ENVIRONMENT := .venv/.installed
CHECKS_ENVIRONMENT := .venv/.installed-checks
EXTRAS := checks,curation,scorers,ocr,translation,ray,submitit,tensorboard
# DeepSpeed builds from source: no operator is compiled, so no compiler is needed.
PIP := DS_BUILD_OPS=0 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install $(PIP_FLAGS)
# --build-constraint pins what the packages that come as source are built with.
INSTALL := $(PIP) -c constraints.txt --build-constraint constraints.txt

# The Python of the acceptance run: the one that is named, else that of .venv, else python3. It needs
# torch and pip, so a rented machine needs no environment.
ACCEPTANCE_PYTHON = $(if $(filter command,$(origin PYTHON)),$(PYTHON),$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)))

.DEFAULT_GOAL := help
.PHONY: help environment quickstart scenes emoji drill soak fuzz test checks test-slow test-parallel test-slurm test-gpu gpu-acceptance gpu-acceptance-inputs clean clean-environment

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 20

environment: $(ENVIRONMENT)  ## make .venv with the packages that programs need, in constraints.txt

# torch comes first and exactly: a range would pull the newest CUDA build, several GB.
$(ENVIRONMENT): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, not " + sys.version.split()[0] + ": name one, as in make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv || { echo "make: the venv module is missing: apt-get install python3-venv" >&2; exit 1; }
	$(PIP) -c constraints.txt pip setuptools wheel
	$(PIP) torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(INSTALL) --editable .
	touch $@

$(CHECKS_ENVIRONMENT): $(ENVIRONMENT)
	$(INSTALL) --editable '.[$(EXTRAS)]'
	touch $@

quickstart: $(ENVIRONMENT)  ## run the whole main job on the built-in data: outputs/quickstart/report.html
	$(BIN)/python launch/main_job.py job=quickstart $(if $(FORCE),force=true)

scenes: $(ENVIRONMENT)  ## run the main job on harder pictures, up to 90 minutes: outputs/scenes/report.html
	$(BIN)/python launch/main_job.py job=scenes $(if $(FORCE),force=true)

emoji: $(ENVIRONMENT)  ## run the main job on the Noto emoji pairs: outputs/emoji/report.html
	$(BIN)/python launch/main_job.py job=emoji $(if $(FORCE),force=true)

drill: $(ENVIRONMENT)  ## inject every fault into the quickstart's run: outputs/drill/drill.json
	$(BIN)/python launch/drill.py experiment=quickstart drills=all

soak: $(ENVIRONMENT)  ## inject random faults into the quickstart's run for 20 minutes: outputs/soak/soak.json
	$(BIN)/python launch/soak.py experiment=quickstart minutes=20

fuzz: $(CHECKS_ENVIRONMENT)  ## damage every kind of input file for 10 minutes: outputs/fuzz/fuzz.json
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(FUZZ)

# An empty PYTHONDONTWRITEBYTECODE: hundreds of programs that tests start compile our modules once.
test: checks  ## run the checks and the CPU suite
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses 2 --dist loadfile --no-loadscope-reorder

checks: $(CHECKS_ENVIRONMENT)  ## run linters, formatter, types and import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck --external-sources .ci/run launch/slurm/*

test-slow: $(CHECKS_ENVIRONMENT)  ## run the tests of over half a minute each
	$(BIN)/python -m pytest -m "slow and not gpu"

test-parallel: $(CHECKS_ENVIRONMENT)  ## run every layout against one process and print the table
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "distributed and not gpu" tests/parallel

test-slurm: $(CHECKS_ENVIRONMENT)  ## run jobs on a two-node Slurm of this machine, and inject faults
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm tests/slurm

test-gpu: $(CHECKS_ENVIRONMENT)  ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

gpu-acceptance:  ## run everything on one GPU and hold it against the goals: PART=1, PART=2; GPU=0 rehearses
	$(ACCEPTANCE_PYTHON) benchmarks/gpu_acceptance.py $(if $(PART),--part $(PART)) $(if $(GPU),--gpu $(GPU)) $(if $(FRESH),--fresh)

gpu-acceptance-inputs:  ## make .gpu_acceptance/, the wheels and inputs to carry to a machine with a GPU
	$(ACCEPTANCE_PYTHON) benchmarks/gpu_acceptance.py --inputs

clean:  ## remove every output and cache, but not the environment
	rm -rf outputs build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

clean-environment:  ## remove .venv
	rm -rf .venv
