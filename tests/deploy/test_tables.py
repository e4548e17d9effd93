"""Tables of reports, as text and as HTML."""

from aurora_lora.deploy.tables import as_html, as_text, table


def test_names_are_shown_as_they_are() -> None:
    """Brackets and colons in them are no markup."""
    name = "[bold]block[/0].:star:<b>"
    made = table(f"layers of {name}", ["layer", "error"], [[name, "0.1"]], note=name)
    assert as_text([made]).count(name) == 3
    assert as_html([made]).count("[bold]block[/0].:star:&lt;b&gt;") == 2
