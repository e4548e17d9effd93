"""The paper's two propositions and its Appendix C, checked by computation; about a minute.

python -m theory --output results/theory    # theory.json
"""

import argparse
from pathlib import Path

from aurora_lora.files import write_json

from .checks import run
from .report import theory_tables

parser = argparse.ArgumentParser(prog="python -m theory", description=__doc__)
parser.add_argument("--output", type=Path, required=True)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
record = run(args.seed)
args.output.mkdir(parents=True, exist_ok=True)
write_json(args.output / "theory.json", record)
for table in theory_tables(record).values():
    print(f"{table.title}\n\n{table.markdown()}\n")
