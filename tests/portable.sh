#!/usr/bin/env bash
# The numerical tests (marker "portable") as other machines run them: without AVX-512 and without any vector kernels
# of torch, with one and two threads, and at a quarter of the speed. Arguments go to pytest; none: all such tests.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=Haswell
[ $# -gt 0 ] || set -- tests

portable() { # NAME COMMAND…: one run, told by its name
  echo "== $1"
  shift
  "$@" .venv/bin/python -m pytest -q -m portable -p no:cacheprovider "${files[@]}"
}

files=("$@")
for kernels in default avx2; do
  for threads in 1 2; do
    portable "$kernels kernels, $threads threads" env ATEN_CPU_CAPABILITY=$kernels OMP_NUM_THREADS=$threads
  done
done

# Three busy loops on the same core leave a quarter of it.
core=$(taskset -pc $$ | sed 's/.*[:,-] *//')
loops=()
trap 'kill "${loops[@]}" 2>/dev/null || true' EXIT
for _ in 1 2 3; do
  taskset -c "$core" sh -c 'while :; do :; done' &
  loops+=($!)
done
portable "a quarter of the speed" env OMP_NUM_THREADS=1 taskset -c "$core"
