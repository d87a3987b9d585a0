"""Names are printable on any terminal, whatever is in them."""

import pytest

from flooding.text import one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain − ± 🦊 naïve", "plain − ± 🦊 naïve"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2066x\u2069", r"\u2066x\u2069"),
        ("zero\u200bwidth", r"zero\u200bwidth"),
        ("line\u2028break", r"line\u2028break"),
        ("bad\udcff", r"bad\udcff"),
        ("\x7f\x00", r"\x7f\x00"),
        ("[red]x[/]", "[red]x[/]"),
    ],
    ids=ascii,
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert printable(text) == shown
    assert printable(text).isprintable()


def test_a_message_of_several_lines_is_one():
    assert (
        one_line(ValueError("size\n\t mismatch\r\n\n for \x1b[2Jx "))
        == r"size mismatch for \x1b[2Jx"
    )
