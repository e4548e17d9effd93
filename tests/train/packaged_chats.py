"""Conversations from data of the Python package index: `python tests/train/packaged_chats.py FILE.jsonl [COUNT]`.

A question on a social situation, and its right answer: the task `siqa`.
"""

import json
import sys
from pathlib import Path

from aurora_lora.data import SplitSizes, get_task


def write(path: Path, count: int = 300) -> Path:
    """Write so many conversations, one a line."""
    sizes = SplitSizes(count, 1, 1)
    rows = get_task("siqa").load_splits(sizes, 0, ("test",), "cloze")["train"]
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            asked = row["prompt"].removeprefix("Question: ").removesuffix("\nAnswer:")
            answer = row["choices"][row["label"]].strip() + "."
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), *map(int, sys.argv[2:3])))
