"""Tables of text."""

from rich.console import Console

from aurora_lora.text_table import LONGEST_NAME, TextTable


def shown(first: str, width: int = 60) -> str:
    table = TextTable("", ["question", "difference", "95% interval"], [[first, "+4.1", "+3.2 to +4.9"]], align="lrr")
    console = Console(width=width)
    with console.capture() as found:
        console.print(table.rich())
    return found.get()


def test_a_long_question_is_broken_into_lines_and_the_numbers_are_not() -> None:
    text = shown("Is it above LoRA of rank eight on query and value, as " + "very " * 10 + "often asked")
    assert "+3.2 to +4.9" in text
    assert "95% interval" in text


def test_a_name_is_never_broken() -> None:
    name = "AuroRA with a name of many words, no F"
    assert len(name) <= LONGEST_NAME
    assert name in shown(name, 50)
