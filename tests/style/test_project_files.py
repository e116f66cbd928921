"""Metadata, templates, hooks and deployment files parse and agree with the code."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import calumma
from calumma.generate.params import EngineStats
from calumma.serve.prometheus_metrics import PrometheusMetrics
from tests.style.tree import ROOT

DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "calumma.json"
YAML_FILES = [
    ROOT / "CITATION.cff",
    ROOT / ".pre-commit-config.yaml",
    *sorted((ROOT / ".github").rglob("*.yml")),
    *sorted(DEPLOY.rglob("*.yml")),
]


def read_yaml(path: Path) -> Any:
    """Parse a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def series_of_the_server() -> set[str]:
    """Return the names of all time series that a server exports."""
    metrics = PrometheusMetrics()
    metrics.add_engine_gauges(
        lambda: EngineStats(num_running=0, num_waiting=0, num_sequences=0, num_reserved_tokens=0, max_cached_tokens=1)
    )
    suffixes = {"counter": ("_total",), "histogram": ("_bucket",), "gauge": ("",)}
    return {family.name + suffix for family in metrics.registry.collect() for suffix in suffixes[family.type]}


def test_the_dashboard_queries_the_metrics_of_the_server_and_shows_all() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert {name for query in queries for name in re.findall(r"calumma_\w+", query)} == (series_of_the_server())
    assert [query for query in queries if query.count("(") != query.count(")")] == []
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_dashboard_uses_the_provisioned_data_source() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = read_yaml(provisioning / "datasources" / "prometheus.yml")["datasources"]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    [provider] = read_yaml(provisioning / "dashboards" / "calumma.yml")["providers"]
    volumes = read_yaml(DEPLOY / "compose.yml")["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in volumes


def test_compose_mounts_files_that_exist_and_prometheus_scrapes_its_server() -> None:
    compose = read_yaml(DEPLOY / "compose.yml")
    volumes = [v for service in compose["services"].values() for v in service.get("volumes", [])]
    mounted = [volume.split(":")[0] for volume in volumes if volume.startswith("./")]
    assert [name for name in mounted if not (DEPLOY / name).exists()] == []
    build = compose["services"]["calumma"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).exists()
    [job] = read_yaml(DEPLOY / "prometheus.yml")["scrape_configs"]
    host, port = job["static_configs"][0]["targets"][0].split(":")
    assert compose["services"][host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    secret = Path(job["authorization"]["credentials_file"]).name
    assert compose["services"]["prometheus"]["secrets"] == [secret]
    assert secret in compose["secrets"]
    gpu = read_yaml(DEPLOY / "compose.gpu.yml")["services"]["calumma"]
    assert set(gpu["build"]["args"]) == set(build["args"])


def test_the_arguments_of_the_image_are_those_of_the_dockerfile() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    arguments = set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE))
    assert set(read_yaml(DEPLOY / "compose.yml")["services"]["calumma"]["build"]["args"]) <= (arguments)
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        assert not line.startswith("!") or (ROOT / line[1:]).exists()


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_yaml_files_parse(path: Path) -> None:
    assert isinstance(read_yaml(path), dict)


def test_issue_forms_have_what_github_requires() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        if path.name != "config.yml":
            form = read_yaml(path)
            assert {"name", "description", "body"} <= set(form)
            identifiers = [field["id"] for field in form["body"]]
            assert len(set(identifiers)) == len(identifiers)


def test_the_workflow_runs_the_script_of_ci_on_the_python_of_the_classifiers() -> None:
    jobs = read_yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"].values()
    steps = [step for job in jobs for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run", "scripts/test-vllm"]
    [version] = {step["with"]["python-version"] for step in steps if "with" in step}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    classifiers = project["classifiers"]
    assert [c for c in classifiers if re.search(r"Python :: 3\.", c)] == [
        f"Programming Language :: Python :: {version}"
    ]


def test_pre_commit_runs_tools_of_scripts_check() -> None:
    [repository] = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    check = (ROOT / "scripts" / "check").read_text()
    for hook in repository["hooks"]:
        command = " ".join(hook["entry"].removeprefix(".venv/bin/").split()[:2])
        assert re.search(rf"^check \w+ {command.split(' --')[0]}\b", check, re.MULTILINE), hook


def test_the_citation_names_version_license_and_paper() -> None:
    citation = read_yaml(ROOT / "CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == calumma.__version__
    assert citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]
    [paper] = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2405.09818"
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{citation['version']}] - {citation['date-released']}" in changelog
