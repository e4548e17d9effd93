"""Commonsense reasoning (the paper's Tables 2, 7 and 9, Figure 5): one training set and eight test sets of the hub.

Training is on `zwhe99/commonsense_170k`, LLM-Adapters' mixture; its instructions are used as they are. The test sets
get the same form here, by `prompts`. Where a test split has no public labels, the validation split is the test set, as
in LLM-Adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError
from ..extras import extra
from . import prompts
from .hub import HubData, subset
from .prompts import Example, dataset_of
from .task import SplitSizes, check_size, nothing_left, seeded_order, tasks_of

if TYPE_CHECKING:
    import datasets

Row = Mapping[str, Any]
Question = tuple[str, Sequence[str], int]
"""Instruction, keys, and the index of the right key (below 0: the row has no label)."""


class TestSet(NamedTuple):
    """Where a test set is, which split of it, and what makes a question of a row."""

    data: HubData
    split: str
    question: Callable[[Row], Question]


def _index(label: Any) -> int:
    """A label as a number: the hub has numbers, `"1"` and `"1\\n"`; an empty one, as in test splits, is none."""
    text = str(label).strip()
    return int(text) if text.isdecimal() else -1


def _keyed(word: str, question: str, choices: Sequence[str], index: int) -> Question:
    return prompts.instruction(word, question, choices), prompts.numbered_keys(word, len(choices)), index


def _boolq(row: Row) -> Question:
    """BoolQ's questions have no mark at the end; in LLM-Adapters each has one."""
    index = {True: 0, False: 1}.get(row["answer"], -1)
    return prompts.true_false(f"{row['question'].removesuffix('?')}?"), ("true", "false"), index


def _piqa(row: Row) -> Question:
    return _keyed("solution", row["goal"], (row["sol1"], row["sol2"]), _index(row["label"]))


def _siqa(row: Row) -> Question:
    choices = (row["answerA"], row["answerB"], row["answerC"])
    return _keyed("answer", f"{row['context']} {row['question']}", choices, _index(row["label"]) - 1)


def _hellaswag(row: Row) -> Question:
    return _keyed("ending", f"{row['activity_label']}: {row['ctx']}", row["endings"], _index(row["label"]))


def _winogrande(row: Row) -> Question:
    return _keyed("option", row["sentence"], (row["option1"], row["option2"]), _index(row["answer"]) - 1)


def _lettered(row: Row) -> Question:
    """ARC labels its choices A to E in most rows and 1 to 5 in others; the answer is one of the row's own labels."""
    question = row["question"] if "question" in row else row["question_stem"]
    choices, labels, right = row["choices"]["text"], row["choices"]["label"], row["answerKey"]
    return _keyed("answer", question, choices, labels.index(right) if right in labels else -1)


def _script(repo: str, config: str) -> HubData:
    """The validation split of a data set that is a script, which is not run: the hub keeps its Parquet files."""
    return HubData(repo, None, "refs/convert/parquet", {"validation": f"{config}/validation/*.parquet"})


TEST_SETS = {
    "boolq": TestSet(HubData("google/boolq"), "validation", _boolq),
    "piqa": TestSet(_script("ybisk/piqa", "plain_text"), "validation", _piqa),
    "siqa": TestSet(_script("allenai/social_i_qa", "default"), "validation", _siqa),
    "hellaswag": TestSet(HubData("Rowan/hellaswag"), "validation", _hellaswag),
    "winogrande": TestSet(HubData("allenai/winogrande", "winogrande_xl"), "validation", _winogrande),
    "arc-e": TestSet(HubData("allenai/ai2_arc", "ARC-Easy"), "test", _lettered),
    "arc-c": TestSet(HubData("allenai/ai2_arc", "ARC-Challenge"), "test", _lettered),
    "obqa": TestSet(HubData("allenai/openbookqa", "main"), "test", _lettered),
}
TRAINING = HubData("zwhe99/commonsense_170k")


def _load_test(name: str, size: int | None, split_seed: int) -> datasets.Dataset:
    test_set = TEST_SETS[name]
    examples = []
    for number, row in enumerate(subset(test_set.data.load(test_set.split), "test", size, split_seed, name)):
        what = f"{test_set.data}, {test_set.split}, row {number}"
        try:
            instruction, keys, right = test_set.question(row)
        except KeyError as error:
            raise UserError(f"{what}: there is no column {error}") from error
        if not 0 <= right < len(keys):
            raise UserError(f"{what}: there is no label, or one that names no choice")
        examples.append(Example(prompts.alpaca(instruction), [*map(prompts.target, keys)], right))
    return dataset_of(examples)


def _load(_: str, sizes: SplitSizes, split_seed: int) -> datasets.DatasetDict:
    """Training data, with a validation part held out of it as in LLM-Adapters; here by the seed."""
    with extra("train"):
        from datasets import DatasetDict
    examples = []
    for number, row in enumerate(TRAINING.load("train", ("instruction", "input", "output", "answer"))):
        if not row["instruction"] or not row["output"]:
            raise UserError(f"{TRAINING.repo}, train, row {number}: an empty instruction or output")
        output, choices = row["output"], [*map(prompts.target, prompts.answer_format(row["instruction"]))]
        choices = choices if output in choices else [output]
        examples.append(Example(prompts.alpaca(row["instruction"], row["input"] or ""), choices, choices.index(output)))
    order = seeded_order(len(examples), split_seed)
    # A question whose choices cannot be told can be trained on, but not be scored.
    scorable = [index for index in order if len(examples[index].choices) > 1]
    wanted = sizes.validation or 0
    if wanted >= len(scorable):
        raise nothing_left(len(examples), "rows")
    held_out = set(scorable[:wanted])
    train = [index for index in order[::-1] if index not in held_out]
    check_size("train", sizes.train, len(train), "examples that are left")
    chosen = {"train": train[: sizes.train], "validation": scorable[:wanted]}
    return DatasetDict({name: dataset_of([examples[index] for index in part]) for name, part in chosen.items()})


(COMMONSENSE,) = tasks_of("commonsense", _load, load_test=_load_test)
