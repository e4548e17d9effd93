"""The scores and the answers of docs/chat.md."""

import json
from pathlib import Path

from make.chat import conversation_scores, sample_answers

ROOT = Path(__file__).parents[2]


def test_what_is_committed_is_the_run_that_the_page_tells_of() -> None:
    record = json.loads((ROOT / "results" / "chat" / "siqa.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
    task = record["recipe"]["task"]
    command = f"task.data={task['data']} model={record['model']} task.max_length={task['max_length']}"
    command += f" method.skip={str(record['recipe']['method']['skip']).lower()}"
    assert f"`aurora train chat {command}`" in page
    assert conversation_scores(record) in page
    assert sample_answers(record) in page
