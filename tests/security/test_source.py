"""No line of the code executes its input."""

import ast
from collections.abc import Iterator
from pathlib import Path

from launch.support.program import CONF_FOLDER

ROOT = CONF_FOLDER.parent
UNPICKLES_AFTER_CHECKING_HASHES = {
    # DeepSpeed's own files, which hold its classes:
    "ernie_vilg/parallel/state/consolidate.py",
    "launch/drills/runs.py",  # compares the states of its own runs
}
FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "os.system", "os.popen", "subprocess.getoutput"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *("hydra.utils.instantiate", "instantiate", "hydra.utils.call", "torch.hub.load"),
}


def findings(path: Path) -> Iterator[str]:
    """Yield the calls and imports of a source file that could execute input."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            if module == "pickle" and {alias.name for alias in node.names} == {"UnpicklingError"}:
                continue  # the name of torch.load's refusal
            for name in [module] if module else [alias.name for alias in node.names]:
                if name.partition(".")[0] in FORBIDDEN_IMPORTS:
                    yield f"imports {name}"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in FORBIDDEN_CALLS:
                yield f"calls {name}"
            if words.get("shell", "False") != "False":
                yield f"calls {name} with a shell"
            if words.get("allow_pickle", "False") != "False":
                yield f"calls {name} with allow_pickle"
            if name == "torch.load" and words.get("weights_only") != "True":
                yield "torch.load without weights_only=True"


def test_no_line_runs_what_it_reads() -> None:
    found = {
        str(path.relative_to(ROOT)): list(findings(path))
        for folder in ("ernie_vilg", "launch", "data_pipelines")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }

    assert len(found) > 100
    unexpected = {
        name: lines
        for name, lines in found.items()
        if lines and name not in UNPICKLES_AFTER_CHECKING_HASHES
    }
    assert unexpected == {}
    for name in UNPICKLES_AFTER_CHECKING_HASHES:
        assert set(found.get(name, [])) <= {"torch.load without weights_only=True"}


def test_the_scan_finds_what_it_looks_for(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text(
        "import pickle\nfrom dill import loads\nos.system('x')\nsubprocess.run('x', shell=True)\n"
        "torch.load(f)\nnp.load(f, allow_pickle=flag)\nyaml.load(f)\n"
    )

    assert len(list(findings(source))) == 7
