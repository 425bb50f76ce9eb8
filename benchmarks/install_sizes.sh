#!/usr/bin/env bash
# What an install takes on disk, with its dependencies and without Python: the sizes in README.md.
#
#     bash benchmarks/install_sizes.sh EXTRAS [arguments of `uv pip install`, such as --torch-backend cpu]
#
# EXTRAS are those of the README, such as cli,cpu; an empty text is the base install.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

uv build --quiet --wheel --out-dir "$work/dist"
cd "$work" # away from the versions that the checkout asks for
uv venv --quiet venv
uv pip install --quiet --python venv/bin/python "$(echo dist/*.whl)${extras:+[$extras]}" "$@"
echo "[$extras] $*: $(du -sm --apparent-size venv | cut -f1) MiB"
