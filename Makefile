# `make quickstart` and `make test` are all a newcomer needs; both set up .venv first.

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

PYTHON ?= python3
OUT ?= runs/quickstart
BIN := .venv/bin

.PHONY: quickstart test check docs slow mutants replications bench base clean

quickstart: .venv/.ready  ## the whole loop in the embedded world, with a report
	@# A run never overwrites another: if the folder exists, the new one has the time in its name.
	@out='$(OUT)'; if [ -e "$$out" ]; then out="$$out-$$(date +%Y%m%d-%H%M%S)"; fi; \
	$(BIN)/truing quickstart --output-dir "$$out"

test: .venv/.ready  ## every test that takes seconds, by two processes
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadgroup

check: .venv/.ready  ## format, lint, types, the rules of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_architecture.py

docs: .venv/.ready  ## write the generated pages, then test all pages
	$(BIN)/python scripts/make_docs.py
	$(BIN)/python -m pytest tests/test_docs.py tests/test_recipes.py tests/test_examples.py

slow: .venv/.ready  ## the tests that take minutes, by two processes: three seeds, negative controls, real input
	$(BIN)/python -m pytest -m slow -n 2 --dist loadgroup

mutants: .venv/.ready  ## every mutant of floor 0 against every test that answers for it, as a matrix
	$(BIN)/python -m tests.algorithms.mutants

base: .venv/.ready  ## make the packaged base model again (about half an hour)
	$(BIN)/python scripts/make_base.py

replications: .venv/.ready  ## published findings again, with controls; writes docs/replications.md
	$(BIN)/python -m replications.run

bench: .venv/.ready  ## speed and memory beside TRL; writes docs/performance.md (about an hour)
	benchmarks/setup.sh $(BIN)/python
	$(BIN)/python -m benchmarks all

clean:  ## remove what make and the tools made; runs/ stays
	rm -rf .venv .bench build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.ready: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints-cpu.txt -e '.[dev]'
	@touch $@
