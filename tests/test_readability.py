"""A page can be taken in at a glance: short paragraphs, no statistics on the first screen.

``python tests/test_readability.py`` prints the numbers of every page.
"""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
MAX_LINES = 120
MAX_WORDS_OF_A_PARAGRAPH = 60
# What fits on a screen: headings, text and tables, without code. A picture fills the rest of it;
# docs/check_site.py reads what is in the window of a browser.
WORDS_OF_A_SCREEN = 200
PICTURE = "(picture)"  # a picture in a paragraph of its own; its text is not read on a screen
P_VALUE = re.compile(r"\bp ?(?:[<=>≤]|[01]?\.\d)|\bp-value", re.IGNORECASE)


def plain_text(markdown):
    """A page without code blocks, comments and the front matter; links by their text."""
    text = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->|<[^>\n]+>", "", text, flags=re.DOTALL)
    text = re.sub(r"(?m)^!\[[^\]]*\]\([^)]*\)$", PICTURE, text)
    return re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)


def paragraphs(text):
    """Paragraphs and list items; a table is neither."""
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    return [
        block.strip() for block in blocks if block.strip() and not block.lstrip().startswith("|")
    ]


def first_screen(text):
    """Whole paragraphs and tables, until the words of a screen are reached."""
    blocks, count = [], 0
    for block in re.split(r"\n\s*\n", text):
        blocks.append(block)
        count += WORDS_OF_A_SCREEN if block == PICTURE else len(block.split())
        if count >= WORDS_OF_A_SCREEN:
            break
    return "\n\n".join(blocks)


def measure(text):
    """Words, words of the longest paragraph, and p values."""
    longest = max((len(block.split()) for block in paragraphs(text)), default=0)
    return len(text.split()), longest, len(P_VALUE.findall(text))


def test_the_readme_is_short_and_plain():
    assert len(README.read_text().splitlines()) <= MAX_LINES
    words, longest, p_values = measure(plain_text(README.read_text()))
    print(f"README: {words} words, longest paragraph {longest} words, {p_values} p values")
    assert longest < MAX_WORDS_OF_A_PARAGRAPH
    assert p_values == 0


@pytest.mark.parametrize(
    "page",
    PAGES,
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_the_first_screen_of_a_page_is_plain(page):
    _, longest, p_values = measure(first_screen(plain_text(page.read_text())))
    assert longest < MAX_WORDS_OF_A_PARAGRAPH
    assert p_values == 0


def test_the_numbers_are_those_of_a_page_counted_by_hand():
    page = (
        "# Two words\n\nOne two\nthree.\n\n```text\nnot counted p < 0.1\n```\n\n- [four](five.md)\n"
    )
    assert measure(plain_text(page + "- p 0.03, p = 0.5 and p .5\n")) == (17, 9, 3)
    assert measure(plain_text("| a table | p < 0.001 |\n")) == (8, 0, 1)
    assert measure("tip 0.5, step 1.0, map < 3") == (7, 7, 0)


def test_a_picture_fills_the_screen():
    page = "# A title\n\n![p 0.1](a.png)\n\nIts caption, p 0.2\n"
    assert measure(first_screen(plain_text(page))) == (4, 3, 0)
    assert measure(first_screen(plain_text(page.replace("![", "see ["))))[2] == 2


if __name__ == "__main__":
    for page in PAGES:
        text = plain_text(page.read_text())
        screen = measure(first_screen(text))
        row = (measure(text)[0], *screen[1:], page.relative_to(ROOT))
        sys.stdout.write("{:6} words; first screen: longest {:4}, p values {:3}  {}\n".format(*row))
