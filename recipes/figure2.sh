#!/bin/sh
# The way of the weight updates over nine epochs, LoRA, MoSLoRA and AuroRA at r = 2. The figure of docs/figures.md:
#   sh recipes/figure2.sh && make docs
# Interrupted, it goes on where it was. With arguments, only the seeds that they name.
set -eu
targets='target_modules: [query, value]'
for seed in ${*:-0 1}; do
    aurora train recipes/figure2.yaml "method={name: lora, r: 2, lora_alpha: 4, $targets}" seed="$seed" --output "runs/figure2/lora-$seed"
    aurora train recipes/figure2.yaml "method={name: moslora, r: 2, alpha: 4, $targets}" seed="$seed" --output "runs/figure2/moslora-$seed"
    aurora train recipes/figure2.yaml seed="$seed" --output "runs/figure2/aurora-$seed"
done
aurora report runs/figure2 --figures runs/figure2/figures --only updates
mkdir -p results/updates
cp runs/figure2/figures/updates.json results/updates/minilm-l6.json
