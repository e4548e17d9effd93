"""One of our experiments in PEFT's comparison of methods on MetaMathQA, by PEFT's own script.

    python benchmarks/method_comparison/run.py PEFT experiments/aurora/llama-3.2-3B-rank8 --output results

PEFT is a checkout of huggingface/peft; its `method_comparison/MetaMathQA/run.py` trains and scores, unchanged, with its
settings, on the GPU that it asks for. This wrapper registers AuroRA with PEFT and does what a user of AuroRA does
around the training, as `aurora.json` beside the experiment's `adapter_config.json` says:

- `aligned`: matrix A starts from the gradients of that many training examples (`aurora_lora.probe`);
- `calibrated`: before the test the adapters are calibrated on that many training examples, so that the accuracy and
  the forgetting are those of the merged model.

PEFT files a run under `results/` if the branch of the git repository around the *installed* package is called main,
which may be any repository. Here every run goes to OUTPUT/temporary_results or OUTPUT/cancelled_results, unless
`--official` asks for PEFT's own folders.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import aurora_lora

HERE = Path(__file__).resolve().parent / "MetaMathQA"
SETTINGS = "aurora.json"


def modules_of(peft: Path) -> tuple[Any, Any]:
    """PEFT's `run` and `utils`, which are scripts, not a package."""
    folder = peft / "method_comparison" / "MetaMathQA"
    if not (folder / "run.py").is_file():
        raise SystemExit(f"{peft} has no method_comparison/MetaMathQA/run.py: name a checkout of huggingface/peft.")
    sys.path.insert(0, str(folder))
    import run
    import utils

    run.print_verbose = lambda *args, **kwargs: print(*args, **{**kwargs, "file": sys.stderr})
    return run, utils


def keep_apart(run: Any, utils: Any, output: Path) -> None:
    """Let nothing be filed as an official result."""
    for name, folder in (("RESULT_PATH_TEST", "temporary_results"), ("RESULT_PATH_CANCELLED", "cancelled_results")):
        path = output.resolve() / folder
        path.mkdir(parents=True, exist_ok=True)
        setattr(utils, name, str(path))
    # PEFT's asks git about the folder that it is installed in, which may be in no repository
    run.get_peft_branch = utils.get_peft_branch = lambda: f"aurora-lora {aurora_lora.__version__}"


def settings_of(experiment: Path) -> dict[str, int]:
    """`aligned` and `calibrated`: numbers of training examples, 0 for not at all."""
    given = json.loads((experiment / SETTINGS).read_text()) if (experiment / SETTINGS).exists() else {}
    if unknown := set(given) - {"aligned", "calibrated"}:
        raise SystemExit(f"{experiment / SETTINGS}: {', '.join(sorted(unknown))} is not known: aligned, calibrated")
    return {"aligned": 0, "calibrated": 0} | given


def training_batches(
    run: Any, tokenizer: Any, template: str, n: int, size: int = 4
) -> Iterator[dict[str, torch.Tensor]]:
    """The first n examples that training will see, with its labels."""
    rows, *_ = run.get_train_valid_test_datasets(tokenizer=tokenizer, query_template=template, print_fn=lambda *_: None)
    for at in range(0, min(n, len(rows)), size):
        piece = rows[at : min(at + size, n)]
        piece.pop("response", None)
        lengths = [len(ids) for ids in piece["input_ids"]]
        batch = dict(tokenizer.pad(piece, return_tensors="pt"))
        labels = batch["input_ids"].clone()
        for row, length in zip(labels, lengths, strict=True):
            row[length + 1 :] = -100
        yield {**batch, "labels": labels}


def with_aurora(run: Any, utils: Any, experiment: Path) -> None:
    """Align after the model is made, and calibrate before the test."""
    settings = settings_of(experiment)
    config = utils.get_train_config(str(experiment / utils.FILE_NAME_TRAIN_PARAMS))
    make, score = run.get_model, run.evaluate
    tokenizer = None

    def batches(n: int) -> list[dict[str, torch.Tensor]]:
        nonlocal tokenizer
        if tokenizer is None:
            tokenizer = run.get_tokenizer(model_id=config.model_id, max_seq_length=config.max_seq_length)
        return list(training_batches(run, tokenizer, config.query_template, n))

    def get_model(**options: Any) -> Any:
        model = make(**options)
        if settings["aligned"]:
            found = aurora_lora.probe(model, batches(settings["aligned"]))
            aurora_lora.align(model, found)
        return model

    def evaluate(*args: Any, **options: Any) -> Any:
        # only the test tells whether it wants a progress bar
        if settings["calibrated"] and "use_tqdm" in options:
            inputs = [{key: v for key, v in b.items() if key != "labels"} for b in batches(settings["calibrated"])]
            result = aurora_lora.calibrate(options["model"], inputs)
            print(f"calibrated on {settings['calibrated']} examples: {result}", file=sys.stderr)
        return score(*args, **options)

    run.get_model, run.evaluate = get_model, evaluate


def main(prepare: Callable[[Any, Any], None] = lambda run, utils: None) -> None:
    """Run the experiment that the command line names; `prepare` may change PEFT's modules before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peft", type=Path, help="a checkout of huggingface/peft")
    parser.add_argument("experiment", help="such as experiments/aurora/llama-3.2-3B-rank8")
    parser.add_argument("--output", type=Path, default=Path("results"), help="where results go")
    parser.add_argument("--official", action="store_true", help="file the result where PEFT's script would")
    args = parser.parse_args()
    args.experiment = str(Path(args.experiment))  # PEFT's script wants a path of three parts, and no "./"
    if not (HERE / args.experiment / "adapter_config.json").is_file():
        known = sorted(str(path.parent.relative_to(HERE)) for path in HERE.glob("experiments/*/*/adapter_config.json"))
        raise SystemExit(f"{args.experiment} is no experiment: {', '.join(known)}")
    output, peft = args.output.resolve(), args.peft.resolve()
    run, utils = modules_of(peft)
    prepare(run, utils)
    if not args.official:
        keep_apart(run, utils, output)
    os.chdir(HERE)  # PEFT's script wants a path of three parts
    experiment = Path(args.experiment)
    with_aurora(run, utils, experiment)
    name = utils.validate_experiment_path(args.experiment)
    run.main(path_experiment=args.experiment, experiment_name=name, clean=True, bucket_name=None)


if __name__ == "__main__":
    main()
