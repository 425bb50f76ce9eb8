#!/usr/bin/env bash
# Everything that is checked and timed on an NVIDIA GPU, in one command.
set -euo pipefail

help() {
    cat <<'TEXT'
usage: [SECONDS_IN_ALL=500] [WHEELS=FOLDER] bash benchmarks/gpu_suite.sh OUT [option ...]

Writes into OUT a receipt, a .txt and a .log for each part, summary.json and summary.md:

    kernels     benchmarks/bench_kernels.py
    official    benchmarks/gpu_model.py, the whole model of the released code
    paper       the same of the paper's equations

Options: --parts PART ..., --checkpoint FILE, --images FOLDER; see benchmarks/gpu_parts.py. Without a
checkpoint the weights are random. Without a folder the photographs are those of scikit-image, or, if
that is missing too, a picture that is made.

It needs this checkout, PyTorch with CUDA, Triton, numpy and Pillow. Nothing is installed, not even
this repository. The whole model also needs timm, open_clip, scipy and safetensors; if one is missing
it is left out, with the name of what is missing. nvidia-ml-py adds the
state of the GPU. WHEELS is a folder of wheels that are unpacked into a temporary folder first. If
only open_clip is missing, three wheels of 1.6 MB are enough:

    pip download --no-deps --only-binary=:all: -d FOLDER open_clip_torch==3.3.0 ftfy==6.3.1 \
        wcwidth==0.2.13

(add --python-version and --platform for a machine of another kind).

Exit status 0: all checks passed; 1: one failed, or a part broke or was killed; 2: nothing was
checked, as after a mistake in the call. SUITE_DEVICE=cpu is a trial of the suite itself on the CPU,
on tiny sizes; its receipts are named and marked as trials.
TEXT
}

case "${1:-}" in
    -h | --help) help && exit 0 ;;
    "") help >&2 && exit 2 ;;
esac
begun=$SECONDS
prepared= work=
finish() {
    rm -rf "$work"
    [ -n "$prepared" ] || { echo "gpu_suite.sh: nothing was checked" >&2 && exit 2; }
}
trap finish EXIT
root=$(cd "$(dirname "$0")/.." && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
python=${PYTHON:-python3}
work=$(mktemp -d)

# The package alone, by a link: the folder `kernels` beside it is no library of that name.
mkdir "$work/package" "$work/site"
ln -s "$root/drexperts" "$work/package/drexperts"
for wheel in ${WHEELS:+"$WHEELS"/*.whl}; do
    [ -e "$wheel" ] || { echo "gpu_suite.sh: WHEELS names $WHEELS, which has no wheels" >&2 && exit 2; }
    "$python" -m zipfile -e "$wheel" "$work/site"
done
export PYTHONPATH="$work/package:$work/site${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export TRITON_DEFAULT_FP_FUSION=1
unset TRITON_INTERPRET

trial=()
if [ "${SUITE_DEVICE:-cuda}" = cpu ]; then
    export CUDA_VISIBLE_DEVICES=
    trial=(--trial)
fi
left=$((${SECONDS_IN_ALL:-500} - SECONDS + begun))
prepared=yes
"$python" "$root/benchmarks/gpu_parts.py" "$out" --seconds "$left" "${trial[@]}" "$@" &
suite=$!
trap 'kill -TERM "$suite" 2>/dev/null' TERM INT
# A signal ends the first wait early, and the suite still has its summary to write.
status=0
wait "$suite" || status=$?
while kill -0 "$suite" 2>/dev/null; do
    status=0
    wait "$suite" || status=$?
done
exit "$status"
