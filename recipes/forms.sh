#!/bin/sh
# What each form loses of the paper's sigma, without the skip: the demo's recipe at three learning rates, three seeds
# each. The table and figure of docs/deploy.md:
#   sh recipes/forms.sh && make docs
# Interrupted, it goes on where it was. With arguments, only the seeds that they name.
set -eu
mkdir -p results/forms
for seed in ${*:-0 1 2}; do
    for rate in 2e-3 5e-3 1e-2; do
        name=lr$rate-seed$seed
        aurora train demo reference=null training.threads=1 method.skip=false training.learning_rate=$rate seed=$seed \
            --output "results/forms/runs/$name"
    done
done
python -c 'from pathlib import Path
from aurora_lora.lab.experiments.runs_file import read_runs, write_runs
from aurora_lora.train.finished_run import read_result
study = Path("results/forms")
made = {folder: result for folder in (study / "runs").iterdir() if (result := read_result(folder))}
write_runs(study, {**read_runs(study), **made})'
