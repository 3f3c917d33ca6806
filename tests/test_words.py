"""Plain words: rejected phrases in docstrings, messages and documents, vague names, sentences that are too long."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
SOURCES = sorted((REPO / "sentiment_core").rglob("*.py"))
PAGES = [*sorted(REPO.glob("*.md")), *sorted((REPO / "docs").rglob("*.md"))]
FIRST_WORDS = ("What", "Of", "Whether", "How", "Where", "Which", "Who", "That", "Those", "By", "As", "In", "To")
REJECTED = re.compile(
    r"\b(?:(?:is|are|was) told|(?:goes|go|went|gone|going) on with|mend(?:s|ed|ing)?|anew|such an? one|"
    r"(?<!each )(?<!one )of which|"
    r"(?<!there )(?:is|are|was) no (?:\w+ )?(?:folder|bundle|file|path|table|column|number)s?|asked for something else|"
    r"belongs behind|asks who is there|as fast as in past|what is committed|it may concern|nobody knows|"
    r"some such|the like of|in words\b|put by|taken for dead)\b",
    re.IGNORECASE,
)
VAGUE_NAMES = {*["found", "told", "some", "one", "other", "each", "given", "kept", "known", "whole", "what", "place"]}
MEAN_WORDS, MOST_WORDS = 16, 25  # of a page's sentences; of one sentence


def named(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each string, f-strings piece by piece."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def vague_names(tree: ast.Module) -> set[str]:
    """Return the names of locals and parameters that name nothing; `other` may be what is added or merged."""
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    names = {node.arg for function in functions for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    names -= {"other"}
    for function in functions:
        stored = (node for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
        names |= {node.id for node in stored}
    return names & VAGUE_NAMES


def sentences(page: str) -> list[str]:
    """Split a page's prose into sentences, without code, tables, headings and the page's front matter."""
    page = re.sub(r"\A---\n.*?\n---\n", "", page, flags=re.DOTALL)
    page = re.sub(r"^[ ]*(```|~~~).*?^[ ]*\1", "\n\n", page, flags=re.DOTALL | re.MULTILINE)
    page = re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL)
    page = re.sub(r"^\s*(?:#|\||\[[^\]]+\]:|:::|!!!|!\[|<|- \[).*$", "\n", page, flags=re.MULTILINE)
    page = re.sub(r"^\s*(?:[-*+]|\d+\.)\s+", "\n\n", page, flags=re.MULTILINE)  # an item begins a sentence
    page = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "code", page))
    found = []
    for paragraph in re.split(r"\n\s*\n", page):
        found += re.split(r"(?<=[.!?])[)\"*]*\s+(?=[\"*(A-Z0-9c])", " ".join(paragraph.split()))
    return [sentence for sentence in found if len(sentence.split()) > 2]


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_docstrings_messages_and_names_are_plain(path):
    tree = ast.parse(path.read_text())
    wrong = [
        f"{line}: begins with {text.split()[0]!r}" for line, text in docstrings(tree) if text.split()[0] in FIRST_WORDS
    ]
    wrong += [f"{line}: {match[0]!r}" for line, text in texts(tree) for match in REJECTED.finditer(text)]
    wrong += [f"the name {name!r}" for name in sorted(vague_names(tree))]
    assert not wrong, f"{named(path)}: " + "; ".join(wrong)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_pages_are_in_plain_words_and_short_sentences(page):
    text = page.read_text()
    prose = sentences(text)
    lengths = [len(sentence.split()) for sentence in prose]
    wrong = [f"{match[0]!r} is a rejected phrase" for match in REJECTED.finditer(text)]
    wrong += [f"{length} words: {s}" for s, length in zip(prose, lengths, strict=True) if length > MOST_WORDS]
    if prose and sum(lengths) / len(lengths) >= MEAN_WORDS:
        wrong.append(f"sentences have {sum(lengths) / len(lengths):.1f} words on average, {MEAN_WORDS} at most")
    assert not wrong, f"{named(page)}:\n" + "\n".join(wrong)
