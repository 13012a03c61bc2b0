#!/usr/bin/env bash
# From a public checkpoint at the end of its stable phase to an annealing mix: choose on a sample, distil, score the whole pool.
#
#   MODEL=allenai/OLMo-2-0425-1B REVISION=... SAMPLE=sample/ POOL='hf://datasets/...' VALIDATION=arc.jsonl \
#     bash recipes/public/annealing.sh
#
# README.md beside it says which checkpoints, pools and revisions, and what to expect. Each step goes on where it was stopped.
set -euo pipefail

: "${MODEL:?a checkpoint directory or hub name}" "${REVISION:?a branch, tag or commit: see README.md}"
: "${SAMPLE:?a random sample of the pool, one to ten billion tokens}" "${VALIDATION:?documents of the target}"
: "${POOL:=$SAMPLE}" "${OUT:=runs/public}" "${FRACTION:=0.1}" "${DEVICE:=cuda}" "${DTYPE:=bfloat16}" "${MIX:=olmo-core}"
read -r -a direct_anneal <<< "${DIRECT_ANNEAL:-direct-anneal}"
read -r -a options <<< "${OPTIONS:-}" # more of select, such as --text-field or --objective

chosen=(--model "$MODEL" --revision "$REVISION" --pool "$SAMPLE" --validation "$VALIDATION" --fraction "$FRACTION"
  --device "$DEVICE" --dtype "$DTYPE" "${options[@]}")

"${direct_anneal[@]}" plan "${chosen[@]}" --out "$OUT/sample" # hours, disk and memory; nothing is computed yet
"${direct_anneal[@]}" select "${chosen[@]}" --out "$OUT/sample"
"${direct_anneal[@]}" distil "$OUT/sample" --out "$OUT/scorer"
"${direct_anneal[@]}" score --scorer "$OUT/scorer" --pool "$POOL" --out "$OUT/scores" --fraction "$FRACTION"
"${direct_anneal[@]}" weights "$OUT/scores" --to "$MIX"
