"""README's links are absolute, since it is also shown without the repository, and lead to files that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOME = "https://github.com/sdegen/sdegen"
README = (ROOT / "README.md").read_text()


def test_every_link_is_absolute_and_every_file_of_ours_is_there():
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", README)
    links += [("!", source) for source in re.findall(r'<img[^>]*src="([^"]+)"', README)]
    assert len(links) > 20
    for picture, link in links:
        assert link.startswith(("https://", "#")), link
        if link.startswith(f"{HOME}/") and "/main/" in link:
            kind, _, name = link.removeprefix(f"{HOME}/").partition("/main/")
            assert kind == ("raw" if picture else "blob"), link
            assert (ROOT / name.partition("#")[0]).is_file(), link
