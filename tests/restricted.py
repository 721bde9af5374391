"""Kubernetes' restricted Pod Security Standard, for tests of what is sent to clusters.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from typing import Any

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip


def faults(spec: dict[str, Any]) -> list[str]:
    """What the standard forbids in a pod's spec, in words; empty for one that it admits."""
    found = [f"the pod has {name}" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    for volume in spec.get("volumes", []):
        found += [f"volume {volume['name']} is a {kind}" for kind in set(volume) - {"name"} - VOLUMES]
    pod = spec.get("securityContext", {})
    found += [f"the pod sets {name}" for name in ("sysctls", "seLinuxOptions") if pod.get(name)]
    each = [
        container
        for kind in ("initContainers", "containers", "ephemeralContainers")
        for container in spec.get(kind, [])
    ]
    for container in each:
        own = container.get("securityContext", {})
        both = {**pod, **own}
        wrong = {
            "runAsNonRoot": both.get("runAsNonRoot") is not True,
            "runAsUser": both.get("runAsUser", 1) == 0,
            "seccompProfile": both.get("seccompProfile", {}).get("type")
            not in ("RuntimeDefault", "Localhost"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is not False,
            "privileged": bool(own.get("privileged")),
            "capabilities.drop": "ALL" not in own.get("capabilities", {}).get("drop", []),
            "capabilities.add": bool(set(own.get("capabilities", {}).get("add", [])) - {"NET_BIND_SERVICE"}),
            "procMount": own.get("procMount", "Default") != "Default",
            "hostPort": any(port.get("hostPort") for port in container.get("ports", [])),
        }
        found += [f"container {container['name']}: {name}" for name, is_wrong in wrong.items() if is_wrong]
    return found if each else [*found, "no container"]
