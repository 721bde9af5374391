"""Triton's own HTTP protocols: generate, generate_stream, and KServe's infer, for the models behind the gateway.

Nothing else of Triton's is here: models cannot be loaded or unloaded, shared memory, traces and log
settings cannot be touched.
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md
https://github.com/kserve/kserve/blob/master/docs/predict-api/v2/required_api.md
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from pipeline import strict_json
from pipeline.gateway.asks import Ask, Event
from pipeline.gateway.contract import INPUTS, LISTS, OUTPUTS, check_shape, chosen
from pipeline.gateway.errors import GatewayError, invalid
from pipeline.gateway.replies import CLIENT_GONE, EventStream, while_there
from pipeline.gateway.service import Service, once, whole

router = APIRouter(prefix="/v2", tags=["Triton and KServe v2"])
NOT_BINARY = ("binary_data", "binary_data_output")
ERROR: dict[str, Any] = {
    "description": "what was wrong",
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
        }
    },
}
ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 401, 404, 413, 429, 500, 502, 503, 504), ERROR)
STREAMED = {**ERRORS, 200: {"description": "the parts", "content": {"text/event-stream": {}}}}
DOWN: dict[int | str, dict[str, Any]] = {503: ERROR}


@router.get("")
async def server(request: Request) -> dict[str, Any]:
    """Which export answers: its identity leads back to the data (``lifecycle trace``)."""
    current = _service(request).versions.current
    name = f"lifecycle-{current.identity}" if current else "lifecycle"
    return {"name": name, "version": "2", "extensions": ["generate"]}


@router.get("/health/live")
async def live() -> Response:
    """The gateway is there."""
    return Response()


@router.get("/health/ready", responses=DOWN)
async def ready(request: Request) -> Response:
    """The model's last probe, a real generation, passed."""
    return readiness(_service(request))


@router.get("/models/{model}/ready", responses=ERRORS)
async def model_ready(request: Request, model: str) -> Response:
    """The model's own last probe passed."""
    versions = _service(request).versions
    versions.route(model)
    return _said(versions.ready() or versions.ready(model))


@router.get("/models/{model}", responses=ERRORS)
async def metadata(request: Request, model: str) -> dict[str, Any]:
    """The model's inputs and outputs."""
    _service(request).versions.route(model)
    return described(model)


@router.post("/models/{model}/generate", responses=ERRORS)
async def generate(request: Request, model: str) -> Response:
    """One answer, whole: the inputs by name in a JSON object, the outputs likewise."""
    ask = Ask(model, await read_json(request), "generate")
    answer = await while_there(request.receive, whole(_service(request).answer(ask, request.state.caller)))
    if answer is None:
        return Response(status_code=CLIENT_GONE)
    return JSONResponse({"model_name": model, "model_version": "1", **outputs(answer)})


@router.post("/models/{model}/generate_stream", responses=STREAMED)
async def generate_stream(request: Request, model: str) -> Response:
    """One answer as it comes where ``stream`` is true, an event a part; else whole, in one event."""
    ask = Ask(model, await read_json(request), "generate")
    events = _service(request).answer(ask, request.state.caller)
    return EventStream(_parts(model, events if ask.inputs.get("stream") is True else once(events)))


@router.post("/models/{model}/infer", responses=ERRORS)
async def infer(request: Request, model: str) -> Response:
    """One answer, whole, in KServe's tensors (JSON; no binary extension, no shared memory)."""
    body = await read_json(request)
    wanted = _wanted(body)
    ask = Ask(model, tensors(body), "infer")
    answer = await while_there(request.receive, whole(_service(request).answer(ask, request.state.caller)))
    if answer is None:
        return Response(status_code=CLIENT_GONE)
    values = outputs(answer)
    found = {
        "model_name": model,
        "model_version": "1",
        "outputs": [
            {"name": name, "datatype": OUTPUTS[name], "shape": [1], "data": [values[name]]} for name in wanted
        ],
    }
    if isinstance(body.get("id"), str):
        found["id"] = body["id"]
    return JSONResponse(found)


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object of a request's body.  Raises :class:`GatewayError`."""
    body = await request.body()
    try:
        found = json.loads(body)
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except ValueError as error:
        raise invalid(f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise invalid("the body must be a JSON object")
    return found


def _wanted(body: dict[str, Any]) -> list[str]:
    """Names of the outputs that a request asks for.  Raises :class:`GatewayError`."""
    asked = body.get("outputs") or []
    if not isinstance(asked, list) or not all(isinstance(each, dict) for each in asked):
        raise invalid("outputs must be a list of objects with a name", "outputs")
    for each in (body, *asked):
        parameters = each.get("parameters") or {}
        # tritonclient says of everything that it is not binary.
        if not isinstance(parameters, dict) or any(
            name not in NOT_BINARY or value is not False for name, value in parameters.items()
        ):
            raise invalid("there are no parameters (no binary data, no shared memory)", "parameters")
    return chosen([each.get("name") for each in asked])


def tensors(body: dict[str, Any]) -> dict[str, Any]:
    """Values by name of KServe's input tensors.  Raises :class:`GatewayError`."""
    given = body.get("inputs")
    if not isinstance(given, list):
        raise invalid("inputs must be a list of tensors", "inputs")
    found = {}
    for place, tensor in enumerate(given):
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise invalid(f"inputs[{place}] must be an object with name, datatype, shape and data", "inputs")
        name, data = tensor["name"], tensor.get("data")
        if tensor.get("parameters"):
            raise invalid(
                f"inputs[{place}] ({name}) has parameters; there are none (no shared memory)", "inputs"
            )
        if name in INPUTS and tensor.get("datatype") != INPUTS[name]:
            raise invalid(f"the datatype of {name} is {INPUTS[name]}, not {tensor.get('datatype')}", "inputs")
        if name in found:
            raise invalid(f"the input {name} is there twice", "inputs")
        while isinstance(data, list) and len(data) == 1 and isinstance(data[0], list):
            data = data[0]
        if not isinstance(data, list):
            raise invalid(f"the data of {name} must be a list", "inputs")
        check_shape(name, tensor.get("shape"), len(data))
        found[name] = data
    return found


@router.post("/repository/index", responses=ERRORS)
async def index(request: Request) -> list[dict[str, str]]:
    """The models' names.  Nothing else of Triton's model repository is here."""
    return [{"name": name, "version": "1", "state": "READY"} for name in _service(request).versions.models()]


@router.get("/models/{model}/config", responses=ERRORS)
async def config(request: Request, model: str) -> dict[str, Any]:
    """Of the model's configuration what leads back to its export."""
    versions = _service(request).versions
    versions.route(model)
    identity = versions.current.identity if versions.current else ""
    return {"name": model, "parameters": {"lifecycle_identity": {"string_value": identity}}}


def readiness(service: Service) -> Response:
    """200, or 503 with the reason."""
    return _said(service.versions.ready())


def _said(fault: str) -> Response:
    return JSONResponse({"error": fault}, 503) if fault else Response()


def described(model: str) -> dict[str, Any]:
    """KServe's description of a model of the contract."""
    inputs, outputs = (
        [
            {"name": name, "datatype": kind, "shape": [-1 if name in LISTS else 1]}
            for name, kind in tensors.items()
        ]
        for tensors in (INPUTS, OUTPUTS)
    )
    return {"name": model, "versions": ["1"], "platform": "python", "inputs": inputs, "outputs": outputs}


def outputs(event: Event) -> dict[str, Any]:
    """The contract's outputs of a part."""
    return {
        "text_output": event.text,
        "finish_reason": event.finish_reason,
        "prompt_tokens": event.prompt_tokens,
        "completion_tokens": event.completion_tokens,
        "logprobs_output": strict_json.dumps(event.logprobs, ensure_ascii=False) if event.logprobs else "",
    }


async def _parts(model: str, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    """Server-sent events; an error before the first one is raised, so that it gets an HTTP status."""
    head = {"model_name": model, "model_version": "1"}
    begun = False
    try:
        async with aclosing(events):
            async for event in events:
                begun = True
                yield _encoded({**head, **outputs(event)})
    except GatewayError as error:
        if not begun:
            raise
        yield _encoded(error.triton())


def _encoded(found: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % strict_json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()


def _service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found
