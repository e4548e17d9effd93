"""The questions of the studies that decide each case of docs/worth.md."""

from __future__ import annotations

RANKS = (
    "Half of the weights, ranks by the gradients: above LoRA r=8",
    "A quarter of the weights, ranks by the gradients: above LoRA r=8",
    "Are ranks by the gradients better than r=4 on query and value",
)
_LORA_RANKS = tuple(
    f"LoRA with {share}, ranks by the gradients: above LoRA r=8"
    for share in ("half of the weights", "a quarter of the weights")
)
SAME_START = tuple(f"{ask} with the same start" for ask in (*RANKS[:2], *_LORA_RANKS))
QUARTER = tuple(f"Are {whose}ranks by the gradients better than r=2 on query and value" for whose in ("", "LoRA's "))
_LORA_HALF = "Are LoRA's ranks by the gradients better than r=4 on query and value"
_HALF_OWN_START = tuple(f"{ask}, with LoRA's start" for ask in (RANKS[2], _LORA_HALF))
_UNIFORM_DEFAULT_START = tuple(f"{ask} with its default start" for ask in (*QUARTER, RANKS[2], _LORA_HALF))
_SAME_RANKS = "With the same ranks by the gradients, is AuroRA above LoRA"
TWO_METHODS = tuple(f"{_SAME_RANKS} at {share}" for share in ("half of the weights", "a quarter"))
_TWO_METHODS_TOO = (
    f"{_SAME_RANKS} at half of the weights, both with LoRA's start",
    *(f"Is AuroRA above LoRA at r={r} everywhere" for r in (2, 1)),
    f"{_SAME_RANKS} with as many weights as r=1 everywhere",
)
AS_MANY = tuple(
    f"Are ranks by the gradients better than r=1 everywhere{start}, with fewer weights"
    for start in ("", " with LoRA's start")
)
EVERYWHERE = "Is r=1 everywhere above LoRA r=8, both with LoRA's start"
_EVERYWHERE_ALIGNED = "Is r=1 everywhere above LoRA r=8, both with the aligned start"
_TWO_EVERYWHERE = (
    "Is AuroRA r=2 everywhere above AuroRA r=2 on query and value",
    "Is AuroRA r=2 everywhere above LoRA r=8",
)
_OTHER_WAYS = (
    *_TWO_EVERYWHERE,
    "Are AuroRA's ranks by the gradients better than r=1 everywhere, with as many weights",
    EVERYWHERE,
    _EVERYWHERE_ALIGNED,
    "Half of the weights with LoRA's start, ranks by the gradients: above LoRA r=8",
    AS_MANY[1],
    "How far is half of the weights from full fine-tuning",
    *(
        f"Half of the weights, ranks by the gradients: above {other}"
        for other in (
            "EVA r=8",
            "LoRA-GA r=8",
            *(f"{method} r=8" for method in ("PiSSA", "MoSLoRA", "SineLoRA", "HiRA")),
        )
    ),
)
_MERGES = ("Does the static merge lose against the trained form", "Is the calibrated merge as good as the trained form")
_MERGE = "Does the calibrated merge lose against the trained form"
_MERGES_TOO = ("Does the calibrated merge lose without the skip", "Does the calibrated merge lose at r=2 everywhere")
_HIGH = tuple(f"At a rate far too high, is AuroRA {form}above LoRA" for form in ("", "without the skip "))
_HIGH_SKIP = "At a rate far too high, does the skip help"
_IMAGES = ("ranks-digits", "ranks-cifar10")
_OTHERS = (*_IMAGES, "ranks-wikihow-goal")
_STARTS = ("starts-digits", "starts-cifar10")
_SAME = {r: f"Does AuroRA r={r} without skip beat LoRA r={r}" for r in (1, 2, 4, 8, 16)}
_SAME_WITH_SKIP = "Does AuroRA r=2 beat LoRA r=2"
SAME_LAYERS = "Is AuroRA above LoRA at r=8"
_SAME_TOO = ("Is AuroRA above LoRA at r=2", f"{SAME_LAYERS}, both with the aligned start")
_SAME_PAIRS = tuple(
    f"Is AuroRA above LoRA at r={r}{both}" for both in ("", ", both with the aligned start") for r in (2, 4, 8)
)
_NO_SKIP = {r: f"Is AuroRA without skip above LoRA at r={r}" for r in (2, 4, 8)}
_NO_SKIP_ALIGNED = {r: f"{ask}, both with the aligned start" for r, ask in _NO_SKIP.items()}
_EACH_SKIP = tuple(
    f"Does the skip help at r={r}{start}" for start in ("", " with the aligned start") for r in (2, 4, 8)
)
_EACH_MERGE = tuple(
    f"Does the calibrated merge lose at r={r}{skip}{start}"
    for r in (2, 4, 8)
    for skip in ("", " without the skip")
    for start in ("", " with the aligned start")
)
_METHODS = ("PiSSA", "EVA", "LoRA-GA", "MoSLoRA", "SineLoRA", "HiRA", "full fine-tuning")
_SKIP = ("Does the skip help",)
_START = ("Does the aligned start help AuroRA r=8",)
_LORA_START = "Does the aligned start help LoRA r=8"
_START_OF_EACH = tuple(
    f"Does the aligned start help {method} r={r}" for r in (2, 4, 8) for method in ("AuroRA", "LoRA")
)
_START_OF_RANKS = ("Does the aligned start help ranks by the gradients",)
_ATTENTION = (
    "Are ranks by the gradients better than r=1 on the attention projections with LoRA's start",
    "Are LoRA's ranks by the gradients better than r=1 on the attention projections",
    "Is r=1 on the attention projections better than r=2 on query and value",
    "Is LoRA's r=1 on the attention projections better than r=2 on query and value",
    "Is LoRA r=1 on the attention projections above LoRA r=8",
)
_SAME_ATTENTION = "Is AuroRA above LoRA at r=1 on the attention projections"
_START_OF_ATTENTION = "Does the aligned start help LoRA r=1 on the attention projections"
_OWN_START = "LoRA with half of the weights and its own start: above LoRA r=8"

CASES = {
    "ranks": {
        "ranks-short": (*RANKS, *_LORA_RANKS, *SAME_START, *QUARTER, _LORA_HALF, *_OTHER_WAYS),
        "ranks-converged": (
            *RANKS,
            *_LORA_RANKS,
            *SAME_START,
            *QUARTER,
            _LORA_HALF,
            EVERYWHERE,
            _EVERYWHERE_ALIGNED,
            *AS_MANY,
        ),
        **dict.fromkeys(_IMAGES, (*RANKS[:2], *_LORA_RANKS, *SAME_START, *QUARTER, EVERYWHERE, *_TWO_EVERYWHERE)),
        "ranks-wikihow-goal": (
            *RANKS,
            *_LORA_RANKS,
            *SAME_START,
            *QUARTER,
            _LORA_HALF,
            *_UNIFORM_DEFAULT_START,
            EVERYWHERE,
            *_TWO_EVERYWHERE,
        ),
        "layers": ("Are all linear layers better than query and value",),
        "ranks-movie-rating": (
            *RANKS,
            *_LORA_RANKS,
            *SAME_START,
            *QUARTER,
            _LORA_HALF,
            *_HALF_OWN_START,
            _OWN_START,
            EVERYWHERE,
            *_TWO_EVERYWHERE,
            *_ATTENTION,
        ),
    },
    "same rank": {
        "captured-effect": (*_SAME.values(), _SAME_WITH_SKIP),
        "movie-sentiment": (*(_SAME[r] for r in (2, 4, 8)), _SAME_WITH_SKIP),
        "movie-rating": (*(_SAME[r] for r in (2, 8)), _SAME_WITH_SKIP),
        "ranks-short": (
            *_SAME_PAIRS,
            *_NO_SKIP.values(),
            *_NO_SKIP_ALIGNED.values(),
            *TWO_METHODS,
            *_TWO_METHODS_TOO,
        ),
        "ranks-converged": (
            *_SAME_PAIRS,
            _NO_SKIP[2],
            *TWO_METHODS,
            f"{TWO_METHODS[1]}, both with LoRA's start",
        ),
        "ranks-movie-rating": (
            *_SAME_PAIRS,
            *_NO_SKIP.values(),
            *_NO_SKIP_ALIGNED.values(),
            *TWO_METHODS,
            *_TWO_METHODS_TOO[:2],
            _SAME_ATTENTION,
        ),
        **dict.fromkeys(
            _IMAGES,
            (SAME_LAYERS, *_SAME_TOO, *(_NO_SKIP[r] for r in (2, 8)), *TWO_METHODS, _TWO_METHODS_TOO[1]),
        ),
        "ranks-wikihow-goal": (
            *_SAME_PAIRS,
            *_NO_SKIP.values(),
            *_NO_SKIP_ALIGNED.values(),
            *TWO_METHODS,
            _TWO_METHODS_TOO[1],
        ),
        **dict.fromkeys(_STARTS, (*_SAME_PAIRS, *_NO_SKIP.values(), *_NO_SKIP_ALIGNED.values())),
        "starts-digits": (
            *_SAME_PAIRS,
            *_NO_SKIP.values(),
            *_NO_SKIP_ALIGNED.values(),
            TWO_METHODS[1],
        ),
    },
    "skip": {
        **dict.fromkeys(("captured-effect", "movie-sentiment", "movie-rating"), _SKIP),
        "ranks-short": (
            *(f"Does the skip help at r={r}" for r in (2, 8, 4)),
            *(f"Does the skip help at r={r} with the aligned start" for r in (2, 4, 8)),
        ),
        "ranks-converged": ("Does the skip help at r=2",),
        **dict.fromkeys(_IMAGES, tuple(f"Does the skip help at r={r}" for r in (8, 2))),
        **dict.fromkeys(("ranks-movie-rating", "ranks-wikihow-goal", *_STARTS), _EACH_SKIP),
        "high-rates": (_HIGH_SKIP,),
    },
    "start": {
        "ranks-short": (
            *_START_OF_EACH,
            "Does the aligned start help r=1 everywhere",
            *_START_OF_RANKS,
            f"{_START_OF_RANKS[0]} with as many weights as r=1 everywhere",
        ),
        "ranks-converged": (
            *_START_OF_EACH,
            "Does the aligned start help r=1 everywhere",
            "Does the aligned start help a quarter",
        ),
        "ranks-movie-rating": (*_START_OF_EACH, *_START_OF_RANKS, _START_OF_ATTENTION),
        **dict.fromkeys(_IMAGES, (*_START, _LORA_START)),
        **dict.fromkeys(("ranks-wikihow-goal", *_STARTS), _START_OF_EACH),
    },
    "methods": {
        "ranks-short": (
            *(f"Is {method}'s start better than LoRA's" for method in ("PiSSA", "EVA", "LoRA-GA")),
            *(f"Is {method} above LoRA" for method in ("MoSLoRA", "SineLoRA", "HiRA")),
        ),
        **dict.fromkeys(
            ("ranks-movie-rating", *_OTHERS),
            tuple(f"Is {method} above LoRA" for method in _METHODS),
        ),
    },
    "high rates": {"high-rates": _HIGH},
    "merge": {
        **dict.fromkeys(("captured-effect", "movie-sentiment", "movie-rating"), _MERGES),
        "ranks-short": (_MERGE, *_MERGES_TOO),
        **dict.fromkeys(("ranks-movie-rating", "ranks-digits", "ranks-cifar10"), (_MERGE, *_MERGES_TOO)),
        "ranks-wikihow-goal": (
            _MERGE,
            *_MERGES_TOO,
            "In the paper's setting, does the static merge lose against the trained form",
            "In the paper's setting, is training the static form better",
        ),
        **dict.fromkeys(_STARTS, _EACH_MERGE),
    },
}
"""By case and study, the questions that decide it, by each study's own metric."""
