"""Links between documents, and from sources to documents, lead somewhere."""
import re

import roomd

DOCUMENTS = [roomd.TOP / "README.md", *sorted((roomd.TOP / "docs").glob("*.md"))]
SOURCES = [path for folder in ("room", "history", "proxy", "gateway-adapter", "deploy", "tests") for path in sorted((roomd.TOP / folder).rglob("*"))
    if path.is_file() and path.suffix in (".c", ".h", ".py", ".sh", ".sql", "") and "corpus" not in path.parts]


def anchors(path):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_link(path, target, at):
    file, _, anchor = target.partition("#")
    found = (path.parent / file).resolve() if file else path
    assert found.exists(), f"{at}: there is no {target}"
    assert not anchor or anchor in anchors(found), f"{at}: {found.name} has no heading #{anchor}"


def test_links_between_documents_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            if not target.startswith("http"):
                check_link(path, target, path.name)


def test_what_sources_say_of_documents_is_there():
    pointers = 0
    for path in SOURCES:
        for target in re.findall(r"\b(docs/[\w.-]+\.(?:md|yaml)(?:#[a-z0-9-]+)?)", path.read_text(errors="replace")):
            check_link(roomd.TOP / "README.md", target, path.relative_to(roomd.TOP))
            pointers += 1
    assert pointers > 5


def test_folders_of_the_map_are_there():
    table = (roomd.TOP / "README.md").read_text().split("## What is where", 1)[1].split("\n## ", 1)[0]
    folders = re.findall(r"^\| `([\w/-]+)/` \|", table, re.M)
    assert {path.name for path in roomd.TOP.iterdir() if path.is_dir() and not path.name.startswith((".", "build"))} <= {folder.split("/")[0] for folder in folders}
    for folder in folders:
        assert (roomd.TOP / folder).is_dir(), folder
