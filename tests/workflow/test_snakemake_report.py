"""Snakemake's own report of a real run of the workflow."""

import html
import json
import re
import zipfile

import pytest
from conftest import snakemake

from resurface.analysis.captions import CAPTIONS, caption_of

pytestmark = pytest.mark.slow


def test_each_figure_has_its_own_caption(finished, tmp_path):
    snakemake(finished, "--report", str(tmp_path / "report.zip"))
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        page = archive.read("report/report.html").decode()
    found = re.findall(r'"labels": \{"figure": "([^"]+)"\}, "size": "[^"]+", "caption": ("(?:[^"\\]|\\.)*")', page)
    shown = {title: _text_of(json.loads(caption)) for title, caption in found}
    assert shown == {title: caption_of(name, True) for name, (title, *_) in CAPTIONS.items()}


def _text_of(paragraph):
    """The text of an HTML paragraph, as a browser shows it."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", paragraph)).split())
