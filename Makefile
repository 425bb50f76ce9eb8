# The repository's root holds a folder named `kernels`; a library of that name exists too.
export PYTHONSAFEPATH := 1

.PHONY: check format static test test-fast test-ray docs picture bench measurements resources golden

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

# What needs Ray and Hugging Face's datasets, 600 MB that other tests do without.
test-ray:
	uv run --with "ray[data]>=2.60" --with "datasets>=5.2" python -m pytest -n 0 tests/scale

format:
	uv run ruff format .
	uv run ruff check --fix .

# Strict: a broken link or an unknown name is an error. Nothing is fetched.
docs:
	NO_MKDOCS_2_WARNING=1 uv run --group docs mkdocs build --strict

# The picture in the README. `drx demo` makes the bundle, and takes some minutes.
picture:
	uv run drx demo --out runs/demo
	uv run drx explain runs/demo/bundle docs/images/coffee-blurred.png --out runs/explanation.png
	uv run python -c "from PIL import Image; \
	    Image.open('runs/explanation.png').save('docs/images/explanation.jpg', quality=85)"

bench:
	uv run python benchmarks/bench_full_size.py --receipt benchmarks/receipts/full-size-official.json

# The tables of docs/measurements.md and the README, from benchmarks/receipts.
measurements:
	uv run python benchmarks/measurements.py

# Every kernel for every architecture: too long for the tests, which compile one width of each.
resources:
	uv run python -m drexperts.kernels.resource_table --golden tests/fixtures/kernel_resources.json

golden:
	uv run python -m drexperts.kernels.resource_table --write tests/fixtures/kernel_resources.json
