"""The house's own rules, read off the syntax trees: floors, confined libraries, sizes, names, and what code may not do.

Every failure lists `file:line: what is wrong`. The rules themselves are tested on planted code at the end.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "intently"

FLOORS = {
    "core": 0,
    **dict.fromkeys(("data", "llm", "metrics", "runtime"), 1),
    **dict.fromkeys(("interests", "judge", "alignment", "generative", "retrieval", "ranking", "agent"), 2),
}
TOP_FLOOR = ("jobs", "serve")
CONFINED = {
    "vllm": ("llm",),
    "openai": ("llm",),
    "sentence_transformers": ("llm",),
    "ray.data": ("data", "llm", "runtime"),
    "ray.train": ("runtime",),
    "ray.tune": ("runtime",),
    "ray.serve": ("serve",),
    "trl": ("runtime",),
    "deepspeed": ("runtime",),
    "accelerate": ("runtime",),
    "faiss": ("retrieval",),
    "fuxictr": ("ranking",),
    "model_zoo": ("ranking",),
    "polars": ("data",),
    "matplotlib": ("jobs",),
}
FORBIDDEN_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}
FILE_LINES, JOB_LINES, FUNCTION_LINES, TRAINING_LINES = 500, 120, 80, 150


@dataclass(frozen=True)
class Source:
    """One Python file of ours.

    Attributes:
        path: relative to the repository.
        text: its content.
        tree: its syntax tree.
    """

    path: Path
    text: str
    tree: ast.Module

    @classmethod
    def of(cls, path: str, text: str) -> Source:
        return cls(Path(path), text, ast.parse(text, path))

    @property
    def room(self) -> str | None:
        """The room that the file belongs to: a folder of the package, jobs or serve; None for tests and benchmarks."""
        parts = self.path.parts
        if parts[:2] == ("platform", "intently"):
            return parts[2] if len(parts) > 3 else None
        return parts[0] if parts[0] in TOP_FLOOR else None

    def problem(self, node: ast.AST | int, message: str) -> str:
        line = node if isinstance(node, int) else getattr(node, "lineno", 1)
        return f"{self.path}:{line}: {message}"


@cache
def sources() -> tuple[Source, ...]:
    folders = ("platform", "jobs", "serve", "tests", "benchmarks")
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return tuple(Source.of(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in paths)


def jobs() -> list[Source]:
    return [source for source in sources() if source.path.parent == Path("jobs")]


def imported(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """(node, dotted name) for everything the file imports, `ray.x` reached through `import ray` included."""
    for node in ast.walk(source.tree):
        match node:
            case ast.Import(names=names):
                yield from ((node, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield node, module
                yield from ((node, f"{module}.{alias.name}") for alias in names)
            case ast.Attribute(value=ast.Name(id="ray"), attr=attribute):
                yield node, f"ray.{attribute}"


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def floor_problems(source: Source) -> list[str]:
    problems = []
    for node, name in imported(source):
        first, _, rest = name.partition(".")
        if first == "intently" and rest and source.room in FLOORS:
            other = rest.split(".")[0]
            floor = FLOORS[source.room]
            if other in FLOORS and other != source.room and FLOORS[other] >= floor:
                problems.append(source.problem(node, f"{source.room} (floor {floor}) imports {other} (floor {FLOORS[other]})"))
        elif source.room in FLOORS and first in TOP_FLOOR:
            problems.append(source.problem(node, f"{source.room} imports {first}, which only composes"))
        elif source.room in TOP_FLOOR and first in TOP_FLOOR and first != source.room:
            problems.append(source.problem(node, f"{source.room} imports {first}; nothing imports floor 3"))
    return problems + [
        source.problem(node, "relative import; write the full name")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def confinement_problems(source: Source) -> list[str]:
    if source.room is None:
        return []
    found = {
        source.problem(node, f"{library} belongs to {' or '.join(rooms)}, not to {source.room}")
        for node, name in imported(source)
        for library, rooms in CONFINED.items()
        if below(name, library) and source.room not in rooms
    }
    return sorted(found)


def metrics_problems(source: Source) -> list[str]:
    if source.room != "metrics":
        return []
    allowed = set(sys.stdlib_module_names) | {"numpy", "pyarrow", "intently"}
    return [
        source.problem(node, f"metrics computes with numpy only, not with {name}")
        for node, name in imported(source)
        if name.partition(".")[0] not in allowed
    ]


def size_problems(source: Source) -> list[str]:
    lines = source.text.count("\n")
    is_job = source.path.parent == Path("jobs")
    cap = JOB_LINES if is_job else FILE_LINES
    problems = [source.problem(lines, f"{lines} lines, at most {cap}")] if lines > cap else []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            allowed = TRAINING_LINES if node.name.lstrip("_").startswith("train") else FUNCTION_LINES
            if length > allowed:
                problems.append(source.problem(node, f"function {node.name} has {length} lines, at most {allowed}"))
    return problems


def name_problems(source: Source) -> list[str]:
    taken = [part for part in source.path.with_suffix("").parts if part.lower() in FORBIDDEN_NAMES]
    return [source.problem(1, f"{part} says nothing; name it after what it holds") for part in taken]


def conduct_problems(source: Source) -> list[str]:
    """Broad excepts, edits of sys.path, eval, probing with hasattr, stubs."""
    problems = []
    for node in ast.walk(source.tree):
        match node:
            case ast.ExceptHandler(type=None):
                problems.append(source.problem(node, "bare except"))
            case ast.ExceptHandler(type=kind) if kind is not None:
                named = {part.id for part in ast.walk(kind) if isinstance(part, ast.Name)}
                problems += [source.problem(node, f"except {broad}") for broad in sorted(named & {"Exception", "BaseException"})]
            case ast.Call(func=ast.Name(id="eval" | "exec" | "hasattr" as name)):
                problems.append(source.problem(node, f"call of {name}"))
            case ast.Attribute(value=ast.Name(id="sys"), attr="path"):
                problems.append(source.problem(node, "sys.path is set from outside: PYTHONPATH or the installed package"))
            case ast.Raise(exc=ast.Name(id="NotImplementedError") | ast.Call(func=ast.Name(id="NotImplementedError"))):
                problems.append(source.problem(node, "a stub"))
    return problems


def import_time_problems(source: Source) -> list[str]:
    """Statements of a module that do something instead of defining something."""
    problems = []
    for node in source.tree.body:
        match node:
            case ast.Expr(value=ast.Constant(value=str())) | ast.Import() | ast.ImportFrom() | ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else []
                if any(not isinstance(target, ast.Name | ast.Tuple) for target in targets):
                    problems.append(source.problem(node, "a module only defines; this changes something that exists"))
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                pass
            case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pass
            case _:
                problems.append(source.problem(node, "a module only defines; this runs on import"))
    return problems


def late_import_problems(source: Source) -> list[str]:
    """Imports inside functions without a comment (on the line or just above) that says why."""
    lines = source.text.splitlines()
    problems = []
    for function in ast.walk(source.tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    above = lines[node.lineno - 2].strip() if node.lineno > 1 else ""
                    explained = above.startswith("#") or above.startswith(("import ", "from ")) or "#" in lines[node.lineno - 1]
                    if not explained:
                        problems.append(source.problem(node, "import inside a function, and no comment says why"))
    return sorted(set(problems))


def docstring_problems(source: Source) -> list[str]:
    """Public modules, classes and functions of the package that say nothing about themselves."""
    if source.path.parts[0] != "platform":
        return []
    problems = [] if ast.get_docstring(source.tree) else [source.problem(1, "module without a docstring")]
    for node in _public(source.tree.body):
        if not ast.get_docstring(node):
            problems.append(source.problem(node, f"{node.name} has no docstring"))
    return problems


def _public(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body)


def check(rule: Callable[[Source], list[str]]) -> None:
    problems = [problem for source in sources() for problem in rule(source)]
    assert not problems, "\n" + "\n".join(problems)


def test_rooms_import_lower_floors_only() -> None:
    check(floor_problems)


def test_rooms_libraries_stay_where_they_belong() -> None:
    check(confinement_problems)
    check(metrics_problems)


def test_rooms_are_known_and_each_says_what_it_does() -> None:
    folders = [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    problems = [f"platform/intently/{path.name}: not a room of the house" for path in folders if path.name not in FLOORS]
    problems += [f"platform/intently/{path.name}/README.md:1: missing" for path in folders if not (path / "README.md").is_file()]
    assert not problems, "\n" + "\n".join(problems)


def test_platform_folder_is_no_package_so_that_the_standard_library_stays_visible() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_files_and_functions_keep_to_their_size() -> None:
    check(size_problems)


def test_files_have_names_that_say_something() -> None:
    check(name_problems)


def test_code_has_no_broad_except_eval_path_edits_or_stubs() -> None:
    check(conduct_problems)


def test_modules_only_define() -> None:
    problems = [problem for source in sources() if source.path.parts[0] != "tests" for problem in import_time_problems(source)]
    assert not problems, "\n" + "\n".join(problems)


def test_imports_stand_at_the_top_or_say_why_not() -> None:
    check(late_import_problems)


def test_public_names_of_the_package_have_docstrings() -> None:
    check(docstring_problems)


def test_tests_use_real_components() -> None:
    problems = [
        source.problem(node, "mocks")
        for source in sources()
        if source.path.parts[0] == "tests"
        for node, name in imported(source)
        if below(name, "unittest.mock")
    ]
    assert not problems, "\n" + "\n".join(problems)


def test_jobs_name_themselves_and_show_their_command() -> None:
    problems = []
    for source in jobs():
        name = source.path.stem
        doc = ast.get_docstring(source.tree) or ""
        if "ray job submit --working-dir ." not in doc or f"-- python jobs/{name}.py" not in doc:
            problems.append(source.problem(1, f"the docstring does not show 'ray job submit --working-dir . … -- python jobs/{name}.py'"))
        assigned = [node for node in source.tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "JOB"]
        calls = [node.value for node in assigned if isinstance(node.value, ast.Call)]
        if not calls:
            problems.append(source.problem(1, "no JOB = Job(…)"))
            continue
        given = [*calls[0].args[:1], *(keyword.value for keyword in calls[0].keywords if keyword.arg == "name")]
        if [getattr(value, "value", None) for value in given] != [name]:
            problems.append(source.problem(calls[0], f"JOB's name is not '{name}'"))
        if "launch(JOB, __doc__" not in source.text:
            problems.append(source.problem(1, "no launch(JOB, __doc__) under __main__"))
    assert not problems, "\n" + "\n".join(problems)


def test_jobs_do_not_hide_an_installed_module() -> None:
    installed = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sysconfig.get_path("stdlib")]
    names = {path.stem for path in (ROOT / "jobs").iterdir() if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))}
    problems = []
    for name in sorted(names):
        if name in sys.stdlib_module_names or PathFinder.find_spec(name, installed) is not None:
            problems.append(f"jobs/{name}: hides the installed module {name}")
    assert not problems, "\n" + "\n".join(problems)


def test_modules_import_in_silence(tmp_path: Path) -> None:
    """One process imports the package, the jobs and the service, and nothing is printed, written, started or changed."""
    names = []
    for source in sources():
        root = source.path.parts[0]
        if root in ("platform", "jobs", "serve"):
            relative = source.path.relative_to("" if root == "serve" else root).with_suffix("")
            names.append(".".join(part for part in relative.parts if part != "__init__"))
    script = (
        "import importlib, json, os, sys\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(name)\n"
        "import ray\n"
        "assert not ray.is_initialized(), 'an import started Ray'\n"
        "assert not [f for f in os.listdir('.')], f'an import wrote {os.listdir(\".\")}'\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("platform", "jobs", "."))}
    done = subprocess.run([sys.executable, "-c", script, json.dumps(names)], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("rule", "path", "text", "expected"),
    [
        (floor_problems, "platform/intently/data/a.py", "import os\nfrom intently.llm import tasks\n", ":2: data (floor 1) imports llm"),
        (floor_problems, "platform/intently/core/a.py", "import intently.data.world\n", ":1: core (floor 0) imports data"),
        (floor_problems, "platform/intently/llm/a.py", "from jobs import ingest_events\n", ":1: llm imports jobs"),
        (floor_problems, "serve/a.py", "from jobs import ingest_events\n", ":1: serve imports jobs"),
        (floor_problems, "platform/intently/llm/a.py", "from . import tasks\n", ":1: relative import"),
        (confinement_problems, "platform/intently/llm/a.py", "import polars as pl\n", ":1: polars belongs to data"),
        (confinement_problems, "jobs/a.py", "import ray\n\nx = ray.train\n", ":3: ray.train belongs to runtime"),
        (confinement_problems, "jobs/a.py", "from ray import tune\n", ":1: ray.tune belongs to runtime"),
        (metrics_problems, "platform/intently/metrics/a.py", "import torch\n", ":1: metrics computes with numpy only"),
        (size_problems, "jobs/a.py", "x = 1\n" * 121, ":121: 121 lines, at most 120"),
        (size_problems, "tests/a.py", "def f():\n" + "    x = 1\n" * 80, ":1: function f has 81 lines"),
        (name_problems, "serve/utils/a.py", "", ":1: utils says nothing"),
        (conduct_problems, "tests/a.py", "try:\n    x = 1\nexcept (ValueError, Exception):\n    x = 2\n", ":3: except Exception"),
        (conduct_problems, "tests/a.py", "try:\n    x = 1\nexcept:\n    x = 2\n", ":3: bare except"),
        (conduct_problems, "tests/a.py", "import sys\nsys.path.insert(0, 'x')\n", ":2: sys.path"),
        (conduct_problems, "tests/a.py", "eval('1')\n", ":1: call of eval"),
        (conduct_problems, "tests/a.py", "def f():\n    raise NotImplementedError('later')\n", ":2: a stub"),
        (import_time_problems, "jobs/a.py", "x = 1\nprint(x)\n", ":2: a module only defines"),
        (import_time_problems, "jobs/a.py", "import os\nos.environ['A'] = 'b'\n", ":2: a module only defines"),
        (late_import_problems, "jobs/a.py", "def f():\n    import vllm\n", ":2: import inside a function"),
        (docstring_problems, "platform/intently/llm/a.py", '"""Doc."""\n\n\ndef f() -> None:\n    x = 1\n', ":4: f has no docstring"),
    ],
)
def test_rule_on_planted_code_names_file_and_line(rule: Callable[[Source], list[str]], path: str, text: str, expected: str) -> None:
    problems = rule(Source.of(path, text))
    assert any(problem.startswith(f"{path}{expected}") for problem in problems), problems


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (
            floor_problems,
            "platform/intently/interests/a.py",
            "from intently.llm.tasks import TASKS\nfrom intently.interests import paths\n",
        ),
        (confinement_problems, "platform/intently/llm/a.py", "import ray.data\nimport vllm\n"),
        (size_problems, "tests/a.py", "def train_towers():\n" + "    x = 1\n" * 120),
        (conduct_problems, "jobs/a.py", "try:\n    x = model.eval()\nexcept (OSError, ValueError):\n    raise\n"),
        (import_time_problems, "jobs/a.py", '"""Doc."""\n\nX = {1: 2}\n\nif __name__ == "__main__":\n    print(X)\n'),
        (late_import_problems, "jobs/a.py", "def f():\n    # heavy, and only needed here\n    import vllm\n"),
    ],
)
def test_rule_on_good_code_is_silent(rule: Callable[[Source], list[str]], path: str, text: str) -> None:
    assert rule(Source.of(path, text)) == []


def test_sources_are_all_utf8_and_found() -> None:
    assert {source.path.parts[0] for source in sources()} >= {"platform", "jobs", "tests"}
    for source in sources():
        with (ROOT / source.path).open("rb") as stream:
            assert tokenize.detect_encoding(stream.readline)[0] == "utf-8"
