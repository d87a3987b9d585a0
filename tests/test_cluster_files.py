"""The files of docs/scaling: valid, and of the versions that are tested."""

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="ray is not installed: flooding[ray]")
import json

import jsonschema
import ray
import yaml

from flooding.entries import EXPERIMENTS, entry_names

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "scaling"
PINS = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def strict(properties, required=None):
    """Schema of an object that has these properties alone."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


# The fields of KubeRay's RayJob that the file uses; its own definition has thousands of lines.
TEXT, COUNT = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}
AMOUNTS = strict({"cpu": TEXT, "memory": {"type": "string", "pattern": r"^\d+Gi$"}})
CONTAINER = strict(
    {
        "name": TEXT,
        "image": TEXT,
        "env": {"type": "array", "items": strict({"name": TEXT, "value": TEXT})},
        "resources": strict({"requests": AMOUNTS, "limits": AMOUNTS}),
        "volumeMounts": {"type": "array", "items": strict({"name": TEXT, "mountPath": TEXT})},
    },
    ["name", "image", "resources"],
)
VOLUME = strict({"name": TEXT, "persistentVolumeClaim": strict({"claimName": TEXT})})
POD = strict(
    {
        "containers": {"type": "array", "items": CONTAINER, "minItems": 1, "maxItems": 1},
        "volumes": {"type": "array", "items": VOLUME},
    },
    ["containers"],
)
GROUP = {
    "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
    "template": strict({"spec": POD}),
}
WORKERS = GROUP | {"groupName": TEXT, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT}
RAY_JOB = strict({
    "apiVersion": {"const": "ray.io/v1"},
    "kind": {"const": "RayJob"},
    "metadata": strict({"name": {"type": "string", "pattern": "^[a-z][a-z0-9-]*$"}}),
    "spec": strict({
        "entrypoint": TEXT,
        "backoffLimit": COUNT,
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": COUNT,
        "rayClusterSpec": strict({
            "rayVersion": TEXT,
            "enableInTreeAutoscaling": {"type": "boolean"},
            "headGroupSpec": strict(GROUP),
            "workerGroupSpecs": {"type": "array", "items": strict(WORKERS), "minItems": 1},
        }),
    }),
})


def read(name):
    return yaml.safe_load((FOLDER / name).read_text())


def test_the_file_for_ray_up_is_valid():
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = read("ray-cluster.yaml")
    jsonschema.validate(config, schema)
    # What the schema does not know: the head is one of the types, and is given no Runs.
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert config["max_workers"] >= config["available_node_types"]["worker"]["max_workers"]


def test_the_job_for_kubernetes_is_valid():
    job = read("rayjob.yaml")
    jsonschema.validate(job, RAY_JOB)
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == PINS["ray"]
    pod = cluster["headGroupSpec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    [container] = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    # The driver and the Runs are one image, and the ledger lies on the disk that stays.
    images = {container["image"]}
    for group in cluster["workerGroupSpecs"]:
        images |= {each["image"] for each in group["template"]["spec"]["containers"]}
    assert len(images) == 1
    ledger = next(entry["value"] for entry in container["env"])
    assert ledger.startswith(container["volumeMounts"][0]["mountPath"])
    program, command, name, *options = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("flooding", "reproduce")
    assert name in entry_names(EXPERIMENTS)
    assert options[:2] == ["--ray", "auto"]


def test_the_image_has_the_tested_ray():
    [version] = re.findall(
        r"^FROM rayproject/ray:([\d.]+)-py311-cpu$",
        (FOLDER / "Dockerfile").read_text(),
        re.MULTILINE,
    )
    assert version == PINS["ray"]
