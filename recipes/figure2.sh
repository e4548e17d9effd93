#!/bin/sh
# The trajectory of the weight updates over nine epochs, LoRA, MoSLoRA and AuroRA at r = 2; AuroRA's sigma and merge gap. The figures of
# docs/figures.md:
#   sh recipes/figure2.sh && make docs
# Interrupted, it goes on where it was. With arguments, only the seeds that they name.
set -eu
mkdir -p results/figures
targets='target_modules: [query, value]'
for seed in ${*:-0 1}; do
    aurora train figure2 "method={name: lora, r: 2, lora_alpha: 4, $targets}" seed="$seed" --output "runs/figure2/lora-$seed"
    aurora train figure2 "method={name: moslora, r: 2, alpha: 4, $targets}" seed="$seed" --output "runs/figure2/moslora-$seed"
    aurora train figure2 seed="$seed" --output "runs/figure2/aurora-$seed"
    aurora gap "runs/figure2/aurora-$seed"
    aurora sigma "runs/figure2/aurora-$seed"
    cp "runs/figure2/aurora-$seed/gap.json" "results/figures/gap-$seed.json"
done
aurora report runs/figure2 --figures runs/figure2/figures
cp runs/figure2/figures/updates.json results/figures/updates.json
cp "runs/figure2/aurora-${1:-0}/sigma.json" results/figures/sigma.json
