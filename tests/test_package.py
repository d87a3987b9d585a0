"""What the package says about itself: one version, the method's authors, no invented address."""

import re
import tomllib
from pathlib import Path

import yaml

import flooding

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_there_is_one_version():
    assert PROJECT["version"] == flooding.__version__ == CITATION["version"]


def test_the_paper_is_cited_by_its_authors():
    paper = CITATION["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == [
        *("Ishida", "Yamane", "Sakai", "Niu", "Sugiyama")
    ]
    assert paper["year"] == 2020
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert paper["title"] in (ROOT / "README.md").read_text()


def test_no_address_is_invented():
    # The project is published nowhere yet; an address would lead to somebody else.
    assert set(PROJECT["urls"]) == {"Paper"}
    assert "repository-code" not in CITATION
    site = (ROOT / "mkdocs.yml").read_text()
    assert not re.search(r"^(site_url|repo_url):", site, re.MULTILINE)


def test_the_classifiers_name_the_supported_pythons():
    versions = [
        name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)
    ]
    assert versions[0] == PROJECT["requires-python"].removeprefix(">=")
    assert versions == sorted(versions)
