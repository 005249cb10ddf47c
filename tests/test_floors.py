"""Who may import whom: the floors of the architecture, held for every source file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {
    name: ROOT / path / name for name, path in [("xlstm_kernels", "kernels"), ("xlstm_ts", ""), ("xlstm_rl", "")]
}
FORBIDDEN = {
    "xlstm_kernels": {"xlstm_ts", "xlstm_rl", "pandas", "sklearn", "lightning", "pytorch_forecasting", "gymnasium"}
    | {"stable_baselines3", "matplotlib", "xlstm", "mlstm_kernels"},
    "xlstm_ts": {"xlstm_rl", "gymnasium", "stable_baselines3", "triton"},
    "xlstm_rl": {"xlstm_ts", "pandas", "sklearn", "lightning", "pytorch_forecasting", "triton"},
}


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """The absolute modules that a file imports, with the line."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno


@pytest.mark.parametrize("package", SOURCES)
def test_no_package_imports_what_its_floor_forbids(package: str) -> None:
    files = list(SOURCES[package].rglob("*.py"))
    assert files
    broken = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for file in files
        for module, line in imports(file)
        if module.split(".")[0] in FORBIDDEN[package]
    ]
    assert broken == []


@pytest.mark.parametrize("package", ["xlstm_ts", "xlstm_rl"])
def test_domain_packages_use_only_top_level_names_of_the_backbone(package: str) -> None:
    deep = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for file in SOURCES[package].rglob("*.py")
        for module, line in imports(file)
        if module.startswith("xlstm_kernels.")
    ]
    assert deep == []


def test_triton_is_imported_in_files_and_folders_named_for_it_alone() -> None:
    users = {
        file.relative_to(ROOT)
        for file in SOURCES["xlstm_kernels"].rglob("*.py")
        for module, _ in imports(file)
        if module.split(".")[0] == "triton"
    }
    assert users
    assert [str(file) for file in users if not any(part.startswith("triton_") for part in file.parts)] == []


def test_references_are_imported_by_tests_alone() -> None:
    users = [
        str(file.relative_to(ROOT))
        for file in SOURCES["xlstm_kernels"].rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[-1] == "reference"
    ]
    assert users == []
