#!/usr/bin/env bash
# Runs the studies of this bundle without a network: ./run.sh [STUDY ...]
# Every study's results are copied to records/ (PYTHIA_RECORDS names another folder) as soon as it has
# finished; copy them to your own machine. Runs go to results/ (PYTHIA_RESULTS, e.g. a folder in
# /dev/shm). After a stop, run this script again to resume.
set -u
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
for name in PYTHIA_RESULTS PYTHIA_RECORDS; do # relative paths are relative to the caller's folder
  case "${!name:-}" in
    "" | /*) ;;
    "~/"*) export "$name=$HOME/${!name#"~/"}" ;;
    *) export "$name=$PWD/${!name}" ;;
  esac
done
cd "$here" || exit 1
if ! sha256sum --quiet -c SHA256SUMS; then
  echo "error: the files listed above have changed since they were packed; unpack the archive again" >&2
  exit 1
fi
echo "all files are intact"

python="${PYTHON:-python3}"
export PYTHIA_CACHE="$here/cache" PYTHIA_RESULTS="${PYTHIA_RESULTS:-$here/results}"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 PIP_NO_INDEX=1 TOKENIZERS_PARALLELISM=true
if [ -d published ]; then export PYTHIA_PUBLISHED_DIR="$here/published"; fi
export PYTHONPATH="$here/project:$here/project/book:$here/installed${PYTHONPATH:+:$PYTHONPATH}"
export PYTHIA_COMMIT="@COMMIT@"
export PYTHONDONTWRITEBYTECODE=1  # the project's folder stays as it was packed

if [ -d packages ]; then # install the wheels of packages that the machine lacks
  mapfile -t missing < <("$python" - packages/*.whl << 'EOF'
import importlib.metadata as metadata, pathlib, sys
for wheel in sys.argv[1:]:
    try:
        metadata.version(pathlib.Path(wheel).name.split("-")[0])
    except metadata.PackageNotFoundError:
        print(wheel)
EOF
  )
  if [ "${#missing[@]}" -gt 0 ] &&
    ! "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
      --target installed "${missing[@]}"; then
    echo "error: pip could not install the wheels in packages/; they may be for another Python than $("$python" -V)" >&2
    exit 1
  fi
fi

records="${PYTHIA_RECORDS:-$here/records}"
scale="@SCALE@"
failed=""
begin=$SECONDS
mkdir -p "$records"

study() { # NAME [MORE ...]: run it and copy its results
  local name="$1" start=$SECONDS
  shift
  (cd project && "$python" -m pythia_core study "$name" --scale "$scale" "$@")
  local code=$?
  if [ $code -eq 130 ] || [ $code -eq 143 ]; then exit $code; fi # stopped; the next call resumes
  if [ $code -eq 0 ]; then
    mkdir -p "$records/$name"
    rm -rf "$records/$name/.copy"
    if cp -r "$PYTHIA_RESULTS/$name/$scale" "$records/$name/.copy"; then
      rm -rf "$records/$name/$scale"
      mv "$records/$name/.copy" "$records/$name/$scale"
      echo "$name: done in $((SECONDS - start)) s"
      return
    fi
    rm -rf "$records/$name/.copy"
  elif [ $code -gt 128 ]; then
    echo "error: $name was killed by signal $((code - 128)), possibly out of memory" >&2
  fi
  failed="$failed $name"
  echo "$name: failed after $((SECONDS - start)) s" >&2
}

for name in ${*:-@STUDIES@}; do
  study "$name"
done
echo "the studies took $((SECONDS - begin)) s"
if [ $# -eq 0 ] && [ -f results/bench/tokens.npy ] &&
  "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  mkdir -p "$PYTHIA_RESULTS/bench"
  cp -n results/bench/tokens.npy "$PYTHIA_RESULTS/bench/"
  "$python" -m pythia_core gpu-check --budget 1h --only train,kernels,attention \
    > "$records/gpu-check.txt" 2>&1 || failed="$failed gpu-check"
  cp -r "$PYTHIA_RESULTS/gpu-check" "$records/" || true
  study speed
fi
echo "everything took $((SECONDS - begin)) s; copy $records to your own machine"
if [ -n "$failed" ]; then
  echo "error: failed:$failed (see the messages above; those of gpu-check are in $records/gpu-check.txt)" >&2
  exit 1
fi
