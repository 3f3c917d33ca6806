"""Check README, docs/, examples/ and deploy/: commands parse, Python compiles, and what they name exists."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from sentiment_core.config import flag_of, parse
from sentiment_core.scoring import meters
from sentiment_core.subcommands import COMMANDS

REPO = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPO / "examples").glob("*.ipynb"))
PAGES = [
    *sorted(REPO.glob("*.md")),
    *sorted((REPO / "docs").rglob("*.md")),
    *sorted((REPO / "benchmarks").glob("*.md")),
    *sorted((REPO / "deploy").rglob("*.*")),
    REPO / "cluster.yaml",
    *NOTEBOOKS,
]
MARKDOWN = [page for page in PAGES if page.suffix == ".md"]
# `sentiment-core NAME FLAGS` and `python jobs/NAME.py FLAGS`, up to the end of the line, quotation or pipe
COMMAND = re.compile(
    r"(?:(?<![\w/-])(?:[\w./]+/)?sentiment-core|python -m sentiment_core|python3? (?:/\S+/)?jobs/) ?"
    r"([a-z]+)(?:\.py)?((?: [^`#\n&>|\"]*)?)"
)
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
CONFIGS = {"nightly.yaml": "model: m\ninput: i\nout: o\n"}
SHOWS_COMMANDS = [
    "README.md",
    "deploy/kuberay/nightly.yaml",
    "deploy/kuberay/score.yaml",
    "deploy/kuberay/train.yaml",
    "docs/guides/cluster.md",
    "docs/guides/nightly.md",
    "docs/guides/score.md",
    "docs/guides/train.md",
    "docs/quickstart.md",
]


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return the commands that a page shows, with their flags."""
    text = re.sub(r"\\\n\s*", " ", text)  # continued lines
    text = re.sub(r"(entrypoint: >-.*\n)((?: +\S.*\n)+?)(?= +\w+:)", lambda m: " ".join(m[2].split()) + "\n", text)
    return [(name, shlex.split(flags)) for name, flags in COMMAND.findall(text) if "..." not in flags]


def code_of(page: Path) -> str:
    """Return what of a page may show commands: of Markdown its code, of a notebook its cells, of others all lines."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    if page.suffix != ".md":
        return text
    blocks = [body for language, body in FENCE.findall(text) if language != "text"]
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", FENCE.sub("", text))])


def python_blocks() -> list[pytest.param]:
    return [
        pytest.param(body, id=f"{page.relative_to(REPO)}-{number}")
        for page in MARKDOWN
        for number, (language, body) in enumerate(FENCE.findall(page.read_text()))
        if language == "python"
    ]


def hooks() -> ModuleType:
    """Import docs/hooks.py, which makes the generated parts of the site."""
    spec = importlib.util.spec_from_file_location("hooks", REPO / "docs" / "hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["hooks"] = module
    spec.loader.exec_module(module)
    return module


def test_every_job_is_a_command():
    assert {path.stem for path in (REPO / "jobs").glob("*.py")} == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_commands_in_pages_parse(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = commands(code_of(page))
    for name, flags in shown:
        assert name in COMMANDS, f"sentiment-core {name}"
        if not flags or "--help" in flags:
            continue  # the command's name alone
        for i, flag in enumerate(flags):
            if flag == "--config":
                config = Path(flags[i + 1]).name
                (tmp_path / config).write_text(CONFIGS[config])
                flags[i + 1] = config
        parse(COMMANDS[name].settings_class, None, flags)
    if str(page.relative_to(REPO)) in SHOWS_COMMANDS:
        assert any(flags for _, flags in shown)


@pytest.mark.parametrize("code", python_blocks())
def test_python_in_pages_compiles(code):
    compile(code, "page", "exec")


def test_names_imported_in_pages_exist():
    import sentiment_core

    for code in (block.values[0] for block in python_blocks()):
        for names in re.findall(r"^from sentiment_core import (.+)$", code, re.MULTILINE):
            for name in names.split(","):
                assert hasattr(sentiment_core, name.strip())


def test_settings_shown_are_ones_that_nightly_takes(tmp_path):
    shown = re.findall(r"```yaml\n(.*?)```", (REPO / "docs" / "guides" / "nightly.md").read_text(), re.DOTALL)
    (tmp_path / "nightly.yaml").write_text("".join(shown))
    settings = parse(COMMANDS["nightly"].settings_class, None, ["--config", str(tmp_path / "nightly.yaml")])
    assert settings.keep == ("id", "date")


def test_links_between_pages_lead_somewhere():
    for page in MARKDOWN:
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", FENCE.sub("", page.read_text())):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_files_named_in_pages_exist():
    named = re.compile(r"`((?:sentiment_core|tests|benchmarks|deploy|examples|jobs)/[\w/.-]+)`")
    inside = re.compile(r"`((?:data|inference|model|nightly|report|runtime|scoring|serving|text|training)/[\w/]+\.py)`")
    for page in MARKDOWN:
        text = page.read_text()
        for path in named.findall(text):
            assert (REPO / path).exists(), f"{page.name}: {path}"
        for path in inside.findall(text):
            assert (REPO / "sentiment_core" / path).exists(), f"{page.name}: {path}"


def test_result_files_named_in_the_benchmarks_exist():
    text = (REPO / "docs" / "about" / "benchmarks.md").read_text()
    names = re.findall(r"`(\w+\.jsonl?)`", text)
    assert len(names) > 10
    for name in names:
        assert (REPO / "benchmarks" / "results" / name).exists(), name


def test_every_page_is_in_the_menu():
    menu = (REPO / "mkdocs.yml").read_text()
    for page in (REPO / "docs").rglob("*.md"):
        assert f": {page.relative_to(REPO / 'docs')}\n" in menu, page


def test_every_flag_is_in_the_reference():
    module = hooks()
    parts = dict(part.split("\n", 1) for part in f"\n{module.command_line()}".split("\n## ")[1:])
    assert set(parts) == set(COMMANDS)
    for name, command in COMMANDS.items():
        shown = parts[name] + parts.get(module.parent_of(name), "")
        for field in command.settings_class.__dataclass_fields__:
            assert f"`{flag_of(field)}`" in shown, f"{name}: {field}"


@pytest.mark.parametrize("name", hooks().RECORDS)
def test_every_record_has_a_schema_and_a_place_in_the_reference(name):
    schema = hooks().schema(name)
    assert schema["properties"]
    pages = "".join(page.read_text() for page in (REPO / "docs" / "reference").glob("*.md"))
    assert f"<!-- generated: schema {name} -->" in pages


def test_readme_is_short():
    assert len((REPO / "README.md").read_bytes()) <= 8_000


@pytest.mark.parametrize("name", ["train", "score", "nightly"])
def test_pods_run_without_rights(name):
    manifest = yaml.safe_load((REPO / "deploy" / "kuberay" / f"{name}.yaml").read_text())
    spec = manifest["spec"].get("jobTemplate", manifest["spec"])
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert spec["shutdownAfterJobFinishes"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert len(groups) == 2
    for pod in (group["template"]["spec"] for group in groups):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 1000  # as the container file makes it
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_container_file_copies_what_is_there():
    lines = (REPO / "deploy" / "Dockerfile").read_text().splitlines()
    assert "USER 1000" in lines
    for line in lines:
        for name in line.split()[1:-1] if line.startswith("COPY") else []:
            assert (REPO / name).exists(), line


def test_the_board_shows_counters_that_there_are(ray_here):
    board = json.loads((REPO / "deploy" / "grafana.json").read_text())
    asked = set(re.findall(r"ray_(sentiment_core_\w+)", json.dumps(board)))
    counters = [meter for meter in vars(meters.Meters("score")).values() if hasattr(meter, "info")]
    assert asked == {counter.info["name"] for counter in counters}
