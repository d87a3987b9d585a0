"""Report pages in tests: a strict reader of HTML, what every page must be, and made-up searches."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np

from flooding.level_search.driver import search
from flooding.level_search.finder import finder
from flooding.testing import fake_record
from small import small

LOADS = r"//[a-z]|url\([^#]|@import|fetch|XMLHttp|eval|localStorage"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Node:
    """An element of a page."""

    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.parts = tag, dict(attributes), []

    @property
    def text(self):
        texts = [part if isinstance(part, str) else part.text for part in self.parts]
        return " ".join("".join(texts).split())

    def find(self, tag, **attributes):
        """All elements below of a tag, with attributes."""
        for part in self.parts:
            if isinstance(part, Node):
                wanted = attributes.items()
                if part.tag == tag and all(part.attributes.get(k) == v for k, v in wanted):
                    yield part
                yield from part.find(tag, **attributes)


class Tree(HTMLParser):
    """Reads a page strictly: every element is closed where it was opened."""

    def __init__(self):
        super().__init__()
        self.stack = [Node("", {})]

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute of {tag} is there twice"
        node = Node(tag, attributes)
        self.stack[-1].parts.append(node)
        if tag not in VOID:
            self.stack.append(node)

    def handle_startendtag(self, tag, attributes):
        self.stack[-1].parts.append(Node(tag, attributes))

    def handle_endtag(self, tag):
        assert self.stack.pop().tag == tag

    def handle_data(self, data):
        self.stack[-1].parts.append(data)


def parse(html):
    tree = Tree()
    tree.feed(html)
    tree.close()
    assert len(tree.stack) == 1
    [root] = [part for part in tree.stack[0].parts if isinstance(part, Node)]
    return root


def elements(node):
    for part in node.parts:
        if isinstance(part, Node):
            yield part
            yield from elements(part)


def rows_of(root, name):
    """The cells of a table, as lists of what they are sorted by."""
    [table] = root.find("table", id=name)
    rows = []
    for row in table.find("tr"):
        cells = [cell for cell in row.parts if isinstance(cell, Node)]
        rows.append([cell.attributes.get("data-key") for cell in cells])
    return rows[1:]


def check_structure(root):
    """Headings in order, named figures, tables with scopes, unique identifiers, one main."""
    nodes = list(elements(root))
    assert root.attributes["lang"] == "en"
    ids = [node.attributes["id"] for node in nodes if "id" in node.attributes]
    assert len(set(ids)) == len(ids)
    levels = [int(node.tag[1]) for node in nodes if re.fullmatch(r"h[1-6]", node.tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert len(list(root.find("main"))) == 1
    for node in nodes:
        for name in node.attributes.get("aria-labelledby", "").split():
            assert name in ids
        if node.tag == "svg" and node.attributes.get("aria-hidden") != "true":
            kinds = [child.tag for child in node.parts if isinstance(child, Node)]
            assert kinds[:2] == ["title", "desc"]
            assert all(child.text for child in node.parts[:4] if isinstance(child, Node))
        if node.tag == "table":
            assert next(node.find("caption")).text
            heads = [head for part in node.find("thead") for head in part.find("th")]
            assert heads
            for head in heads:
                assert head.attributes["scope"] == "col"
                assert head.attributes["aria-sort"] in {"none", "ascending", "descending"}
                assert next(head.find("button")).text
            for row in [row for part in node.find("tbody") for row in part.find("tr")]:
                assert len([c for c in row.parts if isinstance(c, Node)]) == len(heads)
                assert len(list(row.find("th", scope="row"))) == 1
        if node.tag == "img":
            assert node.attributes["alt"]
        if node.tag == "button":
            assert node.attributes["type"] == "button"


def check_is_alone(html):
    """Nothing is loaded from anywhere: no address in any element or style, but in plain text."""
    for node in elements(parse(html)):
        for name in ("src", "href", "srcset", "action", "poster", "data", "xlink:href"):
            assert node.attributes.get(name, "#").startswith(("#", "data:"))
        if node.tag in {"style", "script"}:
            assert not re.search(
                r"//[a-z]|url\(|@import|fetch|XMLHttp|eval|localStorage", node.text
            )
        assert not [name for name in node.attributes if name.startswith("on")]


def searched(num_seeds=2, **changes):
    """A search of made-up Records by the finder."""
    problem = small(**{"max_epochs": 40} | changes)
    records = {}

    def train(runs):
        made = [fake_record(run) for run in runs]
        for number, record in enumerate(made):
            bins = np.zeros((3, 15), np.float32)
            bins[:, -1] = 0.9, 0.8, 100
            arrays, metrics = {"last.reliability": bins}, {"last.test_ece": 0.1}
            about = {"val_examples": 30, "on": "a machine", "seconds": 2.0}
            about["epochs_trained"] = record.run.epochs - 2  # the others were shared
            made[number] = replace(
                record, arrays=arrays, metrics={**record.metrics, **metrics}, metadata=about
            )
            records[id(record)] = made[number]
        return made

    return search(finder(problem, seeds=range(num_seeds)), train)
