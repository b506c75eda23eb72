"""Programs that stand in a page of docs/: each is a code block whose first line is a comment with its file's name."""
import re

import roomd

BLOCK = re.compile(r"^```(\w+)\n((?:#|//) ([\w.]+): [^\n]*\n.*?)^```$", re.M | re.S)


def write_programs(page, folder):
    """All of a page's programs into a folder; their names."""
    programs = {name: text for _, text, name in BLOCK.findall((roomd.TOP / "docs" / page).read_text())}
    assert programs, f"docs/{page} has no programs"
    for name, text in programs.items():
        (folder / name).write_text(text)
    return sorted(programs)


def change(text, changes):
    """A file as shipped with some lines changed; each of them must be there."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is not there"
        text = text.replace(old, new)
    return text
