"""Commonsense reasoning (the paper's Tables 2, 7 and 9, Figure 5): one training set and eight test sets of the hub.

Training is on `zwhe99/commonsense_170k`, LLM-Adapters' mixture; its instructions are used as they are. The test sets
get the same form here, by `prompts`. Where a test split has no public labels, the validation split is the test set, as
in LLM-Adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..extras import extra
from . import prompts
from .hub import HubData, subset
from .prompts import Example, dataset_of
from .task import SplitSizes, Task, check_size, seeded_order

if TYPE_CHECKING:
    import datasets

Row = Mapping[str, Any]
KeyedQuestion = tuple[str, Sequence[str], str | None]
"""Instruction, keys, and the key of the right answer (None: the row has no label that counts)."""

CONVERTED = "refs/convert/parquet"
"""Where the hub keeps the Parquet files of data sets that are scripts."""


@dataclass(frozen=True)
class TestSet:
    """One test set.

    Args:
        data: where it is.
        split: which split of it.
        columns: the columns that `question` reads.
        question: makes a question of a row.
        size: how many questions the paper's source tests on.
    """

    data: HubData
    split: str
    columns: tuple[str, ...]
    question: Callable[[Row], KeyedQuestion]
    size: int

    __test__ = False  # not for pytest


def _numbered(instruction: str, word: str, choices: Sequence[str], index: int) -> KeyedQuestion:
    keys = prompts.numbered_keys(word, len(choices))
    return instruction, keys, keys[index] if 0 <= index < len(keys) else None


def _boolq(row: Row) -> KeyedQuestion:
    """BoolQ's questions have no mark at the end; in LLM-Adapters each has one."""
    instruction = prompts.true_false(f"{row['question'].removesuffix('?')}?")
    return instruction, ("true", "false"), None if row["answer"] is None else str(bool(row["answer"])).lower()


def _piqa(row: Row) -> KeyedQuestion:
    choices = (row["sol1"], row["sol2"])
    return _numbered(prompts.solutions(row["goal"], choices), "solution", choices, _index(row["label"]))


def _siqa(row: Row) -> KeyedQuestion:
    choices = (row["answerA"], row["answerB"], row["answerC"])
    asked = prompts.answers(f"{row['context']} {row['question']}", choices)
    return _numbered(asked, "answer", choices, _index(row["label"]) - 1)


def _hellaswag(row: Row) -> KeyedQuestion:
    asked = prompts.endings(row["activity_label"], row["ctx"], row["endings"])
    return _numbered(asked, "ending", row["endings"], _index(row["label"]))


def _winogrande(row: Row) -> KeyedQuestion:
    choices = (row["option1"], row["option2"])
    return _numbered(prompts.options(row["sentence"], choices), "option", choices, _index(row["answer"]) - 1)


def _lettered(row: Row) -> KeyedQuestion:
    """ARC labels its choices A to E in most rows and 1 to 5 in others; the answer is one of the row's own labels."""
    choices, labels = row["choices"]["text"], row["choices"]["label"]
    asked = prompts.answers(row["question"] if "question" in row else row["question_stem"], choices)
    return _numbered(asked, "answer", choices, labels.index(row["answerKey"]) if row["answerKey"] in labels else -1)


def _index(label: Any) -> int:
    """A label as a number: the hub has numbers, `"1"` and `"1\\n"`; an empty one, as in test splits, is none."""
    text = str(label).strip()
    return int(text) if text.isdecimal() else -1


def _script(repo: str, config: str) -> HubData:
    """The validation split of a data set that is a script: scripts are not run."""
    return HubData(repo, None, CONVERTED, {"validation": f"{config}/validation/*.parquet"})


_SIQA, _ARC = ("context", "question", "answerA", "answerB", "answerC", "label"), ("question", "choices", "answerKey")
_PIQA, _WINOGRANDE = ("goal", "sol1", "sol2", "label"), ("sentence", "option1", "option2", "answer")
_HELLASWAG, _ARC_REPO = ("activity_label", "ctx", "endings", "label"), "allenai/ai2_arc"
TEST_SETS: dict[str, TestSet] = {
    "boolq": TestSet(HubData("google/boolq"), "validation", ("question", "answer"), _boolq, 3270),
    "piqa": TestSet(_script("ybisk/piqa", "plain_text"), "validation", _PIQA, _piqa, 1838),  # the paper prints 1,830
    "siqa": TestSet(_script("allenai/social_i_qa", "default"), "validation", _SIQA, _siqa, 1954),
    "hellaswag": TestSet(HubData("Rowan/hellaswag"), "validation", _HELLASWAG, _hellaswag, 10042),
    "winogrande": TestSet(HubData("allenai/winogrande", "winogrande_xl"), "validation", _WINOGRANDE, _winogrande, 1267),
    "arc-e": TestSet(HubData(_ARC_REPO, "ARC-Easy"), "test", _ARC, _lettered, 2376),
    "arc-c": TestSet(HubData(_ARC_REPO, "ARC-Challenge"), "test", _ARC, _lettered, 1172),
    "obqa": TestSet(
        HubData("allenai/openbookqa", "main"), "test", ("question_stem", "choices", "answerKey"), _lettered, 500
    ),
}

TRAINING = HubData("zwhe99/commonsense_170k")


def _load_test(name: str, size: int | None, split_seed: int) -> datasets.Dataset:
    test_set = TEST_SETS[name]
    what = f"{test_set.data.repo}, {test_set.split}"
    rows = subset(test_set.data.load(test_set.split, test_set.columns), "test", size, split_seed, name)
    examples = []
    for number, row in enumerate(rows):
        instruction, keys, right = test_set.question(row)
        if right is None:
            raise UserError(f"{what}, row {number}: there is no label, or one that names no choice")
        choices = [prompts.target(key) for key in keys]
        examples.append(Example(prompts.alpaca(instruction), choices, keys.index(right)))
    return dataset_of(examples)


def _load(sizes: SplitSizes, split_seed: int) -> datasets.DatasetDict:
    """Training data, with a validation part held out of it as in LLM-Adapters; here by the seed."""
    with extra("train"):
        from datasets import DatasetDict
    rows = TRAINING.load("train", ("instruction", "input", "output", "answer"))
    examples = [_training_example(row, f"{TRAINING.repo}, train, row {n}") for n, row in enumerate(rows)]
    order = seeded_order(len(examples), split_seed)
    # A question whose choices cannot be told can be trained on, but not be scored.
    scorable = [index for index in order if len(examples[index].choices) > 1]
    wanted = sizes.validation or 0
    if wanted >= len(scorable):
        raise sizes.nothing_left(len(examples), "rows")
    validation, held_out = scorable[:wanted], set(scorable[:wanted])
    train = [index for index in order[::-1] if index not in held_out]
    check_size("train", sizes.train, len(train), "examples that are left")
    chosen = {"train": train[: sizes.train], "validation": validation}
    return DatasetDict({name: dataset_of([examples[index] for index in part]) for name, part in chosen.items()})


def _training_example(row: Row, what: str) -> Example:
    if not row["instruction"] or not row["output"]:
        raise UserError(f"{what}: an empty instruction or output")
    prompt = prompts.alpaca(row["instruction"], row["input"] or "")
    keys = prompts.answer_format(row["instruction"])
    choices = [prompts.target(key) for key in keys]
    if row["output"] in choices:
        return Example(prompt, choices, choices.index(row["output"]))
    return Example(prompt, [row["output"]], 0)


COMMONSENSE = Task(
    name="commonsense",
    description="Commonsense170K, tested on BoolQ, PIQA, SIQA, HellaSwag, WinoGrande, ARC-e, ARC-c and OBQA",
    kind="multiple-choice",
    labels=(),
    metric="accuracy",
    text_columns=("prompt", "choices"),
    source=f"hub {TRAINING.repo} and {', '.join(dict.fromkeys(one.data.repo for one in TEST_SETS.values()))}",
    license="that of each of its sources",
    load=_load,
    group="commonsense",
    sizes=SplitSizes(None, 120, None),  # 120: LLM-Adapters
    max_length=256,
    test_sets=tuple(TEST_SETS),
    load_test=_load_test,
    train_examples=170_300,
    held_out={name: one.size for name, one in TEST_SETS.items()},
    prompt_forms=("instruction",),
    never_after=("siqa",),
)
