"""The way to a Kubernetes cluster, and its refusals in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import UserError


@contextmanager
def connected(context: str | None) -> Iterator[tuple[Any, Any]]:
    """The cluster's batch and core API; its refusals become :class:`UserError`."""
    import urllib3
    from kubernetes import client, config
    from kubernetes.client.exceptions import ApiException
    from kubernetes.config.config_exception import ConfigException

    try:
        try:
            config.load_kube_config(context=context)
        except ConfigException as error:
            try:
                config.load_incluster_config()
            except ConfigException:
                raise UserError(
                    f"no Kubernetes cluster can be reached: {error}; set KUBECONFIG, or site.kubernetes.context"
                ) from None
        yield client.BatchV1Api(), client.CoreV1Api()
    except ApiException as error:
        raise UserError(f"Kubernetes refused: {_refusal(error)}") from None
    except urllib3.exceptions.HTTPError as error:
        raise UserError(f"the Kubernetes cluster does not answer: {error}") from None


def _refusal(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
