"""A stand-in for a Kubernetes cluster: the few calls of its API that the product makes, over HTTP.

No Kubernetes: a server of the tests, on loopback.  It holds every Job to the published
schemas, and runs a pod as a kubelet would: the init containers one after the other, each
only when the one before ended with 0, then the container; as processes of this machine, with
the claim's mount as a folder and the annotations' files in another.  A pod that was disturbed
is followed by a new one, one that failed is not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import kubernetes_validate
import yaml


class Pod(threading.Thread):
    """A pod at work; its status as the API tells it."""

    def __init__(self, number: int, template: dict[str, Any], folder: Path) -> None:
        super().__init__(daemon=True)
        self.name_ = f"pod-{number}"
        self.created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1_700_000_000 + number))
        self.spec = template["spec"]
        self.folder = folder / self.name_
        self.states: dict[str, dict[str, Any]] = {}
        self.disturbed = False
        self.succeeded: bool | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.settings = self.folder / "settings"
        self.settings.mkdir(parents=True)
        annotations = template["metadata"]["annotations"]
        for volume in self.spec["volumes"]:
            for item in volume.get("downwardAPI", {}).get("items", []):
                key = item["fieldRef"]["fieldPath"].removeprefix("metadata.annotations['").removesuffix("']")
                (self.settings / item["path"]).write_text(annotations[key])

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def run(self) -> None:
        for container in self.containers:
            if self.disturbed:
                break
            mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
            command = [word.replace(mounts["settings"], str(self.settings)) for word in container["command"]]
            environment = {each["name"]: each.get("value", "") for each in container["env"]}
            self.states[container["name"]] = {"running": {}}
            with open(self.log(container["name"]), "wb") as log:
                self._process = subprocess.Popen(
                    command,
                    cwd=container["workingDir"],
                    env={**os.environ, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
                status = self._process.wait()
            code = status if status >= 0 else 128 - status
            reason = "Completed" if code == 0 else "Error"
            self.states[container["name"]] = {"terminated": {"exitCode": code, "reason": reason}}
            if code:
                self.succeeded = False
                return
        self.succeeded = not self.disturbed

    def log(self, container: str) -> Path:
        return self.folder / f"{container}.log"

    def evict(self) -> None:
        """Tell the pod to go, as preemption and a drained node do, and wait until it has."""
        self.disturbed = True
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
        self.join()

    def told(self) -> dict[str, Any]:
        """The pod as the API shows it."""
        waiting = {"waiting": {"reason": "PodInitializing"}}
        shown = [
            {
                "name": each["name"],
                "image": each["image"],
                "imageID": "",
                "ready": False,
                "restartCount": 0,
                "state": self.states.get(each["name"], waiting),
            }
            for each in self.containers
        ]
        return {
            "metadata": {"name": self.name_, "creationTimestamp": self.created},
            "spec": {**self.spec, "nodeName": "test-node"},
            "status": {"initContainerStatuses": shown[:-1], "containerStatuses": shown[-1:]},
        }


class Cluster:
    """The server, its one Job, and the pods of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.job: dict[str, Any] | None = None
        self.train_job: dict[str, Any] | None = None  # kept, not run; a test sets its status
        self.pods: list[Pod] = []
        self.forbidden = False
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                cluster.answer(self)

            def do_POST(self) -> None:
                cluster.answer(self)

            def do_DELETE(self) -> None:
                cluster.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def kubeconfig(self) -> Path:
        """A kubeconfig that leads here."""
        path = self.folder / "kubeconfig"
        address = f"http://127.0.0.1:{self.server.server_port}"
        plain = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": address}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(plain))
        return path

    def stop(self) -> None:
        for pod in self.pods:
            if pod.is_alive():
                pod.evict()
        self.server.shutdown()
        self.server.server_close()

    def evict(self) -> None:
        """Disturb the running pod; the Job's controller brings another (its policy says Ignore)."""
        assert self.job is not None
        rules = self.job["spec"]["podFailurePolicy"]["rules"]
        assert rules[0]["action"] == "Ignore"
        assert rules[0]["onPodConditions"][0]["type"] == "DisruptionTarget"
        self.pods[-1].evict()
        self._start()

    def _start(self) -> None:
        assert self.job is not None
        pod = Pod(len(self.pods), self.job["spec"]["template"], self.folder)
        self.pods.append(pod)
        pod.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlparse(request.path)
        length = int(request.headers.get("Content-Length", 0))
        body = json.loads(request.rfile.read(length) or b"{}")
        code, value = self._answer(request.command, url.path, parse_qs(url.query), body)
        text = value if isinstance(value, str) else json.dumps(value)
        request.send_response(code)
        request.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
        request.end_headers()
        request.wfile.write(text.encode())

    def _answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        jobs, pods = "/apis/batch/v1/namespaces/team/jobs", "/api/v1/namespaces/team/pods"
        train_jobs = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs"
        if path.startswith(train_jobs):
            return self._train_job(method, path.removeprefix(train_jobs), body)
        if self.forbidden:
            return 403, {"message": 'jobs.batch is forbidden: User "test" cannot create resource "jobs"'}
        if method == "POST" and path == jobs:
            try:
                kubernetes_validate.validate(body, "1.31", strict=True)
            except kubernetes_validate.ValidationError as error:
                return 422, {"message": error.message}
            self.job, self.pods = body, []
            self._start()
            return 201, body
        known = self.job is not None and path.endswith("/" + self.job["metadata"]["name"])
        if path.startswith(jobs) and not known:
            return 404, {"message": "not found"}
        if method == "GET" and path.startswith(f"{jobs}/"):
            assert self.job is not None
            ended = self.pods[-1].succeeded
            kind = {True: "Complete", False: "Failed"}.get(ended) if ended is not None else None
            conditions = [{"type": kind, "status": "True"}] if kind else []
            return 200, {**self.job, "status": {"conditions": conditions}}
        if method == "DELETE":
            self.pods[-1].evict()
            self.job = None
            return 200, {"kind": "Status", "status": "Success"}
        if path == pods:
            return 200, {"items": [pod.told() for pod in self.pods]}
        name = path.removeprefix(f"{pods}/").removesuffix("/log")
        pod = next(each for each in self.pods if each.name_ == name)
        lines = pod.log(query["container"][0]).read_text().splitlines()
        return 200, "\n".join(lines[-int(query["tailLines"][0]) :])

    def _train_job(self, method: str, name: str, body: Any) -> tuple[int, Any]:
        if method == "POST":
            if self.train_job is not None:
                return 409, {"message": "already exists"}
            self.train_job = body
            return 201, body
        if self.train_job is None or name != f"/{self.train_job['metadata']['name']}":
            return 404, {"message": "not found"}
        if method == "DELETE":
            self.train_job = None
        return 200, self.train_job or {"kind": "Status", "status": "Success"}
