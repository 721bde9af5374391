"""The gateway: one address in front of the models of a Triton server, and of the versions that replace each other.

    python -m pipeline.gateway gateway.json

It speaks OpenAI's API (:mod:`.openai`), Triton's generate endpoints and KServe v2 over HTTP
(:mod:`.kserve`) and gRPC (:mod:`.kserve_grpc`), and asks the version that is current
(:mod:`.versions`) over loopback.  Clients are admitted here (:mod:`.keys`,
:mod:`.admission`) and measured here (:mod:`.metrics`); Triton itself is never exposed.

The program runs in the toolchain ``gateway`` and in a container of its own
(``deploy/gateway/Dockerfile``): nothing in it needs the model, torch or the controller.
"""
