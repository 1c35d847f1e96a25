"""The OpenAPI description of the HTTP interface, served at ``/v1/openapi.json``.

It is made in the code and not kept in a file, because the bodies of the text endpoints *are* the types that
check them; what a file says would drift. A test compares routes, methods and scopes with the router, and
requests made from the description are sent to a real gateway, whose answers must fit it. ``HEAD`` works
wherever ``GET`` does.
"""

from __future__ import annotations

from typing import Any

import msgspec

from groundswell import __version__
from groundswell.gateway.schema import ChatRequest, CompletionRequest, EmbeddingRequest
from groundswell.media.hls import CONTENT_TYPES
from groundswell.media.ladder import PRESETS, RUNGS_MAX
from groundswell.model.node import NAME
from groundswell.store.keys import Scope

Json = dict[str, Any]

_REF = "#/components/schemas/{name}"
_ALWAYS = "400 405 408 413 414 431"
_KEYED = "401 403 503"
_MEANINGS = {
    "400": "the request is wrong", "401": "no key, or not a valid one", "403": "the key lacks the scope",
    "404": "there is no such thing", "405": "not with this method", "408": "it did not arrive in time",
    "409": "the present state forbids it", "413": "the body is too large", "414": "the URL is too long",
    "415": "an encoding or content type that is not taken", "416": "the file has no such bytes",
    "422": "well formed, and cannot be used", "431": "the headers are too large", "502": "an engine failed",
    "503": "no capacity now; see Retry-After", "504": "accepted, and not started in time",
}  # fmt: skip


def description() -> Json:
    """The whole document."""
    types = (ChatRequest, CompletionRequest, EmbeddingRequest)
    _, requests = msgspec.json.schema_components(types, ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Groundswell",
            "version": __version__,
            "description": "Chat, completions, embeddings and video through one address.",
        },
        "paths": _paths(),
        "components": {
            "schemas": {**_ecma(requests), **_SCHEMAS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _ecma(schema: Any) -> Any:
    """Python's end of text in the dialect of JSON Schema."""
    if isinstance(schema, dict):
        return {
            key: value.replace(r"\Z", "$") if key == "pattern" else _ecma(value)
            for key, value in schema.items()
        }
    return [_ecma(one) for one in schema] if isinstance(schema, list) else schema


# --- shapes ---


def _type(shape: Any) -> Json:
    """A schema from a short word: a type, with ``?`` where it may be null; ``#Name``; a list of one."""
    if isinstance(shape, list):
        return {"type": "array", "items": _type(shape[0])}
    if isinstance(shape, dict):
        return shape
    if shape.startswith("#"):
        return {"$ref": _REF.format(name=shape[1:])}
    return {"type": [shape[:-1], "null"] if shape.endswith("?") else shape}


def _object(optional: str = "", **fields: Any) -> Json:
    """An object with these fields and no others; ``optional`` names those that may be missing."""
    required = [name for name in fields if name not in optional.split()]
    properties = {name: _type(shape) for name, shape in fields.items()}
    return {
        "type": "object", "properties": properties, "required": required, "additionalProperties": False,
    }  # fmt: skip


def _one_of(*values: str) -> Json:
    return {"enum": list(values)}


_JOB_ID = {"type": "string", "pattern": "^job_[0-9a-f]{24}$"}
_KINDS = [_one_of("chat", "completion", "embedding", "transcode")]
_HEAD = {
    "id": _JOB_ID, "object": _one_of("transcode"),
    "status": _one_of("queued", "running", "done", "failed", "cancelled"),
    "created_at": "integer", "finished_at": "integer?",
    "progress": {"type": "number", "minimum": 0, "maximum": 1}, "eta_s": "number?",
    "cost_nano": "integer", "cost": "string", "error": "object?", "playback_url": "string?",
}  # fmt: skip
_RUNG = {
    "oneOf": [
        _one_of(*PRESETS),
        _object(
            "crf maxrate_kbps",
            height={"type": "integer", "minimum": 64, "maximum": 2160, "multipleOf": 2},
            crf={"type": "integer", "minimum": 16, "maximum": 40},
            maxrate_kbps={"type": ["integer", "null"], "minimum": 50, "maximum": 50_000},
        ),
    ]
}
_LADDER = {"type": "array", "items": _RUNG, "minItems": 1, "maxItems": RUNGS_MAX}
_SCHEMAS: Json = {
    "Error": _object(error="#ErrorFields"),
    "ErrorFields": {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "additionalProperties": False,
        "properties": {
            "message": _type("string"),
            "type": _one_of("invalid_request_error", "server_error"),
            "param": _type("string?"),
            "code": _type("string"),
        },
    },
    "Usage": {
        **_object(
            "completion_tokens", prompt_tokens="integer", completion_tokens="integer", total_tokens="integer"
        ),
        "additionalProperties": True,
    },
    "Answer": _object(
        "system_fingerprint service_tier", id="string", object="string", created="integer", model="string",
        choices=["object"], usage="#Usage", system_fingerprint="string?", service_tier="string?",
    ),
    "Embeddings": _object(
        "id created", object="string", data=["object"], model="string", usage="#Usage", id="string",
        created="integer",
    ),
    "Model": _object(
        id="string", object=_one_of("model"), created="integer", owned_by="string", kinds=_KINDS,
        max_model_len="integer",
    ),
    "Models": _object(object=_one_of("list"), data=["#Model"]),
    "Blob": _object(id="string", object=_one_of("blob"), bytes="integer", sha256="string"),
    "Segment": _object(
        number="integer", status=_one_of("waiting", "leased", "done", "failed", "cancelled"),
        start_s="number", duration_s="number", node="string?", engine="string?", attempts="integer",
        error="object?",
    ),
    "TranscodeBrief": _object(**_HEAD),
    "Transcode": _object(
        "source ladder", **_HEAD, source="object", ladder=["object"], segments=["#Segment"],
        audio={"oneOf": [{"type": "null"}, _type("#Segment")]}, files=["string"],
    ),
    "Transcodes": _object(object=_one_of("list"), data=["#TranscodeBrief"], has_more="boolean"),
    "TranscodeRequest": _object(
        "ladder",
        input={"oneOf": [_object(blob="string"), _object(url="string")]},
        ladder={"oneOf": [{"type": "null"}, _LADDER]},
    ),
    "NodeModel": _object(
        "warm fingerprint", model="string", engine_model="string", kinds=_KINDS, continuation="string",
        context_tokens="integer", warm="boolean", fingerprint="string",
    ),
    "Node": _object(
        id="string", object=_one_of("node"), state=_one_of("up", "draining", "silent"), age_s="number",
        draining="boolean", region="string", trust="integer", attempts="integer",
        engines=[
            _object(
                id="string", healthy="boolean", slots="integer", running="integer", generation="integer",
                models=["#NodeModel"],
            )
        ],
    ),
    "Nodes": _object(object=_one_of("list"), data=["#Node"], queued="integer"),
    "NodeRequest": _object(
        "key aliases slots fingerprint",
        url={"type": "string", "maxLength": 2048, "pattern": "^https?://[!-~]+$"},
        key={"type": ["string", "null"], "minLength": 1, "maxLength": 4096, "pattern": "^[ -~]+$"},
        aliases={"type": "object", "additionalProperties": {"type": "string"}},
        slots={"type": ["integer", "null"], "minimum": 1, "maximum": 100_000},
        fingerprint={"type": ["string", "null"], "minLength": 1, "maxLength": 128, "pattern": "^[ -~]+$"},
    ),
    "NodeAdded": _object(
        id="string", object=_one_of("node"),
        engines=[_object(id="string", flavour="string", slots="integer", models=["#NodeModel"])],
    ),
    "InviteRequest": _object(
        "node expires_s",
        node={"type": "string", "pattern": f"^{NAME}$"},
        expires_s={"type": "number", "minimum": 1, "maximum": 2_592_000},
    ),
    "Invite": _object(
        object=_one_of("invite"), node="string", expires_s="number", invite="string",
    ),
    "Status": _object(status="string"),
    "Health": _object(status="string", instance="string"),
}  # fmt: skip


# --- operations ---


def _json(name: str) -> Json:
    return {"application/json": {"schema": _type("#" + name)}}


def _operation(
    summary: str,
    scope: Scope | None,
    answers: dict[int, Json | None],
    errors: str = "",
    body: Json | None = None,
    parameters: tuple[Json, ...] = (),
) -> Json:
    """``answers``: content by status. ``errors``: further statuses, all of the one shape."""
    responses: Json = {
        str(status): {
            "description": "done",
            "headers": {"x-request-id": {"schema": {"type": "string"}, "required": True}},
            **({} if content is None else {"content": content}),
        }
        for status, content in answers.items()
    }
    for status in sorted({*_ALWAYS.split(), *errors.split(), *(_KEYED.split() if scope else ())}):
        if status not in responses:
            responses[status] = {"description": _MEANINGS[status], "content": _json("Error")}
    made: Json = {"summary": summary, "responses": responses}
    if scope is not None:
        made["security"] = [{"key": []}]
        made["x-scope"] = scope.value
    if body is not None:
        made["requestBody"] = {"required": True, "content": body}
    if parameters:
        made["parameters"] = list(parameters)
    return made


def _parameter(name: str, where: str, schema: Json) -> Json:
    return {"name": name, "in": where, "required": where == "path", "schema": schema}


def _text(summary: str, request: str, answer: str, streams: bool = True) -> Json:
    content = _json(answer)
    if streams:
        content["text/event-stream"] = {
            "schema": {"description": "Events: the data of each is a chunk, that of the last is [DONE]."}
        }
    return _operation(summary, Scope.INFERENCE, {200: content}, "404 415 422 502 503 504", _json(request))


def _paths() -> Json:
    job = _parameter("job_id", "path", _JOB_ID)
    path = _parameter("path", "path", {"type": "string", "minLength": 1})
    idempotency = _parameter(
        "Idempotency-Key", "header", {"type": "string", "minLength": 1, "maxLength": 255}
    )
    raw = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
    form = {
        "type": "object",
        "properties": {"file": {"type": "string", "format": "binary"}, "ladder": {"type": "string"}},
        "required": ["file"],
    }
    film = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in CONTENT_TYPES.values()}
    transcode = {202: _json("Transcode")}
    known = {200: _json("Transcode")}
    return {
        "/v1/chat/completions": {"post": _text("Chat, streamed or whole", "ChatRequest", "Answer")},
        "/v1/completions": {"post": _text("Completion of a prompt", "CompletionRequest", "Answer")},
        "/v1/embeddings": {"post": _text("Embeddings", "EmbeddingRequest", "Embeddings", streams=False)},
        "/v1/models": {"get": _operation("What is offered now", Scope.INFERENCE, {200: _json("Models")})},
        "/v1/models/{model}": {
            "get": _operation(
                "One model", Scope.INFERENCE, {200: _json("Model")}, "404",
                parameters=(_parameter("model", "path", {"type": "string", "minLength": 1}),),
            )
        },
        "/v1/blobs": {
            "post": _operation("Upload a file", Scope.VIDEO, {201: _json("Blob")}, "415", raw),
        },
        "/v1/transcodes": {
            "post": _operation(
                "Accept a transcode", Scope.VIDEO, transcode, "404 409 415 422 502",
                {**_json("TranscodeRequest"), "multipart/form-data": {"schema": form}}, (idempotency,),
            ),
            "get": _operation(
                "The tenant's jobs, newest first", Scope.VIDEO, {200: _json("Transcodes")}, "404",
                parameters=(
                    _parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": 100}),
                    _parameter("after", "query", _JOB_ID),
                ),
            ),
        },
        "/v1/transcodes/{job_id}": {
            "get": _operation("One job", Scope.VIDEO, known, "404", parameters=(job,)),
            "delete": _operation("Stop it, remove its files", Scope.VIDEO, known, "404", parameters=(job,)),
        },
        "/v1/transcodes/{job_id}/cancel": {
            "post": _operation("Stop it", Scope.VIDEO, known, "404 415", parameters=(job,))
        },
        "/v1/transcodes/{job_id}/files/{path}": {
            "get": _operation(
                "One file of the result", Scope.VIDEO, {200: film, 206: film}, "404 416",
                parameters=(job, path),
            )
        },
        "/v1/transcodes/{job_id}/hls/{token}/{path}": {
            "get": _operation(
                "The same for players: the token is the right", None, {200: film, 206: film}, "404 416",
                parameters=(job, _parameter("token", "path", {"type": "string", "minLength": 1}), path),
            )
        },
        "/v1/nodes": {
            "get": _operation("Nodes, engines and load", Scope.ADMIN, {200: _json("Nodes")}),
            "post": _operation(
                "Add an engine by its URL", Scope.ADMIN, {201: _json("NodeAdded")}, "409 415 502",
                _json("NodeRequest"),
            ),
        },
        "/v1/nodes/{node}": {
            "delete": _operation(
                "Remove one that was added", Scope.ADMIN, {204: None}, "404",
                parameters=(_parameter("node", "path", {"type": "string", "minLength": 1}),),
            )
        },
        "/v1/invites": {
            "post": _operation(
                "Invite a machine to become a node", Scope.ADMIN, {201: _json("Invite")}, "409 415",
                _json("InviteRequest"),
            )
        },
        "/v1/openapi.json": {
            "get": _operation(
                "This description", None, {200: {"application/json": {"schema": {"type": "object"}}}}
            )
        },
        "/healthz": {"get": _operation("The process lives", None, {200: _json("Health")})},
        "/readyz": {
            "get": _operation("An engine is ready", None, {200: _json("Status"), 503: _json("Status")})
        },
        "/metrics": {
            "get": _operation(
                "Metrics for Prometheus", Scope.ADMIN, {200: {"text/plain": {"schema": {"type": "string"}}}}
            )
        },
    }  # fmt: skip
