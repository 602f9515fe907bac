"""The JobSet that `launch/gke.sh` makes: its fields, those of the CRD, and what it refuses."""

import json
import os
import re

import pytest
from stub_commands import calls, launch, stubs

from grain_jax.command_line import ExitStatus

yaml = pytest.importorskip("yaml")

SLICE = ("run", "image:1", "tpu-v5-lite-podslice", "4x4")
WORKDIR = "--workdir=gs://bucket/run"
# Fields that the API has, by the reference of JobSet v1alpha2 (https://jobset.sigs.k8s.io), and of
# batch/v1 Job and core/v1 Pod (https://kubernetes.io/docs/reference): path -> allowed keys.
FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "metadata": {"name", "namespace", "labels", "annotations"},
    "spec": {
        *("coordinator", "failurePolicy", "managedBy", "network", "replicatedJobs"),
        *("startupPolicy", "successPolicy", "suspend", "ttlSecondsAfterFinished"),
    },
    "spec.failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "spec.failurePolicy.rules": {
        *("action", "name", "onJobFailureReasons", "onJobFailureMessagePatterns"),
        "targetReplicatedJobs",
    },
    "spec.replicatedJobs": {"name", "groupName", "replicas", "template", "dependsOn"},
    "spec.replicatedJobs.template": {"metadata", "spec"},
    "spec.replicatedJobs.template.spec": {
        *("activeDeadlineSeconds", "backoffLimit", "completionMode", "completions"),
        *("parallelism", "podFailurePolicy", "suspend", "template", "ttlSecondsAfterFinished"),
    },
    "spec.replicatedJobs.template.spec.podFailurePolicy.rules": {
        *("action", "onExitCodes", "onPodConditions"),
    },
    "spec.replicatedJobs.template.spec.podFailurePolicy.rules.onExitCodes": {
        *("containerName", "operator", "values"),
    },
    "spec.replicatedJobs.template.spec.template": {"metadata", "spec"},
    "spec.replicatedJobs.template.spec.template.spec": {
        *("containers", "nodeSelector", "restartPolicy", "serviceAccountName"),
        *("terminationGracePeriodSeconds", "volumes"),
    },
    "spec.replicatedJobs.template.spec.template.spec.containers": {
        *("name", "image", "command", "args", "env", "resources", "volumeMounts"),
    },
}


@pytest.fixture
def bin(tmp_path):
    return stubs(tmp_path / "bin", kubectl='cat > "$HOME/applied.yaml"\n')


@pytest.fixture
def run(tmp_path, bin):
    def run_launcher(*arguments, **environment):
        return launch("gke.sh", *arguments, bin=bin, cwd=tmp_path, **environment)

    return run_launcher


def manifest(run, *arguments, **environment):
    result = run("--dry-run", *arguments, **environment)
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(result.stdout)


def parts(value, path=""):
    """Every mapping of a manifest with its path; the items of a list have the path of the list."""
    if isinstance(value, list):
        for item in value:
            yield from parts(item, path)
    elif isinstance(value, dict):
        yield path, value
        for name, inner in value.items():
            yield from parts(inner, f"{path}.{name}".lstrip("."))


EVERYTHING = {"SLICES": "2", "QUEUE": "q", "BUCKET": "b", "SERVICE_ACCOUNT": "s", "RETRIES": "7"}


@pytest.mark.parametrize("environment", [{}, EVERYTHING])
def test_all_fields_are_those_of_the_api(run, environment):
    made = manifest(run, *SLICE, WORKDIR, **environment)
    assert (made["apiVersion"], made["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    seen = set()
    for path, mapping in parts(made):
        if path in FIELDS:
            seen.add(path)
            assert set(mapping) <= FIELDS[path], path
    assert seen == set(FIELDS)


@pytest.mark.parametrize("environment", [{}, EVERYTHING])
def test_the_manifest_fits_the_schema_of_the_crd(run, environment):
    """JOBSET_CRD: a file, config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of JobSet."""
    if "JOBSET_CRD" not in os.environ:
        pytest.skip("JOBSET_CRD does not name the file of the CRD")
    jsonschema = pytest.importorskip("jsonschema")
    with open(os.environ["JOBSET_CRD"], encoding="utf-8") as file:
        (version,) = yaml.safe_load(file)["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]

    def close(part):  # a field that the schema does not know would be dropped without a word
        if isinstance(part, dict):
            if part.get("properties") and "type" in part:
                part.setdefault("additionalProperties", False)
            for inner in part.values():
                close(inner)
        elif isinstance(part, list):
            for inner in part:
                close(inner)

    close(schema["properties"]["spec"])
    made = manifest(run, *SLICE, WORKDIR, **environment)
    jsonschema.validate(made, schema)
    made["spec"]["failurePolicy"]["maxRestart"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(made, schema)


@pytest.mark.parametrize(
    ("topology", "environment", "hosts", "chips"),
    [
        ("4x4", {}, 4, 4),
        ("2x2x4", {}, 4, 4),
        ("16x16", {}, 64, 4),
        ("2x2", {}, 1, 4),
        ("1x1", {}, 1, 1),
        ("2x4", {"CHIPS_PER_HOST": "8"}, 1, 8),
    ],
)
def test_there_is_a_pod_for_each_host(run, topology, environment, hosts, chips):
    made = manifest(run, *SLICE[:3], topology, WORKDIR, SLICES="2", **environment)
    (replicated,) = made["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert replicated["replicas"] == 2
    assert (job["parallelism"], job["completions"]) == (hosts, hosts)
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": topology,
    }


def expanded(text, variables):
    """A word of a pod's command as Kubernetes starts it: $$ is one $, $(NAME) a variable."""

    def replace(match):
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replace, text)


def container_of(made):
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    return container


def test_arguments_arrive_as_they_were_given(run):
    given = ["--name=a b", '--x="q" \\n', "--y=$HOME: {z}", "--z=two\nlines\tand a tab", WORKDIR]
    given += ["--u=$(JAX_PLATFORMS)", "--v=$$(JAX_PLATFORMS) $$ $", "--w=$(NOTHING)"]
    made = manifest(run, *SLICE, *given)
    started = [expanded(word, {"JAX_PLATFORMS": "tpu"}) for word in container_of(made)["command"]]
    assert started == ["python", "-m", "grain_jax.train", *given]
    json.dumps(made)


@pytest.mark.parametrize("environment", [{}, {"BUCKET": "b"}])
def test_a_pod_has_shared_memory_for_its_loader_processes(run, environment):
    made = manifest(run, *SLICE, WORKDIR, **environment)
    pod = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (mount,) = [m for m in container_of(made)["volumeMounts"] if m["mountPath"] == "/dev/shm"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
    assert volume["emptyDir"] == {"medium": "Memory"}


def test_the_bucket_of_the_data_is_only_read(run):
    made = manifest(run, *SLICE, WORKDIR, BUCKET="b")
    pod = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (mount,) = [m for m in container_of(made)["volumeMounts"] if m["mountPath"] == "/data"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
    assert mount["readOnly"] is True
    assert volume["csi"]["readOnly"] is True
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "b"


def test_a_mistake_ends_the_set_and_all_else_starts_it_again(run):
    made = manifest(run, *SLICE, WORKDIR, RETRIES="5")
    assert made["spec"]["failurePolicy"]["maxRestarts"] == 5
    (rule,) = made["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    (failure,) = job["podFailurePolicy"]["rules"]
    final = set(failure["onExitCodes"]["values"])
    assert final >= {ExitStatus.STOPPED, ExitStatus.MISTAKE, ExitStatus.INTERRUPTED}
    assert not final & {ExitStatus.DONE, ExitStatus.AGAIN, 137, 143}


def test_it_is_applied_only_without_dry_run(run, bin, tmp_path):
    printed = run("--dry-run", *SLICE, WORKDIR).stdout
    assert calls(bin) == []
    assert run(*SLICE, WORKDIR).returncode == 0
    assert calls(bin) == ["kubectl apply -f -"]
    assert (tmp_path / "applied.yaml").read_text() == printed


@pytest.mark.parametrize(
    ("given", "environment", "named"),
    [
        (("Run", *SLICE[1:]), {}, "NAME: given Run"),
        ((*SLICE[:3], "16"), {}, "TOPOLOGY: given 16"),
        ((*SLICE[:3], "--workdir=x"), {}, "given: run image:1 tpu-v5-lite-podslice --workdir=x"),
        (SLICE, {"CHIPS_PER_HOST": "3"}, "divisor of the 16 chips"),
        (SLICE, {"SLICES": "0"}, "SLICES and CHIPS_PER_HOST: given 0 and 4"),
        (SLICE, {"RETRIES": "x"}, "RETRIES=x"),
        (SLICE, {}, "No --workdir is given"),
        ((*SLICE, "--workdir="), {}, "saved on the disks of the pods"),
        ((*SLICE, "--workdir=/data/run"), {"BUCKET": "b"}, "--workdir=gs://b/FOLDER"),
        ((*SLICE, "--workdir", "/data"), {"BUCKET": "b"}, "read-only"),
    ],
)
def test_what_cannot_be_is_refused(run, bin, given, environment, named):
    result = run(*given, **environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert named in result.stderr
    assert calls(bin) == []


def test_settings_are_checked_first(run, bin):
    assert run(*SLICE, WORKDIR, CHECK_STATUS="2").returncode == 2
    assert calls(bin) == []
    assert re.search("Checked: settings", run("--dry-run", *SLICE, WORKDIR).stderr)


def test_another_module_needs_no_workdir(run):
    made = manifest(run, *SLICE, "--checkpoint=gs://b/run", MODULE="grain_jax.evaluate")
    assert container_of(made)["command"][2:] == ["grain_jax.evaluate", "--checkpoint=gs://b/run"]
