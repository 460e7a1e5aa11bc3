"""The service under Ray Serve on this machine, and the files of its deployment."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pytest
import yaml

from fast_instantid.cli import main
from fast_instantid.cli.parser import make_parser
from fast_instantid.cli.serve import KEY, on_ray

from .serving import PROMPT, eventually, photo

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
HADOLINT = shutil.which(
    "hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
)


@pytest.mark.slow
def test_the_same_app_under_ray_serve(tmp_path, request):
    short = tempfile.mkdtemp(prefix="r-")  # names of sockets have 107 bytes at most
    request.addfinalizer(lambda: shutil.rmtree(short, ignore_errors=True))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fast_instantid", "serve", "--base", "miniature", "--ray", "--port", str(port)]
    environment = {**os.environ, "RAY_ADDRESS": "", "PYTHONPATH": str(ROOT), "RAY_TMPDIR": short}
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
        try:

            def ready() -> bool:
                time.sleep(0.5)
                assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
                try:
                    return client.get("/readyz").status_code == 200
                except httpx.TransportError:
                    return False

            eventually(ready, 300)
            faces = client.post("/v1/faces", files=[photo()]).json()["photos"][0]["faces"]
            assert len(faces) == 1
            fields = {"prompt": PROMPT, "num_inference_steps": "3"}
            events = client.post("/v1/pictures", files=[photo()], data=fields, headers={"Accept": "text/event-stream"})
            told = re.findall("event: (\\w+)", events.text)
            assert (told[0], told.count("step"), told[-1]) == ("queued", 3, "picture"), events.text[-500:]
            assert client.get("/v1/persons", headers={"Host": "evil.example"}).status_code == 421
            assert client.post("/v1/faces", json={"photos": ["http://127.0.0.1/"]}).status_code == 422
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)


@pytest.mark.slow
def test_replicas_that_cannot_start_say_why(tmp_path, request):
    short = tempfile.mkdtemp(prefix="r-")
    request.addfinalizer(lambda: shutil.rmtree(short, ignore_errors=True))
    command = [sys.executable, "-m", "fast_instantid", "serve", "--ray", "--port", "0"]
    environment = {**os.environ, "RAY_ADDRESS": "", "PYTHONPATH": str(ROOT), "RAY_TMPDIR": short}
    environment["FAST_INSTANTID_MODELS"] = str(tmp_path)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 1
    assert f"error: no replica starts: ModelFileError: {tmp_path / 'instantid'}: neither a file nor" in done.stderr
    assert "Traceback" not in done.stderr


def test_more_replicas_than_cores_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["serve", "--base", "miniature", "--ray", "--port", "0", "--replicas", "999"]) == 1
    assert f"--replicas 999: this machine has {os.cpu_count()} CPUs, and each needs one" in capsys.readouterr().err


def options_of(words: list[str]):
    return make_parser().parse_args(words)


def test_the_commands_of_the_deployment_are_ours():
    unit = (DEPLOY / "fast-instantid.service").read_text()
    [start] = re.findall(r"^ExecStart=(.+)$", unit, re.MULTILINE)
    program, *words = shlex.split(start)
    assert program.endswith("/fast-instantid")
    assert options_of(words).persons == Path("/var/lib/fast-instantid/persons")
    [entry] = re.findall(r"^ENTRYPOINT (\[.+\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert options_of(yaml.safe_load(entry)[1:]).host == "0.0.0.0"
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for names in copied for name in names.split())
    packages = re.findall(r"apt-get install((?: --\S+)*) ([^&\n]+) &&", (DEPLOY / "Dockerfile").read_text())
    assert "wget" in packages[0][1].split(), "KubeRay's probes call it"
    assert re.search(r"^ENV .*\bRAY_USAGE_STATS_ENABLED=0\b", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    for text in ((DEPLOY / name).read_text() for name in ("Dockerfile", "fast-instantid.service", "rayservice.yaml")):
        assert KEY in text


def test_the_rayservice_is_what_ray_reads():
    from ray.serve.schema import ServeDeploySchema

    document = yaml.safe_load((DEPLOY / "rayservice.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", "RayService")
    served = ServeDeploySchema(**yaml.safe_load(document["spec"]["serveConfigV2"]))
    [application] = served.applications
    module, _, name = application.import_path.partition(":")
    assert (module, name) == (on_ray.__module__, on_ray.__name__)
    options = options_of(
        ["serve", *(word for key, value in application.args.items() for word in (f"--{key}", str(value)))]
    )
    assert (options.base, options.max_batch) == ("/models/base", 4)
    assert on_ray(application.args)._bound_deployment.name == application.deployments[0].name
    cluster = document["spec"]["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"] is True, "or no pods come for more replicas"
    [group] = cluster["workerGroupSpecs"]
    deployment = application.deployments[0]
    scaling, needs = deployment.autoscaling_config, deployment.ray_actor_options
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (group["minReplicas"], group["maxReplicas"])
    assert needs.num_cpus == int(group["rayStartParams"]["num-cpus"]), "a replica fills a pod"
    [worker] = group["template"]["spec"]["containers"]
    mounted = {mount["name"] for mount in worker["volumeMounts"]}
    assert mounted == {volume["name"] for volume in group["template"]["spec"]["volumes"]}


def test_the_pods_are_what_kubernetes_reads():
    validator = pytest.importorskip("kubernetes_validate")
    cluster = yaml.safe_load((DEPLOY / "rayservice.yaml").read_text())["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        validator.validate(pod, validator.latest_version(), strict=True)


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not here: the Dockerfile was not linted")
def test_hadolint_finds_nothing_in_the_dockerfile():
    done = subprocess.run([str(HADOLINT), str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here: the unit was not checked"
)
def test_the_unit_is_what_systemd_reads(tmp_path):
    unit = (DEPLOY / "fast-instantid.service").read_text()
    path = tmp_path / "fast-instantid.service"
    path.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", unit, flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
