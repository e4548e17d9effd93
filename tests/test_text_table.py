"""Tables of text."""

import io

from rich.console import Console

from aurora_lora.text_table import TextTable, printable


def test_values_are_broken_after_texts_and_before_numbers() -> None:
    table = TextTable(
        "", ["a name", "chosen", "score"], [["two words", "lr 0.0001, highest", "80.1 ± 0.5"]], align="lvr"
    )
    assert table.least_width == len("words" + "lr 0.0001, highest" + "80.1 ± 0.5") + 7
    for width, whole in ((table.least_width, True), (table.least_width - 1, False)):
        console = Console(width=width)
        with console.capture() as found:
            console.print(table)
        assert ("lr 0.0001, highest" in found.get()) == whole
        assert "80.1 ± 0.5" in found.get()
    assert table.markdown().splitlines()[1] == "|---|---|--:|"


def test_no_cell_is_cut_while_another_can_be_broken() -> None:
    """The table of a study, with a column more than has room."""
    headers = ["setting", "params", "chosen", "form", "accuracy %", "accuracy per char. %", "nll"]
    row = ["full fine-tuning", "134,515,008", "lr 4e-05, highest", "calibrated", "34.9 ± 0.4", "42.9 ± 2.1", "5.370"]
    table = TextTable("", headers, [row, ["AuroRA-S paper r=2", *row[1:]]])
    for width in (76, 80, 120):
        console = Console(width=width)
        with console.capture() as found:
            console.print(table)
        text = found.get()
        assert "…" not in text
        assert {"134,515,008", "calibrated", "accuracy", "5.370"} <= set(text.split())
        assert max(map(len, text.splitlines())) <= width
    assert "34.9 ± 0.4" in text


def test_a_cell_of_a_document_is_one_line_and_no_column_more() -> None:
    table = TextTable("", ["", "a | b"], [["one\n    two", "int | str"]], note="n | m", align="l")
    assert table.markdown() == "|  | a \\| b |\n|---|---|\n| one two | int \\| str |\n\nn | m"


def test_a_cell_does_not_control_the_terminal() -> None:
    assert printable("a\x1b]0;title\x07b\r\x9b31m") == "a\\x1b]0;title\\x07b\\x0d\\x9b31m"
    assert printable("Zürich,\n\t日本") == "Zürich,\n\t日本"
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(TextTable("", ["label"], [["neg\x1b[2J"]]))
    assert "\x1b" not in console.export_text()
