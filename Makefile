# make demo: the whole method on a laptop.   make test: the tests.   make setup: only the environment.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.installed

.PHONY: setup demo test test-slow style format bench levers chaos fuzz parity parity-diffusers readers cluster-schemas ray lock clean

setup: $(READY)

# The lock is complete, so nothing is resolved: medmnist declares PyTorch, which its tables do not need.
$(READY): requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt
	echo "$(CURDIR)" > $@

# An environment holds the paths of its own place: of a checkout that was moved it is made anew.
ifneq "$(shell cat $(READY) 2>/dev/null)" "$(CURDIR)"
.PHONY: $(READY)
endif

SEED ?= 1234
DEMO_ROOT ?= demo
LEVERS_ROOT ?= levers
demo: setup
	$(RUN) pipeline.py --dataset digits --exp demo --backbone mini --sizes 1 4 --seed $(SEED) --root "$(DEMO_ROOT)"

# Two processes; the longest files begin first (tests/conftest.py), so that both are busy until the end.
test: setup style
	$(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" --durations=20 --durations-min=5

# Rules and layout of the code, in ruff.toml.
style: setup
	$(RUN) -m ruff check --quiet .
	$(RUN) -m ruff format --quiet --check .

format: setup
	$(RUN) -m ruff check --quiet --fix .
	$(RUN) -m ruff format --quiet .

test-slow: setup
	$(RUN) -m pytest -q -s -m slow

# Speed and memory against the published way, and against diffusers in an environment of its own (.venv-peer).
bench: setup
	$(RUN) -m bench

# What each lever does to CAS, with mini on digits and RetinaMNIST: hours; goes on where it was stopped.
levers: setup
	$(RUN) -m bench.levers --work "$(LEVERS_ROOT)"

# Kills every stage 15 times at random moments and compares what comes out.
chaos: setup
	$(RUN) -m tests.chaos

# Thousands of random inputs for what test_properties.py checks, then damaged files for every reader, 10 minutes.
fuzz: setup
	FUZZ=1 $(RUN) -m pytest -q tests/test_properties.py
	$(RUN) -m tests.fuzz

# The published stack in an environment of its own, and the same weights and noise on both sides.
parity: setup
	$(RUN) parity/run.py

# diffusers in the environment of `make bench`: weights of three shapes on both sides, in both layouts, and exports back.
# 13 GB of disk beside that environment; PARITY="--tiny" tries it with small networks, PARITY="--shapes sd2-v" takes one.
parity-diffusers: setup
	$(RUN) parity/run_diffusers.py $(PARITY)

# Sets, and exported ones, read by datasets, mlcroissant, webdataset, torchvision, medmnist and Keras, in .venv-readers (a few GB).
readers: setup
	$(RUN) -m tests.readers

# Manifests of Kubernetes and SkyPilot against their schemas, in .venv-cluster (0.6 GB).
cluster-schemas: .venv-cluster/.installed
	.venv-cluster/bin/python tests/cluster_schemas.py

.venv-cluster/.installed: tests/cluster-requirements.txt
	$(PYTHON) -m venv .venv-cluster
	.venv-cluster/bin/python -m pip install --quiet --disable-pip-version-check -r tests/cluster-requirements.txt
	touch $@

# The faults of tests/test_ray.py on a real Ray, in .venv-ray, which takes everything else from .venv.
ray: setup .venv-ray/.installed
	.venv-ray/bin/python -m pytest -q -m "not slow" tests/test_ray.py

.venv-ray/.installed: cluster/ray-requirements.txt $(READY)
	$(PYTHON) -m venv --clear .venv-ray
	.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r cluster/ray-requirements.txt
	$(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$(.venv-ray/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/environment.pth
	touch $@

# Needs uv. torch and torchvision are left out for the reason above.
lock:
	printf 'torch; sys_platform == "never"\ntorchvision; sys_platform == "never"\n' > .overrides.txt
	uv pip compile --quiet --universal --python-version 3.11 --override .overrides.txt --no-annotate --no-header \
		requirements.in > .lock.txt
	grep -v "sys_platform == 'never'" .lock.txt > requirements.txt
	rm .overrides.txt .lock.txt

clean:
	rm -rf $(VENV)
