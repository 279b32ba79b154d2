#!/usr/bin/env bash
# The numerical tests (marker "portable") as other machines run them: without AVX-512 and without any vector kernels
# of torch, with one and two threads, and at a quarter of the speed. Arguments go to pytest; none: all such tests.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_WAIT_POLICY=PASSIVE ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 OPENBLAS_CORETYPE=Haswell
[ $# -gt 0 ] || set -- tests
files=("$@")
said=$(mktemp)
started=()
trap 'kill "${started[@]}" 2>/dev/null || true; rm -f "$said"' EXIT

portable() { # NAME COMMAND…: one run, told by its name
  echo "== $1"
  shift
  "$@" .venv/bin/python -m pytest -q -m "portable and not slow" -p no:cacheprovider "${files[@]}"
}

# A quarter of the speed: three busy loops on the same core leave no more. The other runs go on beside it, on the
# other cores where there are some.
slow=$(taskset -pc $$ | sed 's/.*[:,-] *//')
for _ in 1 2 3; do
  taskset -c "$slow" sh -c 'while :; do :; done' &
  started+=($!)
done
portable "a quarter of the speed" env OMP_NUM_THREADS=1 taskset -c "$slow" >"$said" 2>&1 &
quarter=$!
started+=("$quarter")
if [ "$slow" -gt 0 ]; then
  taskset -pc "0-$((slow - 1))" $$ >/dev/null
fi

for kernels in default avx2; do
  for threads in 1 2; do
    portable "$kernels kernels, $threads threads" env ATEN_CPU_CAPABILITY=$kernels OMP_NUM_THREADS=$threads
  done
done

verdict=0
wait "$quarter" || verdict=$?
cat "$said"
exit "$verdict"
