# The repository's root holds a folder named `kernels`; a library of that name exists too.
export PYTHONSAFEPATH := 1

.PHONY: check format static test test-fast bench resources golden

check: static test

static:
	uv run ruff format --check .
	uv run ruff check .
	uv run mypy
	uv run lint-imports

test:
	uv run pytest -n auto --dist loadfile

# What a change is tried on while it is made: everything but the tests marked slow.
test-fast:
	uv run pytest -n auto --dist loadfile -m "not slow"

format:
	uv run ruff format .
	uv run ruff check --fix .

bench:
	uv run python benchmarks/bench_full_size.py --receipt benchmarks/receipts/full-size-official.json

# Every kernel for every architecture: too long for the tests, which compile one width of each.
resources:
	uv run python -m drexperts.kernels.resource_table --golden tests/fixtures/kernel_resources.json

golden:
	uv run python -m drexperts.kernels.resource_table --write tests/fixtures/kernel_resources.json
