"""The container and the manifests agree with the server, and with Kubernetes' schema."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.serving import metric_kinds

from drexperts import runtime
from drexperts.cli.dispatch import parser
from drexperts.serve import server
from drexperts.serve.guard import _OPEN

DEPLOY = Path(__file__).parents[2] / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
ENTRYPOINT: list[str] = json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)[0])
NATIVE = {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}


def documents(name: str) -> dict[str, Any]:
    """The documents of a file by their kind."""
    text = (DEPLOY / f"{name}.yaml").read_text(encoding="utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


POD = documents("kubernetes")["Deployment"]["spec"]["template"]["spec"]
CONTAINERS = {
    "kubernetes": POD["containers"][0],
    "kserve": documents("kserve")["ServingRuntime"]["spec"]["containers"][0],
}
every_container = pytest.mark.parametrize("name", CONTAINERS)


def arguments(container: dict[str, Any]) -> Any:
    """What `drx` makes of a container's command line."""
    program, *words = container.get("command", ENTRYPOINT) + container["args"]
    assert program == "drx"
    return parser().parse_args(words)


def test_kubernetes_knows_every_field() -> None:
    found = documents("kubernetes")
    assert found.keys() == NATIVE
    for document in found.values():
        kubernetes_validate.validate(document, "1.33", strict=True)
    about = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kserve"}}
    pod = about | {"spec": {"containers": [CONTAINERS["kserve"]]}}
    kubernetes_validate.validate(pod, "1.33", strict=True)


@every_container
def test_the_command_line_is_one_of_drx(name: str) -> None:
    container = CONTAINERS[name]
    asked = arguments(container)
    assert [port["containerPort"] for port in container["ports"]] == [asked.port]
    assert asked.host == "0.0.0.0"
    assert bool(asked.token_file) != asked.no_token
    places = {mount["mountPath"] for mount in container.get("volumeMounts", ())}
    if places:
        assert str(asked.bundle) in places
        assert str(asked.token_file.parent) in places


@every_container
def test_probes_need_no_token_and_find_the_port(name: str) -> None:
    container = CONTAINERS[name]
    probes = [value["httpGet"] for key, value in container.items() if key.endswith("Probe")]
    assert len(probes) >= 2
    known = [container["ports"][0].get("name"), container["ports"][0]["containerPort"]]
    for probe in probes:
        assert probe["path"] in _OPEN
        assert probe["port"] in known


@every_container
def test_the_server_has_no_rights(name: str) -> None:
    own = CONTAINERS[name]["securityContext"]
    context = own | (POD["securityContext"] if name == "kubernetes" else {})
    assert context["runAsNonRoot"] is True
    assert re.search(rf"^USER {context['runAsUser']}:", DOCKERFILE, re.M)
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]}


def test_a_pod_has_time_to_drain() -> None:
    waits = CONTAINERS["kubernetes"]["lifecycle"]["preStop"]["sleep"]["seconds"]
    ends = waits + arguments(CONTAINERS["kubernetes"]).drain + 2 * server._GRACE
    assert POD["terminationGracePeriodSeconds"] > ends


def test_everybody_means_the_same_pods_and_port() -> None:
    found = documents("kubernetes")
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    service = found["Service"]["spec"]
    policy = found["NetworkPolicy"]["spec"]
    monitor = documents("autoscaling")["ServiceMonitor"]["spec"]
    assert service["selector"] == policy["podSelector"]["matchLabels"] == labels
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert monitor["selector"]["matchLabels"] == found["Service"]["metadata"]["labels"]
    names = [service["ports"][0]["targetPort"], policy["ingress"][0]["ports"][0]["port"]]
    names += [service["ports"][0]["name"], monitor["endpoints"][0]["port"]]
    assert set(names) == {CONTAINERS["kubernetes"]["ports"][0]["name"]}
    secret = next(v["secret"]["secretName"] for v in POD["volumes"] if "secret" in v)
    token = monitor["endpoints"][0]["authorization"]["credentials"]
    assert (token["name"], token["key"]) == (secret, "token")


def test_replicas_follow_a_metric_that_exists(toy_bundle: Path) -> None:
    scaled = documents("autoscaling")["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"] == {"name": "drexperts"}
    metrics = re.findall(r"drx_\w+", scaled["triggers"][0]["metadata"]["query"])
    with runtime.load(toy_bundle, threads=1) as scorer:
        assert set(metrics) <= metric_kinds(scorer).keys()


def test_the_container_is_checked_on_its_own_port() -> None:
    asked = parser().parse_args([*ENTRYPOINT[1:], "--no-token"])
    (port,) = re.findall(r"^EXPOSE (\d+)", DOCKERFILE, re.M)
    checked, path = re.findall(r"127\.0\.0\.1:(\d+)(/\S+?)'", DOCKERFILE)[0]
    assert int(port) == int(checked) == asked.port
    assert path in _OPEN


def test_the_image_is_built_from_what_the_wheel_needs() -> None:
    package = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8"))
    project, setuptools = package["project"], package["tool"]["setuptools"]
    folders = {Path(folder).parts[0] for folder in setuptools["package-dir"].values()}
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    sent = set(re.findall(r"^!(\S+)$", ignore, re.M))
    assert {"pyproject.toml", project["readme"], *project["license-files"], *folders} == sent
    for extras in re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()


def test_the_runtime_of_kserve_is_the_one_that_is_asked_for() -> None:
    found = documents("kserve")
    about, asked = found["ServingRuntime"], found["InferenceService"]["spec"]["predictor"]["model"]
    assert asked["runtime"] == about["metadata"]["name"]
    assert asked["modelFormat"]["name"] == about["spec"]["supportedModelFormats"][0]["name"]
    assert asked["protocolVersion"] in about["spec"]["protocolVersions"]
