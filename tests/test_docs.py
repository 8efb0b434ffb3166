"""The documentation runs, names what there is, and agrees with the code."""

from __future__ import annotations

import ast
import doctest
import inspect
import pkgutil
import re
import sys
import tempfile
import threading
import types
from importlib import import_module
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import pytest

import kv_store_adapter
from kv_store_adapter import KVStoreProtocol, register_key_encoder
from kv_store_adapter.aio import AsyncKVStore
from kv_store_adapter.disk import DiskKVStore
from kv_store_adapter.disk.store import SPILL_THRESHOLD
from kv_store_adapter.identity import _registered
from kv_store_adapter.testing import AsyncKVStoreContract, KVStoreContract

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SOURCE = Path(kv_store_adapter.__file__).parent
PAGES = sorted(DOCS.glob("*.md"))

# What a clone has and an installed package has not.
pytestmark = pytest.mark.skipif(not PAGES, reason="not a checkout")

page = pytest.mark.parametrize("page", PAGES, ids=[path.name for path in PAGES])

MODULES = [
    info.name
    for info in pkgutil.walk_packages([str(SOURCE)], "kv_store_adapter.")
    if not info.name.startswith("kv_store_adapter.testing")
]


def blocks(path: Path, language: str) -> List[Tuple[int, str]]:
    """The fenced blocks of exactly this language, each with the line before its first one."""
    text = path.read_text("utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text[: match.start(1)].count("\n"), match.group(1)) for match in found]


def text_of(name: str) -> str:
    """The text of one page."""
    return (DOCS / name).read_text("utf-8")


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, a Redis in this process, and no trace of it afterwards."""
    import fakeredis
    import redis

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(redis, "Redis", fakeredis.FakeRedis)
    fakeredis.FakeRedis().flushall()
    before = dict(_registered)
    yield tmp_path
    _registered.clear()
    _registered.update(before)


def run_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run all Python blocks of one page, in order, as one module; return that module."""
    module = types.ModuleType(path.stem.replace("-", "_"))
    # Classes and functions of the page pickle by the name of their module.
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for line, block in blocks(path, "python"):
        # As many empty lines as come before it, so that a failure names the page's own line.
        exec(compile("\n" * line + block, str(path), "exec"), module.__dict__)
        # What a block started in the background is over before the next one begins.
        for thread in threading.enumerate():
            if thread.name.startswith("refresh "):
                thread.join(30)
                assert not thread.is_alive(), f"{thread.name} did not end"
    return module


# ---------------------------------------------------------------------- the code in it


@page
def test_python_blocks_run_in_order(
    page: Path, workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every Python block of a page runs, after those before it, and its asserts hold."""
    run_blocks(page, monkeypatch)


@page
def test_what_does_not_run_says_why(page: Path) -> None:
    """A Python block is run, or is marked no-run right after a comment with the reason."""
    text = page.read_text("utf-8")
    reasons = re.findall(r"^<!-- no-run: .{15,} -->\n```python no-run$", text, re.MULTILINE)
    assert len(reasons) == text.count("```python no-run")
    fences = set(re.findall(r"^```(.*)$", text, re.MULTILINE))
    assert fences <= {"", "python", "python no-run", "py", "bash", "text"}


def test_few_blocks_do_not_run() -> None:
    """Blocks that can't be run here are the exception."""
    run = sum(len(blocks(path, "python")) for path in PAGES)
    not_run = sum(len(blocks(path, "python no-run")) for path in PAGES)
    assert not_run <= 2 < 60 < run


@pytest.fixture(scope="module")
def journal_store() -> Any:
    """The example store of writing-a-backend.md."""
    _, block = blocks(DOCS / "writing-a-backend.md", "python")[0]
    scope = {"__name__": "journal"}
    exec(block, scope)
    return scope["JournalStore"]


@pytest.mark.skipif(not PAGES, reason="not a checkout")
class TestJournalStore(KVStoreContract):
    """The store that the guide for authors builds keeps every promise."""

    @pytest.fixture
    def store(self, journal_store: Any) -> Any:
        return journal_store()


@pytest.mark.skipif(not PAGES, reason="not a checkout")
class TestJournalStoreAwaited(AsyncKVStoreContract):
    """The same, awaited."""

    @pytest.fixture
    def store(self, journal_store: Any) -> Any:
        return journal_store()


@pytest.mark.parametrize("name", ["kv_store_adapter", *MODULES])
def test_docstrings_run(name: str, workshop: Path) -> None:
    """Every example in a docstring gives what it says."""
    failed, _ = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_there_are_examples_in_docstrings() -> None:
    """What a user meets first has an example in its docstring."""
    found = doctest.DocTestFinder()
    for thing in (
        *(
            kv_store_adapter,
            kv_store_adapter.MemoryKVStore,
            DiskKVStore,
            kv_store_adapter.KVMapping,
        ),
        *(kv_store_adapter.cached, kv_store_adapter.cached_many, kv_store_adapter.caching_disabled),
        *(KVStoreProtocol.namespace, register_key_encoder),
    ):
        examples = [test.examples for test in found.find(thing, globs={})]
        assert any(examples), thing


# ---------------------------------------------------------------------- the words in it


def anchors(path: Path) -> List[str]:
    """The anchors of a page's headings, as browsers of repositories make them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]


@page
def test_links_lead_somewhere(page: Path) -> None:
    """Every link inside the repository names a file, and a heading, that is there."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)]+)\)", prose):
        if link.startswith("https://"):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place) if place else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@page
def test_lines_can_be_read_in_a_terminal(page: Path) -> None:
    """Prose and code keep to 120 columns; tables may be wider."""
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        assert len(line) <= 120 or line.startswith("|"), f"{page.name}:{number}"
        assert line == line.rstrip(), f"{page.name}:{number} ends with blanks"


def test_every_page_is_there() -> None:
    """The pages that the others and the README point to exist."""
    expected = {"tutorial", "caching", "namespaces", "backends", "writing-a-backend", "operations"}
    expected |= {"security", "reliability", "performance", "api", "design", "changelog"}
    assert expected <= {path.stem for path in PAGES}


# ---------------------------------------------------------------------- the reference


def test_every_public_name_is_in_the_reference() -> None:
    """Each name of the front door, and each operation of a store, stands in api.md."""
    text = text_of("api.md")
    for name in kv_store_adapter.__all__:
        assert re.search(rf"\b{name}\b", text), name
    for kind in (KVStoreProtocol, AsyncKVStore, DiskKVStore):
        for name in vars(kind):
            if not name.startswith("_") and name != "waits":
                assert re.search(rf"\b{name}\b", text), f"{kind.__name__}.{name}"


def signatures() -> List[Any]:
    """The signatures in api.md: what is called, and its parameters."""
    found: List[Any] = []
    for line, block in blocks(DOCS / "api.md", "py"):
        found += [
            pytest.param(match[1], match[2], id=f"{match[1]}:{line + 1}")
            for match in re.finditer(r"^([\w.]+)\(((?:.|\n +)*?)\)$", block, re.MULTILINE)
        ]
    return found


def resolve(path: str) -> Any:
    """What a dotted name of the reference means."""
    if path.startswith("kv_store_adapter."):
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)
    found: Any = kv_store_adapter
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(("path", "written"), signatures() if PAGES else [])
def test_signatures_of_the_reference_are_right(path: str, written: str) -> None:
    """Names, kinds and defaults of the parameters in api.md are those of the code."""
    (function,) = ast.parse(f"def f({written}): pass").body
    scope: Any = {"MISSING": kv_store_adapter.rules.MISSING}  # type: ignore[attr-defined]
    exec(compile(ast.Module([function], []), "api.md", "exec"), scope)
    documented = list(inspect.signature(scope["f"]).parameters.values())
    thing = resolve(path)
    if isinstance(thing, type) and "__init__" in vars(thing):
        thing = vars(thing)["__init__"]  # what Generic says on Python 3.8 is no help
    actual = list(inspect.signature(thing).parameters.values())
    if actual and actual[0].name == "self":
        del actual[0]
    assert [(p.name, p.kind, p.default) for p in documented] == [
        (p.name, p.kind, p.default) for p in actual
    ]


def test_all_signatures_are_found() -> None:
    """No signature of the reference escapes the test above."""
    lines = [line for _, block in blocks(DOCS / "api.md", "py") for line in block.splitlines()]
    assert len(signatures()) == sum(not line.startswith(" ") for line in lines) > 40


# ---------------------------------------------------------------------- claims about the code


def test_the_plan_of_the_house_is_right() -> None:
    """The plan in design.md has every module of the package, and none that is not there."""
    (_, plan), *_ = blocks(DOCS / "design.md", "text")
    # "contract.py, derived.py   what they are for": two blanks end the names.
    names = [re.split(r"\s{2,}", line.strip())[0] for line in plan.splitlines()]
    listed = re.findall(r"\w+\.pyi?\b", "\n".join(names))
    there = [path.name for path in SOURCE.rglob("*.py")] + [p.name for p in SOURCE.rglob("*.pyi")]
    rooms = [name for name in there if name != "__init__.py"]
    assert sorted(name for name in listed if name != "__init__.py") == sorted(rooms)


def test_the_threshold_is_what_the_code_says() -> None:
    """Where the docs say from which size a value gets a file, they say what the code does."""
    said = f"{SPILL_THRESHOLD // 1024} KiB"
    for name in ("backends.md", "design.md"):
        for line in text_of(name).splitlines():
            if "spill_threshold" in line and "KiB" in line:
                assert said in line
    assert said in text_of("backends.md")
    assert said in text_of("design.md").split("gets a file\n")[1].split("\n### ")[0]


def test_each_fault_that_is_tried_is_a_promise_of_the_page() -> None:
    """Each test of tests/faults stands in reliability.md, and each test that stands there exists."""
    named = set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", text_of("reliability.md")))
    there = {
        (path.relative_to(ROOT / "tests").as_posix(), name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(
            r"^ *(?:async )?def (test_\w+)\(", path.read_text("utf-8"), re.MULTILINE
        )
    }
    assert named - there == set()
    assert {test for test in there if test[0].startswith("faults/")} - named == set()


def test_every_dependency_has_its_reason() -> None:
    """Each package that pyproject.toml asks for has a line in design.md."""
    table = text_of("design.md").split("## Dependencies")[1]
    project = (ROOT / "pyproject.toml").read_text("utf-8").split("[tool.")[0]
    wanted = re.findall(r"^\s*[\"']([\w-]+)(?:\[\w+\])?[<>=]=", project, re.MULTILINE)
    wanted += re.findall(r"requires = \[\"([\w-]+)", project)
    assert len(wanted) > 10
    assert [name for name in wanted if f"`{name}`" not in table] == []


def test_every_option_has_a_word() -> None:
    """Each option of the decorators and of the stores is explained in prose."""
    caching = text_of("caching.md")
    for decorator in (kv_store_adapter.cached, kv_store_adapter.cached_many):
        for name in list(inspect.signature(decorator).parameters)[1:]:
            assert re.search(rf"\b{name}\b=?", caching), name
    backends = text_of("backends.md")
    for kind in (kv_store_adapter.MemoryKVStore, DiskKVStore, kv_store_adapter.RedisKVStore):
        for name in inspect.signature(kind).parameters:
            assert f"`{name}`" in backends or name == "options", f"{kind.__name__}: {name}"


def test_every_error_is_in_the_table() -> None:
    """The table of exceptions in api.md has each of them, and says what else it is."""
    table = text_of("api.md").split("## Exceptions")[1].split("## ")[0]
    errors = kv_store_adapter.exceptions  # type: ignore[attr-defined]
    for name in errors.__all__:
        kind = getattr(errors, name)
        row = re.search(rf"^\| `{name}` \| (.*?) \|", table, re.MULTILINE)
        assert row, name
        others = re.findall(r"`(\w+)`", row[1])
        for other in others:
            assert other in {base.__name__ for base in kind.__mro__[1:]}, name


def test_the_changelog_has_this_version() -> None:
    """The newest heading of the changelog is the version of the package."""
    newest = re.findall(r"^## \[([\d.]+)\]", text_of("changelog.md"), re.MULTILINE)[0]
    assert newest == kv_store_adapter.__version__


def test_the_environment_is_left_alone(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the docs write goes into the folder they run in, and they open what they name."""
    run_blocks(DOCS / "operations.md", monkeypatch)
    names = {path.name for path in workshop.iterdir()}
    assert names == {"data", "backup"}
