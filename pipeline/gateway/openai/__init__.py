"""OpenAI's API in front of the models: POST /v1/chat/completions and /v1/completions, GET /v1/models.

    client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="...")
    client.chat.completions.create(model="assistant", messages=[{"role": "user", "content": "..."}])

What a request may say and what becomes of it is in :mod:`.requests`, the answers' shapes are in
:mod:`.answers`, their order and their end in :mod:`.streams`.
https://platform.openai.com/docs/api-reference
"""

from pipeline.gateway.openai.refusals import explained
from pipeline.gateway.openai.routes import router

__all__ = ["explained", "router"]
