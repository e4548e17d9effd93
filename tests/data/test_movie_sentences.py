import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aurora_lora.data import TASKS, SplitSizes, get_task, movie_sentences
from aurora_lora.data.fetch import OfflineError, fetch
from aurora_lora.data.movie_sentences import RatedSentence, normalise, read_sentences, split_sentences
from aurora_lora.errors import UserError


def _rows(count: int) -> list[tuple[float, str]]:
    """Sentences with ratings around zero: about one in eight is not clear."""
    return [(round(4 * np.sin(index), 3), f"sentence number {index}") for index in range(count)]


def _write(path: Path, rows: list[tuple[float, str]]) -> Path:
    path.write_bytes("\r\n".join(f"{n}\t{rating}\t{text}" for n, (rating, text) in enumerate(rows, 1)).encode())
    return path


def _sentences(count: int = 200) -> list[RatedSentence]:
    return [RatedSentence(text, rating, normalise(text)) for rating, text in _rows(count)]


@pytest.fixture
def film_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file in the place of the fetched one, with duplicates."""
    rows = [*_rows(200), (2.0, "Sentence  NUMBER 7!"), (-3.0, "'sentence number 8'")]
    monkeypatch.setattr(movie_sentences, "fetch", lambda _: tmp_path)
    return _write(tmp_path / movie_sentences._FILE, rows)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A pretentious mess.", "...a  pretentious\tMESS...", True),
        ("clich\u00e9s", "cliche\u0301s", True),
        ("\uff21 film", "a film", True),
        ("Straße", "STRASSE", True),
        ("well_made", "well made", True),
        ("one of the best films", "one of the worst films", False),
        ("!!!", "???", False),
    ],
)
def test_what_counts_as_the_same_sentence(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) is same


def test_duplicates_become_one_sentence_with_the_mean_rating(tmp_path: Path) -> None:
    rows = [(1.0, "A mess."), (3.0, "Good"), (-2.0, "...a mess!"), (-1.5, "A  MESS")]
    first, second = read_sentences(_write(tmp_path / "f.txt", rows))
    assert (first.text, first.rating) == ("A mess.", pytest.approx(-2.5 / 3))
    assert (second.text, second.rating) == ("Good", 3.0)


def test_contradicting_duplicates_have_no_clear_sentiment(tmp_path: Path) -> None:
    (sentence,) = read_sentences(_write(tmp_path / "f.txt", [(2.0, "Fine"), (-2.0, "fine")]))
    assert not sentence.is_clear


@pytest.mark.parametrize(
    "line", ["2\t1.0", "2\tgood\tfilm", "2\t4.1\tfilm", "2\tnan\tfilm", "2\t1.0\t ", "2\t1\tfilm\tmore", "words"]
)
def test_malformed_row(tmp_path: Path, line: str) -> None:
    path = tmp_path / "f.txt"
    path.write_bytes(f"1\t0.5\tfine\r\n{line}\r\n".encode())
    with pytest.raises(UserError, match=r"f.txt, line 2: expected id, rating .* got") as error:
        read_sentences(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "words"), [(b"", "holds no sentences"), (b"1\t1.0\t\xff", "is not UTF-8")])
def test_file_without_sentences(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "f.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_sentences(path)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**40),
    test=st.integers(1, 60),
    validation=st.integers(1, 60),
    train=st.none() | st.integers(1, 30),
    clear_only=st.booleans(),
)
def test_splits_never_overlap(seed: int, test: int, validation: int, train: int | None, clear_only: bool) -> None:
    sentences = _sentences()
    sizes = SplitSizes(train, validation, test)
    splits = split_sentences(sentences, sizes, seed, clear_only=clear_only)
    keys = [one.key for split in splits.values() for one in split]
    assert len(keys) == len(set(keys))
    assert [len(splits["validation"]), len(splits["test"])] == [validation, test]
    assert train is None or len(splits["train"]) == train
    assert not clear_only or all(one.is_clear for split in splits.values() for one in split)

    # The order of the file plays no part.
    assert splits == split_sentences(sentences[::-1], sizes, seed, clear_only=clear_only)

    # Held-out sentences depend on no training size, and a smaller train is the start of a larger one.
    whole = split_sentences(sentences, SplitSizes(None, validation, test), seed, clear_only=clear_only)
    assert (splits["validation"], splits["test"]) == (whole["validation"], whole["test"])
    assert splits["train"] == whole["train"][: len(splits["train"])]

    # Training sentences come from the other end: they stay where they are when more is held out.
    if train is not None:
        more = split_sentences(sentences, SplitSizes(train, validation + 5, test + 5), seed, clear_only=clear_only)
        assert more["train"] == splits["train"]

    # The other task, with the same sizes, puts no sentence of one split into another.
    other = split_sentences(sentences, SplitSizes(None, validation, test), seed, clear_only=not clear_only)
    for name, split in whole.items():
        for other_name in set(other) - {name}:
            assert not {one.key for one in split} & {one.key for one in other[other_name]}


def test_seeds_differ() -> None:
    sizes = SplitSizes(None, 20, 20)
    assert split_sentences(_sentences(), sizes, 0, clear_only=True) != split_sentences(
        _sentences(), sizes, 1, clear_only=True
    )


def test_sizes_that_exceed_the_data() -> None:
    sentences = _sentences()
    clear = sum(one.is_clear for one in sentences)
    with pytest.raises(UserError, match=f"_size: 100 and task.test_size: 100 leave nothing .*{clear} sentences"):
        split_sentences(sentences, SplitSizes(None, 100, 100), 0, clear_only=True)
    with pytest.raises(UserError, match=f"train_size: 10,000 is more than the {clear - 30:,} sentences that are left"):
        split_sentences(sentences, SplitSizes(10_000, 10, 20), 0, clear_only=True)
    last = SplitSizes(None, 1, clear - 2)
    assert len(split_sentences(sentences, last, 0, clear_only=True)["train"]) == 1


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, -3)])
def test_size_below_one(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=r"_size: (0|-3) is not a number of at least 1"):
        SplitSizes(*sizes)


def test_sentiment(film_file: Path) -> None:
    data = get_task("movie-sentiment").load(SplitSizes(40, 10, 20), 3)
    assert data.num_rows == {"train": 40, "validation": 10, "test": 20}
    assert data["train"].features["label"].names == ["negative", "positive"]
    assert all(not split.cache_files for split in data.values())
    ratings = {one.text: one.rating for one in read_sentences(film_file)}
    for split in data.values():
        for row in split:
            assert row["label"] == (ratings[row["text"]] > 0)
            assert abs(ratings[row["text"]]) >= 0.5


def test_rating(film_file: Path) -> None:
    data = get_task("movie-rating").load(SplitSizes(None, 10, 20), 3)
    ratings = {one.text: one.rating for one in read_sentences(film_file)}
    assert len(ratings) == 200
    rows = [row for split in data.values() for row in split]
    assert all(row["label"] == pytest.approx(ratings[row["text"]], abs=1e-6) for row in rows)
    assert any(abs(row["label"]) < 0.5 for row in rows)


def test_registry() -> None:
    for name, task in TASKS.items():
        assert name == task.name
        if task.kind != "image-classification":  # some of these have their labels in the data
            assert bool(task.labels) == (task.kind == "classification")
    with pytest.raises(UserError, match="'movie-sentimant': unknown task; did you mean 'movie-sentiment'"):
        get_task("movie-sentimant")
    with pytest.raises(UserError, match=r"'xyz': unknown task \(allowed: movie-sentiment, movie-rating, siqa"):
        get_task("xyz")


def test_import_needs_no_extra() -> None:
    """The tasks can be listed with the core install alone."""
    code = """
import sys
for name in ("datasets", "platformdirs", "sklearn", "scipy"):
    sys.modules[name] = None
import aurora_lora.data, aurora_lora.data.models
from aurora_lora.errors import UserError
from aurora_lora.data import TASKS, SplitSizes
for task in TASKS.values():
    try:
        task.load(SplitSizes(1, 1, 1), 0)
    except UserError as error:
        assert "aurora-lora[train]" in str(error), error
    else:
        raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.packaged
def test_the_real_sentences() -> None:
    try:
        folder = fetch(movie_sentences.MOVIE_SENTENCES)
    except OfflineError as error:
        pytest.skip(str(error))
    lines = (folder / movie_sentences._FILE).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 10_605
    sentences = read_sentences(folder / movie_sentences._FILE)
    assert len(sentences) == 10_603
    clear = [one for one in sentences if one.is_clear]
    assert (sum(one.rating > 0 for one in clear), sum(one.rating < 0 for one in clear)) == (4_995, 5_075)

    sizes = SplitSizes(None, 1_000, 2_000)
    sentiment, rating = (get_task(name).load(sizes, 0) for name in ("movie-sentiment", "movie-rating"))
    assert sentiment.num_rows == {"train": 7_070, "validation": 1_000, "test": 2_000}
    for name, data in (("movie-sentiment", sentiment), ("movie-rating", rating)):
        assert data.num_rows["train"] == get_task(name).train_examples
        keys = [normalise(text) for split in data.values() for text in split["text"]]
        assert len(keys) == len(set(keys))
    assert not set(sentiment["train"]["text"]) & set(rating["test"]["text"])
    assert 0.45 < np.mean(sentiment["test"]["label"]) < 0.55
