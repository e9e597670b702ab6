#!/usr/bin/env bash
# Runs the studies of this bundle without a network: ./run.sh [STUDY ...]
# Everything is written inside this folder; copy records/ from it when done. After a stop, run this
# script again to resume.
set -u
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cd "$here" || exit 1
if ! sha256sum --quiet -c SHA256SUMS; then
  echo "error: the files listed above have changed since they were packed; unpack the archive again" >&2
  exit 1
fi
echo "all files are intact"

python="${PYTHON:-python3}"
export PYTHIA_CACHE="$here/cache" PYTHIA_RESULTS="${PYTHIA_RESULTS:-$here/results}"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=true
if [ -d published ]; then export PYTHIA_PUBLISHED_DIR="$here/published"; fi
export PYTHONPATH="$here/project:$here/project/book${PYTHONPATH:+:$PYTHONPATH}"
export PYTHIA_COMMIT="@COMMIT@"
export PYTHONDONTWRITEBYTECODE=1  # the project's folder stays as it was packed

mkdir -p records
scale="@SCALE@"
failed=""
begin=$SECONDS

study() { # NAME [MORE ...]: run it and copy its results
  local name="$1" start=$SECONDS
  shift
  if (cd project && "$python" -m pythia_core study "$name" --scale "$scale" "$@"); then
    rm -rf "records/$name/$scale"
    mkdir -p "records/$name"
    cp -r "$PYTHIA_RESULTS/$name/$scale" "records/$name/$scale"
    echo "$name: done in $((SECONDS - start)) s"
  else
    [ $? -lt 130 ] || exit 130 # stopped; the next call resumes
    failed="$failed $name"
    echo "$name: failed after $((SECONDS - start)) s" >&2
  fi
}

for name in ${*:-@STUDIES@}; do
  study "$name"
done
echo "the studies took $((SECONDS - begin)) s"
if [ $# -eq 0 ] && "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  "$python" -m pythia_core gpu-check --budget 1h --only train,kernels,attention \
    > records/gpu-check.txt 2>&1 || failed="$failed gpu-check"
  cp -r "$PYTHIA_RESULTS/gpu-check" records/ || true
  study speed
fi
echo "everything took $((SECONDS - begin)) s; copy the folder records/ to your own machine"
if [ -n "$failed" ]; then
  echo "error: failed:$failed (see the messages above; those of gpu-check are in records/gpu-check.txt)" >&2
  exit 1
fi
