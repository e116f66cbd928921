"""Find words of the project's former private vocabulary in names, prose and messages.

Names are the identifiers that a file defines, split at underscores and capitals. Prose is
docstrings, comments, Markdown and comments of TOML files. Messages are the string literals in
errors, printed lines, log records and the help of the command line. Other string literals are
data (captions, templates, file formats) and are not read.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tests.style.tree import ROOT

CONTRACT_NAMES = ("colour_asked_colour_drawn", "spelling=british")
"""Quoted names that other software reads, which stay as they are."""

EVERYWHERE = {
    r"tell|tells|telling|tellings|teller|tellers|told|untold": "report, log, return, print",
    r"mend|mends|mended|mending": "fix",
    r"wanted": "expected",
    r"rooms?": "package; remaining tokens; capacity",
    r"roads?": "pipeline",
    r"walls|wall(?![ -]?(clock|time))": "import contract",
    r"lies": "is",
    r"stands?(?! for\b|-in\b|-ins\b)|stood": "is",
    r"hand(s|ed|ing)? out": "return, provide",
    r"foretells?|foretold": "predict",
    r"sight": "attention metadata",
    r"whoever|nobody": "(drop)",
    r"strangers?": "untrusted clients",
    r"anew": "again",
    r"whisker": "rounding error",
    r"rungs?": "level",
    r"pictures?|pictured": "image; pixels",
    r"behind": "after",
    r"company": "the rest of the batch",
    r"put(s|ting)? off": "postpone",
    r"taught|learnt": "trained, learned",
    r"owners?": "document ids",
    r"journals?": "run log",
    r"eyes?": "diagnostics",
    r"desks?": "request handler",
    r"scribes?": "prompt encoder",
    r"narrators?|narrations?|narrated?|narrates": "output processor",
    r"seats?|seated": "batch slot",
    r"choosers?": "sampler",
    r"drawers?": "sampler",
    r"cupboards?": "pool",
    r"heats?": "temperature",
    r"hears?|owe|owes|owed|remembers?|foreseen?": "(no personification)",
    r"so many": "(number of)",
    r"of those that|of those who": "(rewrite)",
    r"of ours": "our, calumma's",
    r"(ids|id) a second": "tokens/s",
    r"licences?|licenced": "license",
    r"colours?|coloured|colouring|colourful|discolou?r": "color",
    r"gr[e]y|greys|greyscale": "gray",
    r"(normal|initial|synchron|serial|optim|recogn|quant|token|general|summar|organ|minim|maxim"
    r"|emphas|vector|parallel|random|categor|special|local|final|util|visual|character|regular"
    r"|author|custom|standard|canonical|material)is(e|es|ed|ing|ation|ations|er|ers)": "-ize",
    r"analys(e|ed|ing)": "analyze",
    r"behaviours?|neighbours?|neighbouring|favour(s|ed|ite|able)?|honour(s|ed)?|labour": "-or",
    r"centre|centres|centred": "center",
    r"modelling|labelled|labelling|travelled|artefacts?|whilst|programme": "(American spelling)",
}
"""Pattern of words that are not used in names, prose or messages -> what to write instead."""

IN_NAMES = {
    r"places?(?!_?holder)": "position, index, path, slot",
    r"pieces?": "chunk, part, shard",
    r"counted": "loss_mask; pluralize",
    r"watch|watches|watched": "monitor",
    r"row_length": "seq_len",
    r"whole|wholes": "complete",
    r"most|least": "max, min",
    r"mine|^asked$": "(a noun)",
}
"""Pattern of words that names do not contain, though prose may."""

IN_PROSE = {
    r"(is|are|be|was|were|not|been) whole(?! numbers?)": "complete",
    r"whole or not": "complete or absent",
    r"the watch": "stability monitor",
    r"counted (ids?|tokens?)": "tokens in the loss",
    r"beside": "next to, in addition to",
}
"""Pattern of phrases that prose and messages do not contain."""

ALLOWED = {
    "tests/tokens/test_face_detection.py": {"eye", "eyes"},
    "calumma/tokens/face_detection.py": {"eye", "eyes"},
    "calumma/documents/document.py": {"licence"},
    "calumma/documents/paths.py": {"tell"},
    "calumma/evaluate/color_accuracy.py": {"colour"},
}
"""Words that a file may use: eyes of faces, keys of documents, a method of `io.RawIOBase`."""

NAMES_ALLOWED = {"in_place", "decimal_places", "at_least", "at_most", "most_common", "TextPiece"}

_MESSAGE_CALLS = re.compile(
    r"(\w*Error|Interrupted|print|print_warning|warn|warning|info|error|debug|add_argument|add"
    r"|add_command|add_parser|help_options|ArgumentTypeError|refuse|_error)$"
)


def _compiled(patterns: dict[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(rf"(?<![\w.])(?:{words})(?!\w)", re.IGNORECASE), better) for words, better in patterns.items()]


_NAME = _compiled(EVERYWHERE | IN_NAMES)
_PROSE = _compiled(EVERYWHERE | IN_PROSE)


def _split(name: str) -> str:
    """Return an identifier as words between spaces.

    >>> _split("maxRowLength_of")
    'max row length of'
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return words.replace("_", " ").strip().lower()


def _words_in(text: str, patterns: list[tuple[re.Pattern[str], str]]) -> Iterator[tuple[str, str]]:
    """Yield each forbidden word of a text with what to write instead."""
    for name in CONTRACT_NAMES:
        text = text.replace(name, "")
    for pattern, better in patterns:
        for match in pattern.finditer(text):
            yield match.group(), better


def _in_name(name: str) -> Iterator[tuple[str, str]]:
    """Read an identifier; the name of a test is a sentence."""
    for allowed in (*NAMES_ALLOWED, *CONTRACT_NAMES):
        name = name.replace(allowed, "")
    patterns = _PROSE if name.startswith("test_") else _NAME
    for word, better in _words_in(_split(name), patterns):
        yield f"{name} ({word})", better


def _in_prose(text: str) -> Iterator[tuple[str, str]]:
    """Read prose; a quoted `name_of_code` in it is split as a name is."""
    without_links = re.sub(r"https?://\S+|arXiv:\S+", "", text)
    for name in CONTRACT_NAMES:
        without_links = without_links.replace(name, "")
    spaced = re.sub(r"[A-Za-z]\w*_\w*", lambda m: m.group().replace("_", " "), without_links)
    yield from _words_in(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", spaced), _PROSE)


def _defined(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and name of each identifier that a file defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield 1, node.asname


def _strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the string literals of an expression; calls inside f-strings are left out."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    elif isinstance(node, ast.FormattedValue):
        yield from _strings(node.value) if isinstance(node.value, ast.IfExp) else ()
    elif isinstance(node, ast.JoinedStr | ast.BinOp | ast.IfExp | ast.List | ast.Tuple):
        for child in ast.iter_child_nodes(node):
            yield from _strings(child)


def _messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the string literals that a user reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if _MESSAGE_CALLS.match(name):
                for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                    yield from _strings(argument)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_EXAMPLES":
            yield from _strings(node.value)


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            yield from [(node.lineno, text)] if isinstance(text, str) else []


def _comments(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _lines(start: int, text: str) -> Iterator[tuple[int, str]]:
    """Yield paragraphs joined to one line, so that phrases over a line break are found."""
    lines = text.splitlines() or [""]
    for number, line in enumerate(lines):
        following = lines[number + 1].strip() if number + 1 < len(lines) else ""
        yield start + number, line + "\n" + following


def _prose_words(start: int, text: str) -> Iterator[tuple[int, str, str]]:
    for number, pair in _lines(start, text):
        line, following = pair.split("\n", 1)
        own = list(_in_prose(line))
        yield from ((number, word, better) for word, better in own)
        joined = list(_in_prose(f"{line} {following}"))
        for word, better in joined:
            if " " in word and (word, better) not in own and word not in following:
                yield number, word, better


def _python_words(text: str) -> Iterator[tuple[int, str, str]]:
    tree = ast.parse(text)
    seen = set()
    for line, name in _defined(tree):
        if name not in seen:
            seen.add(name)
            yield from ((line, word, better) for word, better in _in_name(name))
    for line, prose in (*_docstrings(tree), *_comments(text)):
        yield from _prose_words(line, prose)
    for line, message in _messages(tree):
        yield from _prose_words(line, message)


def _toml_words(text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        _, has_comment, comment = line.partition("#")
        if has_comment:
            yield from ((number, word, better) for word, better in _in_prose(comment))


def words_of(name: str, text: str) -> list[tuple[int, str, str]]:
    """Return line, word and replacement of each forbidden word in a file.

    Args:
        name: path of the file in the repository.
        text: its content.
    """
    path = PurePosixPath(name)
    words: Iterator[tuple[int, str, str]]
    if path.suffix == ".py":
        words = _python_words(text)
    elif path.suffix == ".toml":
        words = _toml_words(text)
    else:
        words = _prose_words(1, text)
    found = {*words, *((1, word, better) for word, better in _in_name(path.stem))}
    return sorted(entry for entry in found if _bare(entry[1]) not in ALLOWED.get(name, set()))


def _bare(word: str) -> str:
    """Return the word of a report such as "test_eyes (eyes)"."""
    return word.rpartition("(")[2].rstrip(")").lower()


_NOT_READ = re.compile(
    r"dev/|CHANGELOG\.md|LICENSE|tests/style/language\.py|calumma/renamed\.py"
    r"|tests/test_renamed\.py|calumma/corpora/(embedded|licen[cs]es)/|studies/.*\.json"
)
"""Logs and tables of the old names, and texts of others."""


def checked_files() -> Iterator[Path]:
    """Yield the files whose language is checked."""
    for folder in ("calumma", "tests", "benches", "studies"):
        yield from sorted((ROOT / folder).rglob("*.py"))
    for folder, suffix in (("docs", "md"), ("studies", "md"), ("runs", "toml"), ("studies", "toml")):
        yield from sorted((ROOT / folder).rglob(f"*.{suffix}"))
    for suffix in ("toml", "js", "css", "html"):
        yield from sorted((ROOT / "calumma").rglob(f"*.{suffix}"))
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md"))


def forbidden_words(prefixes: tuple[str, ...] = ("",)) -> list[str]:
    """Return `file:line: word -> replacement` for all files under one of the prefixes."""
    lines = []
    for path in checked_files():
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(prefixes) or _NOT_READ.match(name):
            continue
        words = words_of(name, path.read_text(encoding="utf-8"))
        lines += [f"{name}:{line}: {word} -> {better}" for line, word, better in words]
    return lines
