"""KServe's gRPC protocol, with Triton's decoupled streaming, for the models behind the gateway.

Requests go the way of all others (:mod:`.service`): Triton's own gRPC is not used.  Of its calls there are
those that ask what is there, ModelInfer (one answer, whole) and ModelStreamInfer; everything else,
shared memory and model control among it, is unimplemented.
https://github.com/triton-inference-server/common/blob/main/protobuf/grpc_service.proto
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import numpy
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

from pipeline.gateway.addresses import authority
from pipeline.gateway.asks import Ask, Caller, Event
from pipeline.gateway.connections import room
from pipeline.gateway.contract import INPUTS, OUTPUTS, check_shape, chosen
from pipeline.gateway.errors import GatewayError, invalid
from pipeline.gateway.keys import Keys, authorised
from pipeline.gateway.kserve import described, outputs
from pipeline.gateway.service import Service, once, whole
from pipeline.gateway.settings import Settings

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
NUMBERS = {"INT32": "<i4", "INT64": "<i8", "FP32": "<f4", "BOOL": "?"}
CONTENTS = {
    "BYTES": "bytes_contents",
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
}
# Of a request's parameters these two change nothing here; any other would be ignored silently.
PARAMETERS = ("triton_enable_empty_final_response", "binary_data_output")
PENDING = 64  # requests of one stream that may be under way
HANDSHAKE_MS = 10_000  # for a connection to become one
IDLE_MS = 60_000  # a connection without a call is ended; clients connect anew by themselves
ALIVE_EVERY_MS, ALIVE_WITHIN_MS = 30_000, 10_000  # whether the other end is still there
STREAM_IDLE_S = 300.0  # a stream on which nothing is asked and nothing is under way is ended


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The calls that there are; the generated base class answers UNIMPLEMENTED to the others."""

    def __init__(self, service: Service, keys: Keys | None) -> None:
        self.service, self.keys = service, keys
        self.stream_idle_s = STREAM_IDLE_S

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=not self.service.versions.ready())

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        await self._caller(context)
        current = self.service.versions.current
        name = f"lifecycle-{current.identity}" if current else "lifecycle"
        return service_pb2.ServerMetadataResponse(name=name, version="2", extensions=["generate"])

    async def ModelReady(self, request: Any, context: Any) -> Any:
        await self._caller(context)
        versions = self.service.versions
        ready = (
            not versions.ready() and request.name in versions.models() and not versions.ready(request.name)
        )
        return service_pb2.ModelReadyResponse(ready=ready)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        await self._caller(context)
        try:
            self.service.versions.route(request.name)
        except GatewayError as error:
            await self._abort(context, error)
        return service_pb2.ModelMetadataResponse(**described(request.name))

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        caller = await self._caller(context)
        try:
            event = await whole(self.service.answer(Ask(request.model_name, values(request), "grpc"), caller))
        except GatewayError as error:
            await self._abort(context, error)
        return response(request, event)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Answers to the requests of a stream as they come, several at once; closing it ends them all."""
        caller = await self._caller(context)
        ready: asyncio.Queue[Any] = asyncio.Queue(maxsize=PENDING)
        room = asyncio.Semaphore(PENDING)
        under_way: set[int] = set()

        async def one(request: Any) -> None:
            under_way.add(id(request))
            try:
                async with aclosing(self._answered(request, caller)) as answers:
                    async for each in answers:
                        await ready.put(each)
            finally:
                under_way.discard(id(request))
                room.release()

        async def all_of_them() -> None:
            async with asyncio.TaskGroup() as group:
                async for request in requests:
                    await room.acquire()
                    group.create_task(one(request))

        async def told() -> None:
            end = None
            try:
                await all_of_them()
            except Exception as error:
                end = error
            await ready.put(end)

        async def coming() -> Any:
            while True:
                try:
                    async with asyncio.timeout(self.stream_idle_s):
                        return await ready.get()
                except TimeoutError:
                    if not under_way and ready.empty():
                        await context.abort(
                            grpc.StatusCode.CANCELLED,
                            f"nothing was asked on this stream for {self.stream_idle_s:g} s; open another",
                        )

        working = asyncio.create_task(told())
        try:
            while (answer := await coming()) is not None:
                if isinstance(answer, Exception):
                    raise answer
                yield answer
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _answered(self, request: Any, caller: Caller) -> AsyncGenerator[Any, None]:
        """The responses to one request of a stream; what goes wrong is a response, too."""
        try:
            inputs = values(request)
            events = self.service.answer(Ask(request.model_name, inputs, "grpc"), caller)
            if inputs.get("stream") != [True]:
                events = once(events)
            async with aclosing(events):
                async for event in events:
                    yield _streamed(request, event, bool(event.finish_reason))
        except GatewayError as error:
            self.service.metrics.refused(error)
            yield service_pb2.ModelStreamInferResponse(
                error_message=error.message,
                infer_response=service_pb2.ModelInferResponse(id=request.id, model_name=request.model_name),
            )

    async def _caller(self, context: Any) -> Caller:
        name = address(context.peer())
        metadata = dict(context.invocation_metadata())
        call = asyncio.current_task()
        assert call is not None
        try:
            if self.keys is not None:
                name = authorised(self.keys, str(metadata.get("authorization", "")))
            return Caller(name, call.cancel)
        except GatewayError as error:
            await self._abort(context, error)
            raise

    async def _abort(self, context: Any, error: GatewayError) -> None:
        self.service.metrics.refused(error)
        await context.abort(CODES.get(error.status, grpc.StatusCode.INTERNAL), error.message)


async def start(settings: Settings, service: Service, keys: Keys | None) -> grpc.aio.Server:
    """A server that listens.  Raises ``RuntimeError`` where it cannot."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.limits.max_body_bytes),
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", settings.limits.max_requests),
            ("grpc.max_allowed_incoming_connections", room(settings.limits.max_requests)),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            ("grpc.max_connection_idle_ms", IDLE_MS),
            ("grpc.keepalive_time_ms", ALIVE_EVERY_MS),
            ("grpc.keepalive_timeout_ms", ALIVE_WITHIN_MS),
            ("grpc.keepalive_permit_without_calls", 1),
        ]
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(service, keys), server)
    address = authority(settings.host, settings.grpc_port)
    if settings.tls_certificate and settings.tls_key:
        chain, key = (Path(path).read_bytes() for path in (settings.tls_certificate, settings.tls_key))
        server.add_secure_port(address, grpc.ssl_server_credentials([(key, chain)]))
    else:
        server.add_insecure_port(address)
    await server.start()
    return server


def address(peer: str) -> str:
    """Who is at the other end, as HTTP names it: ``::1`` of ``ipv6:%5B::1%5D:50212``."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def values(request: Any) -> dict[str, Any]:
    """Values by name of a request's tensors.  Raises :class:`GatewayError`."""
    unknown = sorted(set(request.parameters) - set(PARAMETERS))
    if unknown:
        raise invalid(f"unknown parameter {unknown[0]!r} of the request")
    chosen([each.name for each in request.outputs])
    if any(each.parameters for each in request.outputs):
        raise invalid("outputs have no parameters (no classes, no shared memory)")
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise invalid(f"there are {len(request.inputs)} inputs and the raw contents of {len(raw)}")
    found: dict[str, Any] = {}
    for place, tensor in enumerate(request.inputs):
        name, kind = tensor.name, INPUTS.get(tensor.name)
        if kind is None:
            raise invalid(f"unknown parameter {name!r}; the parameters are {', '.join(INPUTS)}")
        if name in found:
            raise invalid(f"the input {name} is there twice")
        if tensor.parameters:
            raise invalid(f"the input {name} has parameters; there are none (no shared memory)")
        if tensor.datatype != kind:
            raise invalid(f"the datatype of {name} is {kind}, not {tensor.datatype}")
        items = _unpacked(name, kind, raw[place]) if raw else list(getattr(tensor.contents, CONTENTS[kind]))
        check_shape(name, list(tensor.shape), len(items))
        try:
            found[name] = [item.decode("utf-8") if isinstance(item, bytes) else item for item in items]
        except UnicodeDecodeError:
            raise invalid(f"{name} is not UTF-8 text") from None
    return found


def response(request: Any, event: Event) -> Any:
    """The contract's outputs as a response."""
    found = service_pb2.ModelInferResponse(id=request.id, model_name=request.model_name, model_version="1")
    answer = outputs(event)
    for name in [each.name for each in request.outputs] or OUTPUTS:
        kind = OUTPUTS[name]
        found.outputs.add(name=name, datatype=kind, shape=[1])
        value = answer[name]
        if kind == "BYTES":
            data = value.encode("utf-8")
            found.raw_output_contents.append(len(data).to_bytes(4, "little") + data)
        else:
            found.raw_output_contents.append(value.to_bytes(4, "little"))
    return found


def _streamed(request: Any, event: Event, last: bool) -> Any:
    found = response(request, event)
    found.parameters["triton_final_response"].bool_param = last
    return service_pb2.ModelStreamInferResponse(infer_response=found)


def _unpacked(name: str, kind: str, data: bytes) -> list[Any]:
    try:
        if kind == "BYTES":
            return [bytes(item) for item in deserialize_bytes_tensor(data)]
        items: list[Any] = numpy.frombuffer(data, NUMBERS[kind]).tolist()
        return items
    except Exception:  # numpy's and struct's, on bytes that are something else
        raise invalid(f"the bytes of {name} are no {kind}") from None
