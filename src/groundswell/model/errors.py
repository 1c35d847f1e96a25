"""Every error that the project raises or reports, in one tree.

    GroundswellError            code, status, whether a client should retry
    ├── BadRequest    400       the request is wrong; ``param`` names the field
    ├── Unauthorized  401       no key, or not a valid one
    ├── Forbidden     403       a valid key without the scope
    ├── NotFound      404       no such model, job, file or path
    ├── MethodNotAllowed 405    the path exists, but not with this method
    ├── RequestTimeout 408      the request did not arrive in time
    ├── Conflict      409       an idempotency key used for another body, a state that forbids it
    ├── TooLarge      413       a body, header or file over its limit
    ├── UriTooLong    414       the URL is over its limit
    ├── UnsupportedMedia 415    an encoding or content type that is not served
    ├── RangeNotSatisfiable 416 bytes that a file does not have
    ├── Unprocessable 422       well formed, but the media or URL in it cannot be used
    ├── HeadersTooLarge 431     too many headers, or too much of them
    ├── UpstreamError 502       an engine failed and nothing else can finish the work
    ├── Overloaded    503       capacity is missing; ``retry_after_s`` says when to come back
    ├── DeadlineError 504       accepted, but not started or finished in time
    └── InternalError 500       a defect of ours, always

An error says whose fault it is (the class), whether to retry (``retry``), and carries a stable ``code`` that
docs/reference/errors.md lists. Foreign errors are mapped at the edge where they appear. ``message`` goes to
clients: no path, address, stack or library text in it.
"""

from __future__ import annotations

from typing import ClassVar


class GroundswellError(Exception):
    """The root. Subclasses fix ``status``, ``kind`` (the OpenAI ``type``) and the default ``code``."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"
    retry: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.retry_after_s = retry_after_s


class BadRequest(GroundswellError):
    status, kind, default_code = 400, "invalid_request_error", "invalid_request"


class Unauthorized(GroundswellError):
    status, kind, default_code = 401, "invalid_request_error", "invalid_api_key"


class Forbidden(GroundswellError):
    status, kind, default_code = 403, "invalid_request_error", "permission_denied"


class NotFound(GroundswellError):
    status, kind, default_code = 404, "invalid_request_error", "not_found"


class MethodNotAllowed(GroundswellError):
    status, kind, default_code = 405, "invalid_request_error", "method_not_allowed"


class RequestTimeout(GroundswellError):
    status, kind, default_code = 408, "invalid_request_error", "request_timeout"


class Conflict(GroundswellError):
    status, kind, default_code = 409, "invalid_request_error", "conflict"


class TooLarge(GroundswellError):
    status, kind, default_code = 413, "invalid_request_error", "request_too_large"


class UriTooLong(GroundswellError):
    status, kind, default_code = 414, "invalid_request_error", "url_too_long"


class UnsupportedMedia(GroundswellError):
    status, kind, default_code = 415, "invalid_request_error", "unsupported_encoding"


class RangeNotSatisfiable(GroundswellError):
    status, kind, default_code = 416, "invalid_request_error", "range_not_satisfiable"


class Unprocessable(GroundswellError):
    status, kind, default_code = 422, "invalid_request_error", "media_rejected"


class HeadersTooLarge(GroundswellError):
    status, kind, default_code = 431, "invalid_request_error", "headers_too_large"


class UpstreamError(GroundswellError):
    status, kind, default_code, retry = 502, "server_error", "upstream_error", True


class Overloaded(GroundswellError):
    status, kind, default_code, retry = 503, "server_error", "server_is_overloaded", True


class DeadlineError(GroundswellError):
    status, kind, default_code, retry = 504, "server_error", "deadline_exceeded", True


class InternalError(GroundswellError):
    status, kind, default_code = 500, "server_error", "internal_error"
