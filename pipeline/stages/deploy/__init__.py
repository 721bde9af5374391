"""Deploy: a real Triton server that serves a published export and outlives this step.

The server reads its model repository from the export's artifact folder, through links, and
writes nothing there.  Its record (:mod:`pipeline.serving.server`) is the file that the job names in
``extra.server_record``; its log and its backend folder lie beside that file.  A server
of the same record is replaced: stopped first, then started anew.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from pipeline import schema
from pipeline.serving import server
from pipeline.stages.deploy import ports, triton
from pipeline.stages.step import InputError, Step, write_json

# Containers that have the engine of a target, with the newest release that it was written for.
IMAGES = {
    "trtllm": "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3, TensorRT-LLM 1.2.1",
    "trtllm-engine": "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3, TensorRT-LLM 1.2.1",
    "vllm": "nvcr.io/nvidia/tritonserver:26.07-vllm-python-py3, vLLM 0.24.0",
}


def run(step: Step) -> None:
    """Run the deploy stage.

    Raises :class:`pipeline.stages.step.InputError` for a taken port and for a repository that needs an engine that is
    not here, ``RuntimeError`` with the end of the log for a server that does not come to answer.
    """
    settings = step.section(schema.Deploy)
    path = Path(step.extra["server_record"])
    export = json.loads((step.inputs["export"] / "export.json").read_text(encoding="utf-8"))
    lacking = triton.lacking(step.inputs["export"] / "repository")
    if lacking is not None:
        image = IMAGES.get(export["target"], "a container that has it")
        raise InputError(
            f"the export is for {export['target']}, and this machine's Triton has no {lacking}: serve its repository "
            f"with NVIDIA GPUs in {image}; for a server here, export.target=cpu-openvino"
        )
    previous = server.read(path)
    ports.check_distinct(settings)
    stray = server.stop_strays(path.parent / "server", previous)
    if stray:
        step.message(f"stopped a server that an interrupted start had left (process {stray})")
    running = previous is not None and server.is_running(previous)
    # A healthy server is not given up for one that cannot start.
    ours = _ports(previous) if previous is not None and running else ()
    ports.check_free(settings, ours, just_stopped=bool(stray))
    if previous is not None:
        step.message(server.stop(previous))
    path.unlink(missing_ok=True)
    ports.check_free(settings, just_stopped=previous is not None or bool(stray))
    step.phase("starting Triton")
    started = time.monotonic()
    process, record = triton.start(
        settings,
        repository=step.inputs["export"] / "repository",
        model_name=export["model_name"],
        identity=export["identity"],
        folder=path.parent / "server",
        threads=min(2, step.threads),
    )
    try:
        server.write(path, record)
        seconds = triton.wait_until_answering(process, record, settings.start_timeout_s, step)
    except BaseException as error:
        server.stop(record)
        path.unlink(missing_ok=True)
        if isinstance(error, triton.StartFailed):
            step.error(str(error))
        raise
    ready_s = time.monotonic() - started
    curl = curl_line(record)
    write_json(
        step.output / "deployment.json",
        {
            "address": f"http://{record.address}",
            "grpc_address": f"{server.reachable(record.host)}:{record.grpc_port}",
            "metrics": f"http://{server.reachable(record.host)}:{record.metrics_port}/metrics",
            "model_name": record.model_name,
            "export_identity": record.export_identity,
            "curl": curl,
        },
    )
    step.message(f"{record.model_name} answers at http://{record.address} (log: {record.log})")
    step.message(f"try: {curl}")
    step.finish(
        metrics={
            "ready_s": round(ready_s, 2),
            "first_answer_s": round(seconds, 3),
            "server_peak_memory_gb": server.peak_memory_gb(record),
        },
        headline=f"http://{record.address}",
    )


def _ports(record: server.ServerRecord) -> tuple[int, ...]:
    return record.http_port, record.grpc_port, record.metrics_port


def curl_line(record: server.ServerRecord) -> str:
    """A shell line that asks the server a question and shows the answer as it comes."""
    body = json.dumps({"text_input": "What does `os.path.join` do?", "stream": True, "max_tokens": 32})
    return f"curl -sN http://{record.address}/v2/models/{record.model_name}/generate_stream -d '{body}'"
