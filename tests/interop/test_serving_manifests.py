"""The manifests of docs/serving.md against the schemas of those who read them: Kubernetes, and Cloud Run's API.

Needs 125 MB that no extra has: pip install --no-deps kubernetes-validate==1.37.0 google-api-python-client==2.202.0
"""

import copy
import importlib.resources
import json
import pathlib
import re

import pytest

pytestmark = pytest.mark.interop
yaml = pytest.importorskip("yaml")
jsonschema = pytest.importorskip("jsonschema")
kubernetes_validate = pytest.importorskip("kubernetes_validate")
DISCOVERY = pytest.importorskip("googleapiclient.discovery_cache.documents")

ROOT = pathlib.Path(__file__).parents[2]
GKE, CLOUD_RUN = ((ROOT / "launch/serving" / name).read_text() for name in ("gke.yaml", "cloud_run.yaml"))
PAGE = (ROOT / "docs/serving.md").read_text()


def check_kubernetes(manifest: dict) -> None:
    """Strict: a field that Kubernetes does not know is an error."""
    kubernetes_validate.validate(manifest, "1.37", strict=True)


def cloud_run() -> dict:
    """The JSON schema of Cloud Run's API, as Google's own client library ships it; unknown fields are errors."""
    content = json.loads(importlib.resources.files(DISCOVERY).joinpath("run.v1.json").read_text())
    schemas = json.loads(json.dumps(content["schemas"]).replace('"$ref": "', '"$ref": "#/$defs/'))
    for schema in schemas.values():
        schema.pop("id")  # a name there, an address in JSON schema
        if "properties" in schema:
            schema["additionalProperties"] = False
    return {"$defs": schemas, "$ref": "#/$defs/Service"}


def check_cloud_run(manifest: dict) -> None:
    schema = cloud_run()
    jsonschema.Draft202012Validator(schema).validate(manifest)
    described = schema["$defs"]["ObjectMeta"]["properties"]["annotations"]["description"]
    of_revision = {name for name, kinds in re.findall(r"\* `(\S+)`: ([^*.]*)", described) if "Revision" in kinds}
    if unknown := manifest["spec"]["template"]["metadata"]["annotations"].keys() - of_revision:
        raise jsonschema.ValidationError(f"{unknown} are no annotations of a revision")


def changed(manifest: dict, path: tuple, value) -> dict:
    manifest = copy.deepcopy(manifest)
    *parents, last = path
    node = manifest
    for key in parents:
        node = node[key]
    node[last] = value
    return manifest


def test_kubernetes_takes_the_gke_manifest():
    manifests = list(yaml.safe_load_all(GKE))
    assert [one["kind"] for one in manifests] == ["ServiceAccount", "Deployment", "Service"]
    for manifest in manifests:
        check_kubernetes(manifest)
    account, deployment, service = manifests
    spec = deployment["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == account["metadata"]["name"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    check_container(spec)
    assert spec["containers"][0]["ports"][0]["containerPort"] == service["spec"]["ports"][0]["targetPort"]


def test_cloud_run_takes_its_manifest():
    manifest = yaml.safe_load(CLOUD_RUN)
    check_cloud_run(manifest)
    spec = manifest["spec"]["template"]["spec"]
    check_container(spec)
    probe = spec["containers"][0]["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] <= 1800  # what Cloud Run allows where there is a GPU
    assert probe["timeoutSeconds"] <= probe["periodSeconds"]


def check_container(spec: dict) -> None:
    """What no schema says: ports, mounts and the path of the weights fit each other and the page."""
    [container] = spec["containers"]
    flags = dict(argument.removeprefix("--").split("=") for argument in container["args"])
    port = container["ports"][0]["containerPort"]
    probes = [container[name] for name in container if name.endswith("Probe")]
    assert {int(flags["port"]), *(probe["httpGet"]["port"] for probe in probes)} == {port}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert volumes.keys() == mounts.keys()
    assert flags["model"] == f"{mounts['models']}/served"
    assert f"gcloud storage cp --recursive served gs://{'my-bucket'}/" in PAGE
    assert volumes["models"]["csi"]["volumeAttributes"]["bucketName"] == "MY_BUCKET"
    assert container["image"].rpartition("/vllm-openai:")[2] in PAGE


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "replica"), 1),
        (("spec", "replicas"), "one"),
        (("spec", "template", "spec", "containers", 0, "volumeMount"), []),
        (("spec", "template", "spec", "volumes", 0, "csi", "bucketName"), "b"),
    ],
)
def test_a_misspelt_field_for_kubernetes_is_found(path, value):
    deployment = list(yaml.safe_load_all(GKE))[1]
    with pytest.raises(kubernetes_validate.ValidationError):
        check_kubernetes(changed(deployment, path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "templates"), {}),
        (("spec", "template", "spec", "containers", 0, "startupProbe", "httpGet", "port"), "http"),
        (("spec", "template", "spec", "volumes", 0, "csi", "bucketName"), "b"),
        (("spec", "template", "metadata", "annotations", "run.googleapis.com/gpu-redundancy"), "false"),
        (("spec", "template", "metadata", "annotations", "autoscaling.knative.dev/maxScale"), 1),
    ],
)
def test_a_misspelt_field_for_cloud_run_is_found(path, value):
    with pytest.raises(jsonschema.ValidationError):
        check_cloud_run(changed(yaml.safe_load(CLOUD_RUN), path, value))
