"""README, docs/ and deploy/: the commands in them are ones the jobs take, and what they name is there."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from sentiment_core.cli import COMMANDS
from sentiment_core.config import parse
from sentiment_core.scoring import meters

REPO = Path(__file__).resolve().parents[1]
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md")), *sorted((REPO / "deploy").rglob("*.*"))]
COMMAND = re.compile(r"python3? (?:/\S+/)?jobs/(\w+)\.py([^`#\n&>|\"]*)")
CONFIGS = {"nightly.yaml": "model: m\ninput: i\nout: o\n"}


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Jobs with their flags, as a page shows them."""
    text = re.sub(r"\\\n\s*", " ", text)  # continued lines
    text = re.sub(r"(entrypoint: >-.*\n)((?: +\S.*\n)+?)(?= +\w+:)", lambda m: " ".join(m[2].split()) + "\n", text)
    return [(name, shlex.split(flags)) for name, flags in COMMAND.findall(text) if "..." not in flags]


def test_every_job_is_known_here():
    assert {path.stem for path in (REPO / "jobs").glob("*.py")} == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_documents_are_ones_the_jobs_take(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = commands(page.read_text())
    for name, flags in found:
        for i, flag in enumerate(flags):
            if flag == "--config":
                config = Path(flags[i + 1]).name
                (tmp_path / config).write_text(CONFIGS[config])
                flags[i + 1] = config
        parse(COMMANDS[name].settings_class, None, flags)
    if page.name in ("README.md", "nightly.md", "operating.md", "train.yaml", "score.yaml", "nightly.yaml"):
        assert found


def test_settings_shown_are_ones_that_nightly_takes(tmp_path):
    shown = re.findall(r"```yaml\n(.*?)```", (REPO / "docs" / "nightly.md").read_text(), re.DOTALL)
    (tmp_path / "nightly.yaml").write_text("".join(shown))
    settings = parse(COMMANDS["nightly"].settings_class, None, ["--config", str(tmp_path / "nightly.yaml")])
    assert settings.keep == ("id", "date")


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()) if page.suffix == ".md" else []:
            assert (page.parent / link).exists(), f"{page.name}: {link}"


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
